"""Checks a Ledger's exports and receipts offline, with nothing but Python and the public key.

This file stands alone: copy it to an auditor's machine and run
`python ledger_verify.py EXPORT --key KEY`. It trusts no hash that a file brings along, only what
follows from the leaves themselves and from a head signed with the key.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from pathlib import Path
from typing import Any

_CHARGE = "CHARGE"
# The hashes of so many leaves at most come in one line; a Ledger writes far fewer.
_BLOCK_MAX = 100_000
# Balances have up to 50 digits, more than Python adds by itself without rounding. What a file
# claims beyond these digits is no sum of a Ledger's.
_EXACT = Context(prec=100, traps=[Inexact, InvalidOperation, Overflow])


class VerificationError(Exception):
    """Raised when a file does not prove what it claims; `sequence` is the first wrong entry.

    `sequence` is None when what is wrong is no single entry.
    """

    def __init__(self, message: str, sequence: int | None = None) -> None:
        super().__init__(message)
        self.sequence = sequence


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head whose signature was verified."""

    origin: str
    tree_size: int
    root_hash: bytes


@dataclass(slots=True)
class Verified:
    """What an export proves."""

    head: SignedHead
    entry_count: int = 0
    charge_count: int = 0
    totals: dict[str, Decimal] = field(default_factory=dict)


def verify_export(lines: Iterable[bytes], key: str | None = None) -> Verified:
    """Check a whole JSON-lines export, line by line, without holding it in memory.

    `key` is the verifier key you trust; without it the export's own is taken, which proves that
    the file is consistent and not who signed it. Raises VerificationError, which names the first
    entry that was altered, removed, added or moved.
    """
    rows = iter(lines)
    header = _header(next(rows, b""))
    head = open_note(header["note"], key or header["verifier_key"])
    if header.get("is_filtered") or header["after_sequence"] != 0:
        raise VerificationError("only an export of the whole log can be verified")
    if header["last_sequence"] != head.tree_size:
        raise VerificationError("the export ends before the head it carries")
    reading = _Reading(head, header["tenant"])
    for row in rows:
        reading.read(row.rstrip(b"\r\n"))
    return reading.finish()


def verify_receipt(receipt: dict[str, Any], key: str | None = None) -> SignedHead:
    """Check a receipt in protobuf's JSON form (`{"charge": …, "entries": […], "treeHead": …}`).

    Raises VerificationError unless every entry is in the signed log and says what the charge
    says.
    """
    tree_head = receipt["treeHead"]
    head = open_note(tree_head["note"], key or tree_head["verifierKey"])
    leaves: list[dict[str, Any]] = []
    for each in receipt["entries"]:
        leaf = base64.b64decode(each["leaf"])
        sequence = int(each["sequence"])
        leaves.append(json.loads(leaf))
        if leaves[-1]["sequence"] != sequence:
            raise VerificationError(f"the leaf of entry {sequence} is another entry's", sequence)
        hashes = [base64.b64decode(h) for h in each["inclusionProof"].get("hashes", [])]
        if root_of(leaf_hash(leaf), sequence - 1, head.tree_size, hashes) != head.root_hash:
            raise VerificationError(f"entry {sequence} is not in the signed log", sequence)
    _check_charge(receipt["charge"], leaves)
    return head


