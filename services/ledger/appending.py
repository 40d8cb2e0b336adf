"""Appends a book's drafts to their tenants' logs: sequences, leaves, tree and balances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from services.ledger.accounts import AccountKind, system_account_id
from services.ledger.assets import Asset
from services.ledger.book import Book
from services.ledger.entries import NONCE_BYTES, Draft, Entry, EntryKind, Place, seal
from services.ledger.holds import Hold
from services.ledger.merkle import EMPTY_ROOT, Frontier, Node
from services.ledger.store import Transaction, holds, log
from services.ledger.store.log import Appendix, KeyUse, LogHead, Movement


@dataclass(frozen=True, slots=True)
class Appended:
    """What a batch became: entries by the identity of their drafts, and the holds it changed."""

    entries: dict[int, Entry]
    holds: dict[tuple[str, str], Hold]
    heads: Mapping[str, LogHead] = field(default_factory=dict)


class Appender:
    """Seals what a batch drafted, under the locked heads of its tenants' logs."""

    def __init__(self, nonces: Callable[[int], bytes]) -> None:
        self._nonces = nonces

    async def append(self, tx: Transaction, book: Book, used: Sequence[KeyUse]) -> Appended:
        """Write everything the book holds, and the keys that led to it.

        Raises RaceLostError when another process committed one of the keys meanwhile.
        """
        heads = await log.lock_heads(tx, {use.key.tenant_id for use in used} | set(book.drafts))
        for (tenant_id, asset), remainder in book.remainders.items():
            await self._carry(tx, book, tenant_id, asset, remainder)
        sealed, nodes = self.seal(book, heads)
        changed = await holds.write(tx, [hold for hold in book.holds.values() if hold.is_changed])
        keys = [
            use if use.draft is None else replace(use, sequence=use.draft.sequence) for use in used
        ]
        entries = list(sealed.values())
        movements = movements_of(book, entries)
        await log.write(tx, Appendix(entries, keys, nodes, movements, heads))
        return Appended(sealed, book.holds | changed, heads)

    def seal(
        self, book: Book, heads: Mapping[str, LogHead]
    ) -> tuple[dict[int, Entry], list[tuple[str, Node]]]:
        """Give every draft its place after the heads, which move on; write nothing.

        Returns the entries by the identity of their drafts, and the subtrees they completed.
        """
        sealed: dict[int, Entry] = {}
        nodes: list[tuple[str, Node]] = []
        for tenant_id, drafts in book.drafts.items():
            head = heads[tenant_id]
            frontier = Frontier(head.tree_size, head.frontier)
            # Nonces of a whole batch at once: each call asks the kernel.
            noise = self._nonces(NONCE_BYTES * len(drafts))
            head.last_record_time = max(head.now, head.last_record_time or head.now)
            for number, draft in enumerate(drafts):
                head.tree_size += 1
                nonce = noise[number * NONCE_BYTES : (number + 1) * NONCE_BYTES]
                previous = head.last_leaf_hash or EMPTY_ROOT
                entry = seal(draft, Place(head.tree_size, head.last_record_time, previous, nonce))
                head.last_leaf_hash = entry.leaf_hash
                for node in frontier.append(entry.leaf_hash):
                    nodes.append((tenant_id, node))
                sealed[id(draft)] = entry
            head.frontier = frontier.packed()
        return sealed, nodes

    async def _carry(
        self, tx: Transaction, book: Book, tenant_id: str, asset: Asset, remainder: Decimal
    ) -> None:
        """Keep what rounding left over, and post it once it is a whole minor unit."""
        rounding_id = system_account_id(tenant_id, asset.code, AccountKind.ROUNDING)
        whole = await log.carry(tx, tenant_id, rounding_id, remainder)
        if whole == 0:
            return
        usage_id = system_account_id(tenant_id, asset.code, AccountKind.USAGE)
        # A positive remainder is what charges fell short of their exact prices: ROUNDING pays it.
        debit, credit = (rounding_id, usage_id) if whole > 0 else (usage_id, rounding_id)
        draft = Draft(tenant_id, EntryKind.ROUNDING, debit, credit, asset, abs(whole))
        draft.description = "what rounding charges left over"
        book.drafts.setdefault(tenant_id, []).append(draft)


def movements_of(book: Book, entries: list[Entry]) -> dict[tuple[str, str], Movement]:
    """Return what the batch changes in each balance, touched once whatever it was used for."""
    movements: dict[tuple[str, str], Movement] = {}
    for entry in entries:
        for account_id, change in (
            (entry.debit_account_id, -entry.amount),
            (entry.credit_account_id, entry.amount),
        ):
            movement = movements.setdefault((entry.tenant_id, account_id), Movement())
            movement.change += change
            movement.sequence = entry.sequence
            movement.update_time = entry.record_time
    for place, position in book.positions.items():
        if position.held != position.held_before:
            movements.setdefault(place, Movement()).held_change = (
                position.held - position.held_before
            )
    return movements
