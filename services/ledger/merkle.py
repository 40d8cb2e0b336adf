"""RFC 6962 Merkle trees: appending to a tree known by its frontier, and proving what is in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
#: Every 8 levels of full subtrees are stored: 1/256 of a row per leaf, and any inner hash is
#: recomputed from at most 256 stored ones (the geometry of C2SP tlog-tiles).
TILE_LEVELS = 8


def leaf_hash(leaf: bytes) -> bytes:
    """Return RFC 6962 §2.1's hash of a leaf."""
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return RFC 6962 §2.1's hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


@dataclass(frozen=True, slots=True)
class Node:
    """A full subtree: it covers the leaves from index << level on, 1 << level of them."""

    level: int
    index: int
    hash: bytes


class Frontier:
    """The roots of the full subtrees that make up a tree, the largest first.

    It is all that appending needs, whatever the size of the tree.
    """

    def __init__(self, size: int = 0, packed: bytes = b"") -> None:
        """Unpack a stored frontier; raises ValueError when it does not fit the size."""
        if len(packed) != HASH_BYTES * size.bit_count():
            raise ValueError(f"a tree of {size} leaves has no frontier of {len(packed)} bytes")
        self.size = size
        self._roots = [packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES)]

    def append(self, leaf: bytes) -> list[Node]:
        """Add a leaf's hash; return the full subtrees it completed whose level is stored."""
        completed: list[Node] = []
        index, level, current = self.size, 0, leaf
        while index & 1:
            current = node_hash(self._roots.pop(), current)
            index >>= 1
            level += 1
            if level % TILE_LEVELS == 0:
                completed.append(Node(level, index, current))
        self._roots.append(current)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """Return the root hash of the whole tree."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = node_hash(left, root)
        return root

    def packed(self) -> bytes:
        """Return the frontier as bytes to store."""
        return b"".join(self._roots)


@dataclass(frozen=True, slots=True)
class Span:
    """The leaves from `start` up to `end` (exclusive), whose subtree hash a proof needs."""

    start: int
    end: int


def inclusion_spans(index: int, size: int) -> list[Span]:
    """Return the subtrees of an inclusion proof (RFC 6962 §2.1.1), from the leaf upwards."""
    if not 0 <= index < size:
        raise ValueError("the leaf is not in the tree")
    spans: list[Span] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            spans.append(Span(middle, end))
            end = middle
        else:
            spans.append(Span(start, middle))
            start = middle
    return spans[::-1]


def consistency_spans(first: int, second: int) -> list[Span]:
    """Return the subtrees of a consistency proof (RFC 6962 §2.1.2); none between equal sizes."""
    if not 0 < first <= second:
        raise ValueError("the first size is not inside the second")
    return list(_subproof(first, 0, second, is_known=True)) if first < second else []


def _subproof(first: int, start: int, end: int, *, is_known: bool) -> Iterator[Span]:
    if first == end - start:
        if not is_known:
            yield Span(start, end)
        return
    middle = start + _split(end - start)
    if first <= middle - start:
        yield from _subproof(first, start, middle, is_known=is_known)
        yield Span(middle, end)
    else:
        yield from _subproof(first - (middle - start), middle, end, is_known=False)
        yield Span(start, middle)


def _split(size: int) -> int:
    return 1 << ((size - 1).bit_length() - 1)


def full_subtrees(span: Span) -> list[tuple[int, int]]:
    """Return the (level, index) of the full subtrees a span is made of, from left to right.

    Spans of RFC 6962 start at a multiple of a power of two no smaller than themselves, so taking
    the largest each time is the tree's own shape.
    """
    parts: list[tuple[int, int]] = []
    start = span.start
    while start < span.end:
        level = (span.end - start).bit_length() - 1
        if start:
            level = min(level, (start & -start).bit_length() - 1)
        parts.append((level, start >> level))
        start += 1 << level
    return parts


def fold_left_heavy(hashes: list[bytes]) -> bytes:
    """Return the root over full subtrees of falling size, the largest first."""
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def perfect_root(hashes: list[bytes]) -> bytes:
    """Return the root over a power of two of equal subtrees."""
    while len(hashes) > 1:
        hashes = [node_hash(hashes[i], hashes[i + 1]) for i in range(0, len(hashes), 2)]
    return hashes[0]
