"""Reads the hashes that proofs are made of."""

from __future__ import annotations

from collections.abc import Sequence

from services.ledger.merkle import (
    EMPTY_ROOT,
    TILE_LEVELS,
    Span,
    fold_left_heavy,
    full_subtrees,
    perfect_root,
)
from services.ledger.store import Transaction

_LEAVES = """
SELECT r.part, e.leaf_hash
FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS r (part, start, stop)
JOIN entries AS e ON e.tenant_id = $1 AND e.sequence > r.start AND e.sequence <= r.stop
ORDER BY r.part, e.sequence
"""

_NODES = """
SELECT r.part, n.hash
FROM unnest($2::int[], $3::smallint[], $4::bigint[], $5::bigint[]) AS r (part, level, start, stop)
JOIN log_nodes AS n
  ON n.tenant_id = $1 AND n.level = r.level AND n.index >= r.start AND n.index < r.stop
ORDER BY r.part, n.index
"""


async def span_hashes(tx: Transaction, tenant_id: str, spans: Sequence[Span]) -> list[bytes]:
    """Return the subtree hash of each span of a tenant's log.

    Reads at most 256 stored hashes per full subtree, in two queries for all of them.
    """
    parts = [(number, part) for number, s in enumerate(spans) for part in full_subtrees(s)]
    stored = await _stored(tx, tenant_id, [part for _, part in parts])
    roots: list[list[bytes]] = [[] for _ in spans]
    for (number, _), hashes in zip(parts, stored, strict=True):
        roots[number].append(perfect_root(hashes))
    return [fold_left_heavy(each) for each in roots]


async def root_at(tx: Transaction, tenant_id: str, size: int) -> bytes:
    """Return the root hash that a tenant's log had at a size."""
    if size == 0:
        return EMPTY_ROOT
    (root,) = await span_hashes(tx, tenant_id, [Span(0, size)])
    return root


async def _stored(
    tx: Transaction, tenant_id: str, parts: Sequence[tuple[int, int]]
) -> list[list[bytes]]:
    """Return, per full subtree (level, index), the stored hashes right below or at its root."""
    found: list[list[bytes]] = [[] for _ in parts]
    leaves: list[tuple[int, int, int]] = []
    nodes: list[tuple[int, int, int, int]] = []
    for number, (level, index) in enumerate(parts):
        base = level - level % TILE_LEVELS
        start, stop = index << (level - base), (index + 1) << (level - base)
        if base == 0:
            leaves.append((number, start, stop))
        else:
            nodes.append((number, base, start, stop))
    rows = []
    if leaves:
        rows += await tx.fetch(_LEAVES, tenant_id, *zip(*leaves, strict=True))
    if nodes:
        rows += await tx.fetch(_NODES, tenant_id, *zip(*nodes, strict=True))
    for number, hash_ in rows:
        found[number].append(hash_)
    return found
