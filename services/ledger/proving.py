"""Proves what the log says: signed heads, inclusion, consistency and receipts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from services.ledger.checkpoint import Checkpoint, LogSigner
from services.ledger.commands import Charge
from services.ledger.entries import Entry
from services.ledger.merkle import Frontier, consistency_spans, inclusion_spans
from services.ledger.store import (
    Transaction,
    entries,
    keys,
    log,
    proofs,
    read_one_snapshot,
)
from services.ledger.units import Key
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError, failed_precondition, not_found


@dataclass(frozen=True, slots=True)
class Inclusion:
    """The way from a leaf to the root of a tree of some size."""

    leaf_index: int
    tree_size: int
    leaf_hash: bytes
    hashes: list[bytes]


@dataclass(frozen=True, slots=True)
class Consistency:
    """That a log only grew between two sizes."""

    first: int
    second: int
    hashes: list[bytes]


@dataclass(frozen=True, slots=True)
class Head:
    """A signed head and when it was signed."""

    checkpoint: Checkpoint
    sign_time: datetime


@dataclass(frozen=True, slots=True)
class Receipt:
    """A charge with all its entries, each proven against one signed head."""

    charge: Charge
    entries: list[tuple[Entry, Inclusion]]
    head: Head


class Proving:
    """What GetTreeHead, GetInclusionProof, GetConsistencyProof and GetReceipt do."""

    def __init__(
        self, database: Database, signer: LogSigner | None, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._signer = signer
        self._clock = clock

    async def head(self, tenant_id: str) -> Head:
        """Return the signed head of the log now; raises LOG_KEY_MISSING."""
        async with self._database.raw_tenant(tenant_id) as tx:
            return await self.head_of(tx, tenant_id)

    async def head_of(self, tx: Transaction, tenant_id: str) -> Head:
        """Return the signed head as the transaction sees the log."""
        signer = self._need_signer()
        size, frontier = await log.read_head(tx, tenant_id)
        root = Frontier(size, frontier).root()
        return Head(signer.sign(tenant_id, size, root), self._clock())

    async def inclusion(self, tenant_id: str, sequence: int, tree_size: int) -> Inclusion:
        """Prove an entry in the tree of a size, 0 for the whole log."""
        async with self._database.raw_tenant(tenant_id) as tx:
            size, _ = await log.read_head(tx, tenant_id)
            tree_size = tree_size or size
            if not 1 <= sequence <= tree_size <= size:
                raise _size_invalid(size)
            found = await entries.at(tx, [(tenant_id, sequence)])
            return await _include(tx, found[tenant_id, sequence], tree_size)

    async def consistency(self, tenant_id: str, first: int, second: int) -> Consistency:
        """Prove that the log only grew from the first size to the second, 0 for now."""
        async with self._database.raw_tenant(tenant_id) as tx:
            size, _ = await log.read_head(tx, tenant_id)
            second = second or size
            if not 1 <= first <= second <= size:
                raise _size_invalid(size)
            spans = consistency_spans(first, second)
            return Consistency(first, second, await proofs.span_hashes(tx, tenant_id, spans))

    async def receipt(self, key: Key) -> Receipt:
        """Return the receipt of a unit; raises NOT_FOUND or LOG_KEY_MISSING."""
        tenant_id = key.tenant_id
        async with self._database.raw_tenant(tenant_id) as tx:
            await read_one_snapshot(tx)
            stored = (await keys.find(tx, [key])).get(key)
            if stored is None or stored.sequence is None:
                raise not_found("usage_unit", f"{key.source_system} {key.source_reference}")
            place = (tenant_id, stored.sequence)
            charge = (await entries.charges_at(tx, [place])).get(place)
            if charge is None or "unit" not in charge.entry.facts():
                raise not_found("usage_unit", f"{key.source_system} {key.source_reference}")
            head = await self.head_of(tx, tenant_id)
            size = head.checkpoint.tree_size
            proven = [
                (entry, await _include(tx, entry, size)) for entry in await _parts(tx, charge)
            ]
            return Receipt(charge, proven, head)

    def _need_signer(self) -> LogSigner:
        if self._signer is None:
            raise failed_precondition(
                "LOG_KEY_MISSING",
                "This Ledger has no key to sign heads with; its operator sets "
                "COGNI_LEDGER_LOG_KEY_FILE.",
            )
        return self._signer


async def _parts(tx: Transaction, charge: Charge) -> list[Entry]:
    parts = [charge.entry]
    if charge.overrun is not None:
        parts.append(charge.overrun)
    if charge.corrected_by:
        place = (charge.entry.tenant_id, charge.corrected_by)
        parts.append((await entries.at(tx, [place]))[place])
    return parts


async def _include(tx: Transaction, entry: Entry, tree_size: int) -> Inclusion:
    spans = inclusion_spans(entry.sequence - 1, tree_size)
    hashes = await proofs.span_hashes(tx, entry.tenant_id, spans)
    return Inclusion(entry.sequence - 1, tree_size, entry.leaf_hash, hashes)


def _size_invalid(size: int) -> ServiceError:
    return ServiceError(
        ErrorKind.OUT_OF_RANGE,
        "TREE_SIZE_INVALID",
        f"The log has {size} entries; the sequence and the tree sizes must lie within, in order.",
        metadata={"tree_size": str(size)},
    )