def verify_consistency(first: SignedHead, second: SignedHead, hashes: Sequence[bytes]) -> None:
    """Check that `second` only appended to `first` (RFC 9162 §2.1.4.2).

    Raises VerificationError when the two heads contradict each other.
    """
    if first.tree_size == second.tree_size:
        if first.root_hash != second.root_hash or hashes:
            raise VerificationError("two heads of one size contradict each other")
        return
    # A first tree that is full is a subtree of the second, and the proof leaves it out.
    is_full = first.tree_size & (first.tree_size - 1) == 0
    path = [first.root_hash, *hashes] if is_full else list(hashes)
    node, last = first.tree_size - 1, second.tree_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0] if path else b""
    for sibling in path[1:]:
        if last == 0:
            raise VerificationError("the consistency proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    if last or old != first.root_hash or new != second.root_hash:
        raise VerificationError("the later head does not contain the earlier one")


def open_note(note: str, verifier_key: str) -> SignedHead:
    """Read a signed checkpoint; raises VerificationError unless the key signed it."""
    name, key_id, public = _parse_key(verifier_key)
    body, _, signatures = note.rpartition("\n\n")
    body += "\n"
    for line in signatures.splitlines():
        dash, _, rest = line.partition(" ")
        signer, _, encoded = rest.rpartition(" ")
        signature = _decode(encoded)
        if (dash, signer) != ("\N{EM DASH}", name) or signature[:4] != key_id:
            continue
        if not ed25519_verifies(public, body.encode(), signature[4:]):
            raise VerificationError("the signature of the head is wrong")
        origin, size, root = body.splitlines()[:3]
        if origin != name:
            raise VerificationError("the head is another log's")
        return SignedHead(origin, int(size), _decode(root))
    raise VerificationError("the head is not signed with this key")


def leaf_hash(leaf: bytes) -> bytes:
    """RFC 6962's hash of a leaf."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """RFC 6962's hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaf: bytes, index: int, size: int, hashes: Sequence[bytes]) -> bytes:
    """Return the root that an inclusion proof leads to (RFC 9162 §2.1.3.2), b"" if it is none."""
    if not 0 <= index < size:
        return b""
    node, last, root = index, size - 1, leaf
    for sibling in hashes:
        if last == 0:
            return b""
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while node and not node & 1:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    return root if last == 0 else b""


def _header(line: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(line)
        complete = {"tenant", "note", "verifier_key", "after_sequence", "last_sequence"}
        if header["cogni_ledger_export"] == 1 and complete <= header.keys():
            return header
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise VerificationError("this is no JSON-lines export of a Ledger")


class _Reading:
    """One pass over an export: what its leaves say, and the first of them that is wrong."""

    def __init__(self, head: SignedHead, tenant: str) -> None:
        self._head, self._tenant = head, tenant
        self._verified = Verified(head)
        self._leaves, self._listed = _Tree(), _Tree()
        self._books = _Books()
        self._difference = _Difference()
        self._previous = hashlib.sha256(b"").digest()
        self._expected = 1
        #: The first doubt of each kind. They count by themselves, so only where the list of
        #: hashes is not the signed log's own: that one knows better.
        self._doubts: dict[str, VerificationError] = {}

    def read(self, line: bytes) -> None:
        """Take one line: a leaf, or the hashes of the leaves before it."""
        try:
            facts = json.loads(line)
        except (ValueError, RecursionError):
            facts = None
        if isinstance(facts, dict) and "leaf_hashes" in facts:
            self._list(facts["leaf_hashes"])
            return
        hash_ = leaf_hash(line)
        self._leaves.append(hash_)
        self._difference.read(hash_)
        self._verified.entry_count += 1
        if not isinstance(facts, dict) or not isinstance(facts.get("sequence"), int):
            self._doubt("order", self._expected, "was altered: it is no entry")
            return
        self._place(facts)
        self._previous = hash_
        try:
            self._books.post(facts)
            self._count(facts)
        except (KeyError, TypeError, ArithmeticError, ValueError):
            self._doubt("sums", facts["sequence"], "was altered: it says nothing that adds up")
        except VerificationError as error:
            self._doubts.setdefault("sums", error)

    def finish(self) -> Verified:
        """Return what is proven, or raise the first doubt."""
        is_listed = self._listed.root() == self._head.root_hash
        if self._leaves.root() != self._head.root_hash:
            if is_listed:
                first = self._difference.first()
                raise VerificationError(f"entry {first} was altered, removed or moved", first)
            if self._leaves.size < self._head.tree_size:
                self._doubt("order", self._expected, "and all after it were removed")
            if self._doubts:
                raise min(self._doubts.values(), key=lambda doubt: doubt.sequence or 0)
            raise VerificationError(
                "the leaves do not lead to the signed root, and nothing tells which was altered"
            )
        for doubt in self._doubts.values():
            # The operator signed a log that contradicts itself.
            raise doubt
        if not is_listed:
            raise VerificationError("the list of hashes was altered; the entries are as signed")
        return self._verified

    def _place(self, facts: dict[str, Any]) -> None:
        sequence, expected = facts["sequence"], self._expected
        if sequence != expected:
            self._doubt("order", expected, "was altered, removed or moved")
        if facts.get("tenant") != self._tenant:
            self._doubt("order", sequence, "is of another tenant's log")
        if sequence == expected and facts.get("previous") != self._previous.hex():
            self._doubt("link", max(1, expected - 1), "or the one after it was altered")
        self._expected = sequence + 1

    def _list(self, listed: Any) -> None:
        try:
            hashes = [bytes.fromhex(each) for each in listed]
        except (TypeError, ValueError):
            # The list leads nowhere from here on, so nothing it says counts.
            hashes = [b""]
        for hash_ in hashes:
            self._listed.append(hash_)
            self._difference.list(hash_)

    def _count(self, facts: dict[str, Any]) -> None:
        if facts["kind"] != _CHARGE:
            return
        totals, asset = self._verified.totals, facts["asset"]
        self._verified.charge_count += 1
        amount = Decimal(facts["price"]["amount"])
        totals[asset] = _EXACT.add(totals.get(asset, Decimal(0)), amount)

    def _doubt(self, kind: str, sequence: int, what: str) -> None:
        self._doubts.setdefault(kind, VerificationError(f"entry {sequence} {what}", sequence))


class _Difference:
    """The first place at which the leaves are not those that the file's hashes list."""

    def __init__(self) -> None:
        self._agreed = 0
        self._leaves: deque[bytes] = deque()
        self._hashes: deque[bytes] = deque()
        self._is_found = False

    def read(self, hash_: bytes) -> None:
        """Take the next leaf's hash."""
        self._take(self._leaves, hash_)

    def list(self, hash_: bytes) -> None:
        """Take the next listed hash."""
        self._take(self._hashes, hash_)

    def first(self) -> int:
        """Return the sequence of the first entry that differs, or that one side lacks."""
        return self._agreed + 1

    def _take(self, waiting: deque[bytes], hash_: bytes) -> None:
        if self._is_found:
            return
        waiting.append(hash_)
        while self._leaves and self._hashes and not self._is_found:
            if self._leaves.popleft() == self._hashes.popleft():
                self._agreed += 1
            else:
                self._is_found = True
        # Each block is listed right after it: a file without lists does not fill the memory.
        self._is_found = self._is_found or len(waiting) > _BLOCK_MAX


class _Tree:
    """The roots of the full subtrees of a growing tree, the largest first."""

    def __init__(self) -> None:
        self.size, self._roots = 0, list[bytes]()

    def append(self, hash_: bytes) -> None:
        """Add a leaf by its hash."""
        node, index = hash_, self.size
        while index & 1:
            node, index = node_hash(self._roots.pop(), node), index >> 1
        self._roots.append(node)
        self.size += 1

    def root(self) -> bytes:
        if not self._roots:
            return hashlib.sha256(b"").digest()
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root


class _Books:
    """Adds up what the entries move, and compares with what they say."""

    def __init__(self) -> None:
        self._balances: dict[str, Decimal] = {}
        self._charged: set[tuple[str, str]] = set()

    def post(self, facts: dict[str, Any]) -> None:
        sequence, amount = facts["sequence"], Decimal(facts["amount"])
        if amount < 0:
            raise VerificationError(f"entry {sequence} moves less than nothing", sequence)
        for side, add in (("debit", _EXACT.subtract), ("credit", _EXACT.add)):
            account = facts[side]
            self._balances[account] = add(self._balances.get(account, Decimal(0)), amount)
            said = facts.get(f"{side}_balance")
            if said is not None and Decimal(said) != self._balances[account]:
                raise VerificationError(
                    f"entry {sequence} says account {account} has {said} after it; its entries "
                    f"add up to {self._balances[account]}",
                    sequence,
                )
        if facts["kind"] == _CHARGE:
            key = (facts["source_system"], facts["source_reference"])
            if key in self._charged:
                raise VerificationError(
                    f"entry {sequence} charges the unit {' '.join(key)} a second time", sequence
                )
            self._charged.add(key)


def _check_charge(charge: dict[str, Any], leaves: Sequence[dict[str, Any]]) -> None:
    """Check that the charge says what the leaf of its own entry does, and the later ones add."""
    facts, unit = leaves[0], charge["unit"]
    price = facts["price"]
    past_limit = [leaf["amount"] for leaf in leaves[1:] if leaf["kind"] == "OVERRUN"]
    given_back = [
        leaf["sequence"] for leaf in leaves[1:] if leaf.get("corrects") == facts["sequence"]
    ]
    told = (
        int(charge["sequence"]),
        charge["amount"],
        charge.get("overrun", {}).get("value", "0"),
        int(charge.get("correctedBySequence", 0)),
        charge["priceSource"].removeprefix("PRICE_SOURCE_"),
        charge.get("priceCardId", ""),
        charge.get("priceCardVersion", 0),
        charge.get("unrounded", ""),
        unit["sourceSystem"],
        unit["sourceReference"],
        unit.get("runId", ""),
        unit.get("attempt", 0),
        unit["accountId"],
        _unit_facts(unit),
    )
    proven = (
        facts["sequence"],
        {"asset": facts["asset"], "value": price["amount"]},
        *(past_limit or ["0"]),
        *(given_back or [0]),
        price["source"],
        price.get("card", ""),
        price.get("version", 0),
        price.get("unrounded", ""),
        facts["source_system"],
        facts["source_reference"],
        facts.get("run", ""),
        facts.get("attempt", 0),
        facts["debit"],
        facts["unit"],
    )
    if told != proven:
        raise VerificationError("the receipt says other than its proven entry", facts["sequence"])


def _unit_facts(unit: dict[str, Any]) -> dict[str, Any]:
    """Return what a receipt says was used, as leaves say it."""
    facts = {
        "cost": unit.get("cost"),
        "rework": unit.get("rework"),
        "estimated": unit.get("estimated"),
        "corrects_source_reference": unit.get("correctsSourceReference"),
    }
    if "llmCall" in unit:
        call = unit["llmCall"]
        counts = call.get("tokenCounts", [])
        facts["llm_call"] = _said(
            model=call["model"],
            provider=call.get("provider"),
            provider_cost=call.get("providerCost"),
            response_id=call.get("providerResponseId"),
        ) | {"tokens": {_token_kind(each): int(each.get("count", 0)) for each in counts}}
    elif "toolCall" in unit:
        call = unit["toolCall"]
        facts["tool_call"] = _said(tool=call["tool"], invocation_id=call.get("invocationId"))
    elif "computeTime" in unit:
        time = unit["computeTime"]
        seconds = _plain(time["duration"].removesuffix("s"))
        facts["compute_time"] = {"resource": time["resource"], "seconds": seconds}
    else:
        facts["custom_units"] = _said(**unit["customUnits"])
    return _said(**facts)


def _said(**facts: Any) -> dict[str, Any]:
    """Leave out what was not said, as leaves do."""
    return {name: value for name, value in facts.items() if value}


def _token_kind(count: dict[str, Any]) -> str:
    kind: str = count["kind"]
    return kind.removeprefix("TOKEN_KIND_")


def _plain(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


def _parse_key(text: str) -> tuple[str, bytes, bytes]:
    """Return name, key id and public key of a C2SP verifier key."""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    key = _decode(encoded)
    expected = hashlib.sha256(f"{name}\n".encode() + key).digest()[:4]
    if len(key) != 33 or key[:1] != b"\x01" or expected.hex() != key_id:
        raise VerificationError("this is no Ed25519 verifier key (name+hash+key)")
    return name, expected, key[1:]


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


# Ed25519 verification after RFC 8032 §6: slow, and without any dependency to trust.
_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, _P - 2, _P) % _P
_ROOT_OF_MINUS_ONE = pow(2, (_P - 1) // 4, _P)
_Point = tuple[int, int, int, int]


def ed25519_verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over `message` (RFC 8032 §5.1.7)."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key, commitment = _decompress(public), _decompress(signature[:32])
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or commitment is None or scalar >= _L:
        return False
    digest = hashlib.sha512(signature[:32] + public + message).digest()
    challenge = int.from_bytes(digest, "little") % _L
    return _equal(_multiply(scalar, _base()), _add(commitment, _multiply(challenge, key)))


def _base() -> _Point:
    y = 4 * pow(5, _P - 2, _P) % _P
    x = _recover_x(y, 0)
    assert x is not None
    return (x, y, 1, x * y % _P)


def _decompress(data: bytes) -> _Point | None:
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & ((1 << 255) - 1)
    x = _recover_x(y, sign)
    return None if x is None else (x, y, 1, x * y % _P)


def _recover_x(y: int, sign: int) -> int | None:
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, _P - 2, _P) % _P
    if square == 0:
        return None if sign else 0
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT_OF_MINUS_ONE % _P
    if (x * x - square) % _P:
        return None
    return _P - x if (x & 1) != sign else x


def _add(p: _Point, q: _Point) -> _Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return (e * f % _P, g * h % _P, f * g % _P, e * h % _P)


def _multiply(scalar: int, point: _Point) -> _Point:
    total: _Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            total = _add(total, point)
        point, scalar = _add(point, point), scalar >> 1
    return total


def _equal(p: _Point, q: _Point) -> bool:
    return (p[0] * q[2] - q[0] * p[2]) % _P == 0 and (p[1] * q[2] - q[1] * p[2]) % _P == 0


def main() -> int:
    """Verify one export and say what it proves."""
    parser = argparse.ArgumentParser(description="Verify a Ledger's export offline.")
    parser.add_argument("export", type=Path, help="the JSON-lines file of ExportEntries")
    parser.add_argument("--key", help="the verifier key you trust (name+hash+key)")
    arguments = parser.parse_args()
    try:
        with arguments.export.open("rb") as file:
            verified = verify_export(file, arguments.key)
    except VerificationError as error:
        sys.stderr.write(f"NOT PROVEN: {error}\n")
        return 1
    totals = ", ".join(f"{total} {asset}" for asset, total in sorted(verified.totals.items()))
    sys.stdout.write(
        f"Proven: {verified.entry_count} entries of {verified.head.origin}, "
        f"{verified.charge_count} charges ({totals or 'none'}).\n"
    )
    if arguments.key is None:
        sys.stdout.write("The key came from the file itself: pass --key with the one you trust.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
