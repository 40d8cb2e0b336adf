"""What the Scheduler knows and asks of runs and grants, which belong to the Executor."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Protocol

from services.scheduler.schedules import RunTemplate
from services.scheduler.slot_records import SlotKey

FINISHED_STATES = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "DENIED"})
_ENDED_GRANTS = {"REVOKED": "was revoked", "EXPIRED": "has expired"}


@dataclass(frozen=True, slots=True)
class StartOrder:
    """The start of one slot's run, the same each time it is sent."""

    key: SlotKey
    tenant_id: str
    on_behalf_of: str
    template: RunTemplate


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as the Executor last told of it; `costs` by asset, as it counts them."""

    run_id: str
    state: str
    costs: Mapping[str, Decimal] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it has reached a final state."""
        return self.state in FINISHED_STATES


@dataclass(frozen=True, slots=True)
class RunChange:
    """That the run of a slot came into a state."""

    key: SlotKey
    run: RunView
    tenant_id: str


@dataclass(frozen=True, slots=True)
class GrantView:
    """A grant, as far as it matters to schedules."""

    grant_id: str
    state: str
    graph_ids: frozenset[str]
    owner: str

    def cannot_carry(self, graph_id: str, subject: str) -> str | None:
        """Why runs of the graph cannot start under it for that subject, or None."""
        if self.state in _ENDED_GRANTS:
            return _ENDED_GRANTS[self.state]
        if self.owner != subject:
            return "belongs to another subject"
        return None if graph_id in self.graph_ids else f"does not allow the graph {graph_id!r}"


@dataclass(frozen=True, slots=True)
class GrantChange:
    """That a grant came into a state."""

    grant_id: str
    tenant_id: str
    state: str
    expire_time: datetime | None
    change_time: datetime


@dataclass(frozen=True, slots=True)
class RunBatch:
    """Changes of runs in order; up to `watermark_time` nothing is missing."""

    changes: tuple[RunChange, ...]
    cursor: str
    watermark_time: datetime | None


@dataclass(frozen=True, slots=True)
class GrantBatch:
    """Changes of grants in order; up to `watermark_time` nothing is missing."""

    changes: tuple[GrantChange, ...]
    cursor: str
    watermark_time: datetime | None


class ExecutorUnavailableError(Exception):
    """Raised when the Executor did not answer, or not for a reason that lies in the request.

    The text says what happened, in words fit for the owner of a schedule.
    """


class RunRefusedError(Exception):
    """Raised when the Executor refused for good; `reason` is the contract's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message


class CursorLostError(Exception):
    """Raised when the Executor no longer keeps what follows a cursor."""


class Executor(Protocol):
    """What the Scheduler asks of the Executor. Every method may raise ExecutorUnavailableError."""

    async def start_run(self, order: StartOrder) -> RunView:
        """Start the run of a slot, or find it started; raises RunRefusedError."""

    async def get_run(self, tenant_id: str, run_id: str) -> RunView | None:
        """The run as it is now, or None when there is none."""

    async def cancel_run(self, tenant_id: str, run_id: str, comment: str) -> None:
        """Ask for a run to be cancelled because another takes its place."""

    async def get_grant(self, tenant_id: str, grant_id: str) -> GrantView | None:
        """The grant as it is now, or None when there is none."""

    def watch_runs(self, cursor: str) -> AsyncIterator[RunBatch]:
        """Changes of every tenant's runs that slots started; raises CursorLostError."""

    def watch_grants(self, cursor: str) -> AsyncIterator[GrantBatch]:
        """Changes of every tenant's grants; raises CursorLostError."""
