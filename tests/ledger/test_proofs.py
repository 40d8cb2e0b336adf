"""Proofs: whoever has the public key can check the log, offline, and finds what was touched."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st

from cogni.client.ledger_verify import (
    SignedHead,
    VerificationError,
    open_note,
    root_of,
    verify_consistency,
    verify_export,
    verify_receipt,
)
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.composition import compose
from services.ledger.merkle import EMPTY_ROOT, Frontier, leaf_hash, node_hash
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, record, unit, usd
from tests.plugins.calls import refused

TAMPERINGS = 2000 if os.environ.get("LONG") else 50


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 §2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(naive_root(leaves[:split]), naive_root(leaves[split:]))


def test_appending_by_the_frontier_gives_the_roots_of_rfc_6962() -> None:
    frontier, leaves = Frontier(), []
    assert frontier.root() == EMPTY_ROOT
    for number in range(300):
        leaf = leaf_hash(str(number).encode())
        leaves.append(leaf)
        frontier = Frontier(frontier.size, frontier.packed())
        frontier.append(leaf)
        assert frontier.root() == naive_root(leaves)


async def fill(ledger: Ledger, count: int) -> list[Any]:
    account_id = await ledger.account("0.5")
    units = [unit(account_id, "0.001") for _ in range(count)]
    await record(ledger.executor(), *units)
    return units


async def test_every_entry_is_proven_in_every_later_tree(ledger: Ledger) -> None:
    await fill(ledger, 700)
    stub = ledger.stub()
    head = (await stub.GetTreeHead(pb.GetTreeHeadRequest())).tree_head
    size = head.tree_size
    roots = {size: head.root_hash}

    for sequence in (1, 2, 255, 256, 257, 512, 513, 700, size):
        for tree_size in {size, sequence, min(size, sequence + 1), 512}:
            if tree_size < sequence:
                continue
            request = pb.GetInclusionProofRequest(sequence=sequence, tree_size=tree_size)
            proof = (await stub.GetInclusionProof(request)).inclusion_proof
            root = root_of(proof.leaf_hash, proof.leaf_index, tree_size, proof.hashes)
            assert roots.setdefault(tree_size, root) == root


async def test_heads_of_every_size_are_consistent_with_the_last(ledger: Ledger) -> None:
    await fill(ledger, 600)
    stub = ledger.stub()
    leaves = [
        leaf_hash(each.leaf)
        for each in reversed(
            (await stub.ListEntries(pb.ListEntriesRequest(page_size=1000))).entries
        )
    ]
    last = len(leaves)
    now = SignedHead("", last, naive_root(leaves))

    for first in (1, 2, 3, 7, 255, 256, 257, 300, 511, 512, 600, last):
        request = pb.GetConsistencyProofRequest(first_tree_size=first)
        proof = (await stub.GetConsistencyProof(request)).consistency_proof
        then = SignedHead("", first, naive_root(leaves[:first]))
        verify_consistency(then, now, proof.hashes)
        forged = SignedHead("", first, naive_root([*leaves[: first - 1], b"x" * 32]))
        with pytest.raises(VerificationError):
            verify_consistency(forged, now, proof.hashes)


async def test_a_head_opens_with_its_key_alone(ledger: Ledger) -> None:
    await fill(ledger, 3)
    head = (await ledger.stub().GetTreeHead(pb.GetTreeHeadRequest())).tree_head

    opened = open_note(head.note, head.verifier_key)

    assert (opened.origin, opened.tree_size) == ("ledger.example.org/acme", head.tree_size)
    assert opened.root_hash == head.root_hash
    with pytest.raises(VerificationError):
        open_note(head.note.replace(f"\n{head.tree_size}\n", "\n2\n"), head.verifier_key)
    other = (await ledger.stub("other").GetTreeHead(pb.GetTreeHeadRequest())).tree_head
    with pytest.raises(VerificationError):
        open_note(head.note, other.verifier_key)


async def test_a_receipt_is_checked_without_the_ledger(ledger: Ledger) -> None:
    account_id = await ledger.account("1")
    sent = unit(account_id, "1.5")
    correction = unit(account_id, "0.2", corrects_source_reference=sent.source_reference)
    await record(ledger.executor(), sent, correction)
    await fill(ledger, 20)
    request = pb.GetReceiptRequest(source_system="executor", source_reference=sent.source_reference)

    answer = await ledger.stub().GetReceipt(request)

    assert len(answer.receipt.entries) == 3
    verify_receipt(MessageToDict(answer.receipt), answer.receipt.tree_head.verifier_key)
    for claim in (
        lambda charge: charge["amount"].update(value="0.5"),
        lambda charge: charge["overrun"].update(value="1"),
        lambda charge: charge.update(priceCardVersion=2),
        lambda charge: charge.update(priceSource="PRICE_SOURCE_PRICE_CARD"),
        lambda charge: charge.update(correctedBySequence="0"),
        lambda charge: charge["unit"].update(runId=new_id()),
        lambda charge: charge["unit"].update(rework=True),
        lambda charge: charge["unit"]["llmCall"].update(model="gpt-5"),
        lambda charge: charge["unit"]["llmCall"]["tokenCounts"][0].update(count="1"),
    ):
        receipt = MessageToDict(answer.receipt)
        claim(receipt["charge"])
        with pytest.raises(VerificationError, match="says other"):
            verify_receipt(receipt)


async def test_receipts_of_every_kind_of_usage_are_checked(ledger: Ledger) -> None:
    account_id = await ledger.account("0.5")
    kinds: list[dict[str, Any]] = [
        {"tool_call": {"tool": "search", "invocation_id": "i1"}, "rework": True},
        {"compute_time": {"resource": "runner", "duration": {"seconds": 90, "nanos": 1000}}},
        {"custom_units": {"unit": "page", "quantity": "1.50"}, "estimated": True},
        {"llm_call": {"model": "m", "provider_cost": usd("0.0010"), "provider_response_id": "r"}},
    ]
    for kind in kinds:
        sent = unit(account_id, "0.2500000000000001", **{"llm_call": None, **kind})
        await record(ledger.executor(), sent)
        request = pb.GetReceiptRequest(
            source_system="executor", source_reference=sent.source_reference
        )
        answer = await ledger.stub().GetReceipt(request)
        verify_receipt(MessageToDict(answer.receipt), answer.receipt.tree_head.verifier_key)


@pytest.mark.timeout(300)
async def test_whichever_entry_is_touched_and_however_it_is_the_one_that_is_named(
    ledger: Ledger,
) -> None:
    await fill(ledger, 300)
    signed = (await exported(ledger)).splitlines(True)
    leaves = [number for number, line in enumerate(signed) if b'"kind"' in line]
    places = st.integers(0, len(leaves) - 1)

    @settings(max_examples=TAMPERINGS, database=None)
    @given(
        way=st.sampled_from(["alter", "remove", "swap", "repeat", "move", "cut off"]),
        one=places,
        other=places,
        where=st.floats(0, 0.999),
        by=st.integers(1, 255),
    )
    def touch(way: str, one: int, other: int, where: float, by: int) -> None:
        lines, first = list(signed), min(one, other)
        if way == "alter":
            first = one
            line = bytearray(lines[leaves[one]])
            line[int(where * (len(line) - 1))] ^= by
            lines[leaves[one]] = bytes(line)
        elif way == "remove":
            first = one
            del lines[leaves[one]]
        elif way == "cut off":
            first = one
            del lines[leaves[one] :]
        elif one == other:
            return
        elif way == "swap":
            at, to = leaves[one], leaves[other]
            lines[at], lines[to] = lines[to], lines[at]
        elif way == "repeat":
            first = other
            lines.insert(leaves[other], lines[leaves[one]])
        else:
            # Taken out here and put in before the other: what lies between moves by one.
            taken = lines.pop(leaves[one])
            lines.insert(leaves[other] - (one < other), taken)
            if lines == signed:
                return

        with pytest.raises(VerificationError) as failed:
            verify_export(lines)

        assert failed.value.sequence == first + 1

    touch()
    lines = list(signed)
    listing = next(number for number, line in enumerate(lines) if b"leaf_hashes" in line)
    for spoilt in (
        b'{"leaf_hashes": 7}',
        b'{"leaf_hashes": ["zz"]}',
        lines[listing][:-9] + b'0"]}',
    ):
        lines[listing] = spoilt
        with pytest.raises(VerificationError, match="list of hashes"):
            verify_export(lines)


async def exported(ledger: Ledger, **fields: Any) -> bytes:
    data, progress = b"", []
    async for part in ledger.stub().ExportEntries(pb.ExportEntriesRequest(**fields)):
        data += part.chunk
        progress.append((part.exported_count, part.total_count))
        assert len(part.chunk) <= 1024 * 1024
    assert progress[-1][0] == progress[-1][1]
    return data


async def test_a_whole_export_is_verified_offline(ledger: Ledger) -> None:
    await fill(ledger, 600)
    head = (await ledger.stub().GetTreeHead(pb.GetTreeHeadRequest())).tree_head

    verified = verify_export((await exported(ledger)).splitlines(True), head.verifier_key)

    assert verified.entry_count == head.tree_size
    assert verified.charge_count == 600
    assert str(verified.totals["USD"]) == "0.600"


def is_leaf(line: bytes, sequence: int) -> bool:
    return json.loads(line).get("sequence") == sequence


def place(lines: list[bytes], sequence: int) -> int:
    [found] = [number for number, line in enumerate(lines) if is_leaf(line, sequence)]
    return found


def alter(lines: list[bytes]) -> None:
    lines[place(lines, 300)] = lines[place(lines, 300)].replace(b'"0.001"', b'"0.002"')


def alter_last(lines: list[bytes]) -> None:
    number = max(n for n, line in enumerate(lines) if b'"kind"' in line)
    lines[number] = lines[number].replace(b'"occur_time":"2', b'"occur_time":"1')


def alter_and_rewrite_the_rest(lines: list[bytes]) -> None:
    previous = None
    for number, line in enumerate(lines):
        facts = json.loads(line)
        if facts.get("sequence") == 300:
            facts["attempt"] = 7
        elif facts.get("sequence", 0) > 300 and "leaf_hashes" not in facts:
            facts["previous"] = previous
        else:
            continue
        leaf = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
        previous = leaf_hash(leaf).hex()
        lines[number] = leaf + b"\n"


def remove(lines: list[bytes]) -> None:
    del lines[place(lines, 300)]


def swap(lines: list[bytes]) -> None:
    one, two = place(lines, 300), place(lines, 301)
    lines[one], lines[two] = lines[two], lines[one]


def repeat(lines: list[bytes]) -> None:
    lines.insert(place(lines, 301), lines[place(lines, 300)])


def cut_off(lines: list[bytes]) -> None:
    del lines[place(lines, 300) :]


@pytest.mark.parametrize(
    ("tamper", "sequence"),
    [
        (alter, 300),
        (alter_last, 703),
        (alter_and_rewrite_the_rest, 300),
        (remove, 300),
        (swap, 300),
        # The copy stands where entry 301 should.
        (repeat, 301),
        (cut_off, 300),
    ],
)
async def test_the_first_entry_that_was_touched_is_named(
    ledger: Ledger, tamper: Any, sequence: int
) -> None:
    await fill(ledger, 601)
    lines = (await exported(ledger)).splitlines(True)
    verify_export(lines)

    tamper(lines)

    with pytest.raises(VerificationError) as failed:
        verify_export(lines)
    assert failed.value.sequence == sequence


async def test_an_export_for_spreadsheets_has_a_line_per_entry_and_no_formulas(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("1")
    await record(ledger.executor(), unit(account_id, source_reference="=1+1"))

    text = (await exported(ledger, format=pb.EXPORT_FORMAT_CSV)).decode()

    lines = text.splitlines()
    assert lines[0].startswith("sequence,record_time,")
    assert len(lines) == 3
    assert ",'=1+1," in lines[2]


async def test_an_export_can_be_of_one_run(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("1"), new_id()
    await record(ledger.executor(), unit(account_id, run_id=run_id), unit(account_id))

    data = await exported(ledger, run_id=run_id)

    assert data.count(b'"kind":"CHARGE"') == 1
    with pytest.raises(VerificationError, match="whole log"):
        verify_export(data.splitlines(True))


@pytest.mark.parametrize(
    "method_and_request",
    [
        ("GetInclusionProof", pb.GetInclusionProofRequest(sequence=99)),
        ("GetInclusionProof", pb.GetInclusionProofRequest(sequence=2, tree_size=1)),
        ("GetConsistencyProof", pb.GetConsistencyProofRequest(first_tree_size=99)),
        (
            "GetConsistencyProof",
            pb.GetConsistencyProofRequest(first_tree_size=2, second_tree_size=1),
        ),
    ],
)
async def test_proofs_beyond_the_log_are_refused(
    ledger: Ledger, method_and_request: tuple[str, Any]
) -> None:
    await fill(ledger, 3)
    method, request = method_and_request

    refusal = await refused(getattr(ledger.stub(), method)(request))

    assert refusal.reason == "TREE_SIZE_INVALID"


async def test_a_ledger_without_a_key_says_so(ledger: Ledger, serve_service: Any) -> None:
    drain = Drain()
    served = await serve_service("ledger", compose(ledger.database, drain=drain), drain=drain)
    keyless = Ledger(served, ledger.identities, ledger.database)

    refusal = await refused(keyless.stub().GetTreeHead(pb.GetTreeHeadRequest()))

    assert refusal.reason == "LOG_KEY_MISSING"


async def test_another_tenants_unit_has_no_receipt(ledger: Ledger) -> None:
    account_id = await ledger.account("1", tenant="other")
    sent = unit(account_id)
    await record(ledger.executor("other"), sent)
    request = pb.GetReceiptRequest(source_system="executor", source_reference=sent.source_reference)

    assert (await refused(ledger.stub().GetReceipt(request))).reason == "NOT_FOUND"
