"""A run: its states, how they follow each other, and what belongs to it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from services.executor.amounts import Amount
from services.runtime.jsonvalues import Json, canonical_json


class RunState(StrEnum):
    """Where a run stands; names as in the contract."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    DENIED = "DENIED"


class WaitingReason(StrEnum):
    """Why a run stands still."""

    INTERRUPT = "INTERRUPT"
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"


class CancelReason(StrEnum):
    """Why somebody cancels a run."""

    USER_REQUEST = "USER_REQUEST"
    SUPERSEDED = "SUPERSEDED"
    GRANT_REVOKED = "GRANT_REVOKED"
    TIMEOUT = "TIMEOUT"
    OPERATOR = "OPERATOR"
    GRANT_EXPIRED = "GRANT_EXPIRED"


class Durability(StrEnum):
    """When the state between two steps becomes durable."""

    STEP = "STEP"
    EXIT = "EXIT"


_STOPPED = frozenset({RunState.FAILED, RunState.CANCELLED, RunState.DENIED})
FINAL = _STOPPED | {RunState.SUCCEEDED}

#: Every state and what may follow it. RUNNING follows itself when the next attempt begins.
TRANSITIONS: Mapping[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING}) | _STOPPED,
    RunState.RUNNING: frozenset({RunState.RUNNING, RunState.QUEUED, RunState.WAITING}) | FINAL,
    RunState.WAITING: frozenset({RunState.QUEUED}) | _STOPPED,
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
    RunState.DENIED: frozenset(),
}


def sources_of(state: RunState) -> tuple[RunState, ...]:
    """Return the states that `state` may follow."""
    return tuple(source for source, targets in TRANSITIONS.items() if state in targets)


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run ended without success; `reason` is an ErrorReason without its prefix."""

    reason: str
    message: str
    node: str = ""
    type: str = ""


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Who asked for a run to be cancelled, when and why."""

    reason: CancelReason
    comment: str
    requester: str
    time: datetime | None = None


def ending_of(reason: CancelReason) -> tuple[RunState, RunError]:
    """Return how a run ends that is stopped for this reason."""
    match reason:
        case CancelReason.GRANT_REVOKED:
            return RunState.DENIED, RunError("GRANT_REVOKED", "The grant was revoked.")
        case CancelReason.GRANT_EXPIRED:
            return RunState.DENIED, RunError("GRANT_EXPIRED", "The grant has expired.")
        case CancelReason.TIMEOUT:
            return RunState.FAILED, RunError("RUN_TIMEOUT", "The run took longer than its timeout.")
        case _:
            return RunState.CANCELLED, RunError("RUN_CANCELLED", "The run was cancelled.")


@dataclass(frozen=True, slots=True)
class Origin:
    """What started a run: a slot, a delivery, or, with nothing set, a caller."""

    schedule_id: str | None = None
    scheduled_time: datetime | None = None
    slot_id: str | None = None
    trigger_id: str | None = None
    delivery_id: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How a run is executed."""

    max_attempts: int = 3
    timeout: timedelta = timedelta(hours=24)
    max_steps: int = 100
    durability: Durability = Durability.STEP
    max_cost: Amount | None = None


@dataclass(frozen=True, slots=True)
class Interrupt:
    """A question that a run waits with; open until it has an answer_time."""

    interrupt_id: str
    reason: WaitingReason
    node: str
    payload: Json
    create_time: datetime
    invocation_id: str | None = None
    tool: str | None = None
    answer_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class RunUsage:
    """The Executor's own count of what a run used."""

    model_calls: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    costs: tuple[Amount, ...] = ()
    pending_units: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a caller asks to be run; together with the request_id it makes one run, for ever."""

    graph_id: str
    grant_id: str
    input: dict[str, Json]
    context: dict[str, Json]
    thread_id: str | None
    revision: str | None
    options: Options
    labels: dict[str, str]
    origin: Origin
    #: Set by ReplayRun: the run that this one repeats.
    replayed_run_id: str | None = None

    def content_hash(self, owner: str) -> bytes:
        """Return what a repeat under the same request_id must equal.

        Of the domain form, since two encodings of one request may differ byte for byte.
        """
        return hashlib.sha256(canonical_json([owner, *self._content()])).digest()

    def _content(self) -> list[Json]:
        cost = self.options.max_cost
        return [
            self.graph_id,
            self.grant_id,
            self.input,
            self.context,
            self.thread_id,
            self.revision,
            dict(self.labels),
            self.options.max_attempts,
            str(self.options.timeout),
            self.options.max_steps,
            self.options.durability,
            [cost.asset, cost.plain] if cost else None,
            self.origin.schedule_id,
            self.origin.scheduled_time.isoformat() if self.origin.scheduled_time else None,
            self.origin.slot_id,
            self.origin.trigger_id,
            self.origin.delivery_id,
            self.replayed_run_id,
        ]


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a graph."""

    run_id: str
    tenant_id: str
    graph_id: str
    revision: str
    thread_id: str
    grant_id: str
    owner: str
    state: RunState
    attempt: int
    options: Options
    origin: Origin
    labels: dict[str, str]
    create_time: datetime
    update_time: datetime
    input: dict[str, Json] = field(default_factory=dict)
    context: dict[str, Json] = field(default_factory=dict)
    output: Json = None
    waiting_reason: WaitingReason | None = None
    error: RunError | None = None
    cancellation: Cancellation | None = None
    replayed_run_id: str | None = None
    traceparent: str | None = None
    start_time: datetime | None = None
    finish_time: datetime | None = None
    events_expire_time: datetime | None = None
    last_seq: int = 0
    interrupts: tuple[Interrupt, ...] = ()
    usage: RunUsage | None = None

    @property
    def final(self) -> bool:
        """Whether nothing can happen to the run any more."""
        return self.state in FINAL

    @property
    def trace_id(self) -> str:
        """The trace id inside the traceparent (W3C Trace Context), or the empty string."""
        parts = (self.traceparent or "").split("-")
        return parts[1] if len(parts) == 4 else ""

    def with_details(self, interrupts: tuple[Interrupt, ...], usage: RunUsage) -> "Run":
        """Return the run as GetRun shows it."""
        return replace(self, interrupts=interrupts, usage=usage)


@dataclass(frozen=True, slots=True)
class RunChange:
    """That a run came into a state."""

    run_id: str
    tenant_id: str
    graph_id: str
    grant_id: str
    thread_id: str
    state: RunState
    waiting_reason: WaitingReason | None
    attempt: int
    origin: Origin
    error: RunError | None
    change_time: datetime
