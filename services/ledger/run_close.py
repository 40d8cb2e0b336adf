"""What the Executor committed about a run's units, against what the Ledger has."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Protocol


class CloseState(IntEnum):
    """How a run's units compare to the commitment; the values are those of the contract."""

    COMPLETE = 1
    MISSING = 2
    REOPENED = 3
    DIFFERENT = 4


@dataclass(frozen=True, slots=True)
class StoredClose:
    """One version of a commitment."""

    run_id: str
    version: int
    unit_count: int
    units_digest: bytes
    close_time: datetime


@dataclass(frozen=True, slots=True)
class RunClose:
    """A commitment with how the Ledger's units compare now."""

    run_id: str
    version: int
    unit_count: int
    units_digest: bytes
    close_time: datetime
    state: CloseState


class UnitSet(Protocol):
    """Which units are recorded: how many, and their digest."""

    @property
    def units(self) -> int: ...

    @property
    def digest(self) -> bytes: ...


def compare(close: StoredClose, recorded: UnitSet) -> RunClose:
    """Return the commitment with its state."""
    state = close_state(close.unit_count, close.units_digest, recorded)
    return RunClose(
        close.run_id,
        close.version,
        close.unit_count,
        close.units_digest,
        close.close_time,
        state,
    )


def close_state(unit_count: int, units_digest: bytes, recorded: UnitSet) -> CloseState:
    """Return how the recorded units compare to a commitment."""
    if recorded.units < unit_count:
        return CloseState.MISSING
    if recorded.units > unit_count:
        return CloseState.REOPENED
    return CloseState.COMPLETE if recorded.digest == units_digest else CloseState.DIFFERENT


class GapKind(IntEnum):
    """What is wrong with a run's units; the values are those of the contract."""

    MISSING = 1
    EXTRA = 2
    DIFFERENT = 3
    UNCLOSED = 4


@dataclass(frozen=True, slots=True)
class Gap:
    """A run whose units are not what they should be."""

    run_id: str
    kind: GapKind
    committed: int
    recorded: int
    detect_time: datetime


_GAPS = {
    CloseState.MISSING: GapKind.MISSING,
    CloseState.REOPENED: GapKind.EXTRA,
    CloseState.DIFFERENT: GapKind.DIFFERENT,
}


def gap_of(state: CloseState) -> GapKind | None:
    """Return the gap that a close's state is, None when the run is complete."""
    return _GAPS.get(state)
