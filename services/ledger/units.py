"""Usage units: what was used, their permanent key, and the rules a unit must satisfy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from services.ledger.assets import ASSETS
from services.ledger.canonical import fingerprint, format_time
from services.ledger.money import MoneyError, format_decimal, parse_decimal
from services.runtime.errors import Violation

#: Clocks of reporters may be this far ahead of the database's.
CLOCK_SKEW = timedelta(minutes=5)
UNITS_PER_REQUEST_MAX = 10_000
REFERENCE_LENGTH_MAX = 200
_NAME_LENGTH_MAX = 200
_COUNT_MAX = 10**15
_ATTEMPT_MAX = 2**31 - 1

#: Names that only the service itself may report under.
RESERVED_SYSTEMS = frozenset({"executor", "scheduler", "connections", "ledger", "runner"})
_SYSTEM = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
#: Whatever occurred before is a reporter's mistake.
FIRST_MOMENT = datetime(2000, 1, 1, tzinfo=UTC)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Key(NamedTuple):
    """What makes a fact the same fact for ever."""

    tenant_id: str
    source_system: str
    source_reference: str


class UnitRejectedError(Exception):
    """Raised when a well-formed unit can't be recorded as things stand; nothing was changed."""

    def __init__(self, field_name: str, description: str) -> None:
        super().__init__(description)
        self.violation = Violation(field_name, description)


@dataclass(slots=True)
class Cost:
    """What somebody says a unit cost: exact, perhaps finer than the asset's scale."""

    asset: str
    value: str

    def facts(self) -> dict[str, Any]:
        """Return the canonical form; raises MoneyError for a value that is no sum."""
        return {"asset": self.asset, "value": format_decimal(parse_decimal(self.value))}


@dataclass(slots=True)
class LlmUsage:
    """A model call; `tokens` by kind name, disjoint."""

    model: str
    provider: str
    tokens: Mapping[str, int]
    provider_cost: Cost | None = None
    response_id: str = ""
    repeated_kinds: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return the canonical form."""
        facts: dict[str, Any] = {"model": self.model, "tokens": dict(self.tokens)}
        if self.provider:
            facts["provider"] = self.provider
        if self.provider_cost is not None:
            facts["provider_cost"] = self.provider_cost.facts()
        if self.response_id:
            facts["response_id"] = self.response_id
        return {"llm_call": facts}

    def judge(self, found: list[Violation]) -> None:
        """Add what is wrong, with fields relative to the unit."""
        _judge_name(found, "llm_call.model", self.model, is_required=True)
        _judge_name(found, "llm_call.provider", self.provider)
        _judge_name(found, "llm_call.provider_response_id", self.response_id)
        for kind in self.repeated_kinds:
            found.append(Violation("llm_call.token_counts", f"{kind} is missing or given twice"))
        for kind, count in self.tokens.items():
            if not 0 <= count <= _COUNT_MAX:
                text = f"{kind} must be 0 to {_COUNT_MAX}"
                found.append(Violation("llm_call.token_counts", text))
        _judge_cost(found, "llm_call.provider_cost", self.provider_cost)


@dataclass(frozen=True, slots=True)
class ToolUsage:
    """One invocation of a tool."""

    tool: str
    invocation_id: str = ""

    def facts(self) -> dict[str, Any]:
        """Return the canonical form."""
        facts = {"tool": self.tool}
        if self.invocation_id:
            facts["invocation_id"] = self.invocation_id
        return {"tool_call": facts}

    def judge(self, found: list[Violation]) -> None:
        """Add what is wrong, with fields relative to the unit."""
        _judge_name(found, "tool_call.tool", self.tool, is_required=True)
        _judge_name(found, "tool_call.invocation_id", self.invocation_id)


@dataclass(frozen=True, slots=True)
class ComputeUsage:
    """Time on a machine, in nanoseconds."""

    resource: str
    nanoseconds: int

    def seconds(self) -> Decimal:
        """Return the exact number of seconds."""
        return Decimal(self.nanoseconds).scaleb(-9)

    def facts(self) -> dict[str, Any]:
        """Return the canonical form."""
        seconds = format_decimal(self.seconds())
        return {"compute_time": {"resource": self.resource, "seconds": seconds}}

    def judge(self, found: list[Violation]) -> None:
        """Add what is wrong, with fields relative to the unit."""
        _judge_name(found, "compute_time.resource", self.resource, is_required=True)
        if self.nanoseconds < 0:
            found.append(Violation("compute_time.duration", "must not be negative"))


@dataclass(frozen=True, slots=True)
class CustomUsage:
    """Anything that can be counted."""

    unit: str
    quantity: str

    def facts(self) -> dict[str, Any]:
        """Return the canonical form; raises MoneyError for a quantity that is no number."""
        quantity = format_decimal(parse_decimal(self.quantity))
        return {"custom_units": {"unit": self.unit, "quantity": quantity}}

    def judge(self, found: list[Violation]) -> None:
        """Add what is wrong, with fields relative to the unit."""
        _judge_name(found, "custom_units.unit", self.unit, is_required=True)
        _judge_number(found, "custom_units.quantity", self.quantity)


Usage = LlmUsage | ToolUsage | ComputeUsage | CustomUsage


# Not frozen, though nobody changes it: making a frozen one of so many fields takes 3 µs more.
@dataclass(slots=True)
class UsageUnit:
    """One thing that was used and is paid for once. Absent texts are empty."""

    key: Key
    account_id: str
    usage: Usage | None
    occur_time: datetime | None
    run_id: str = ""
    attempt: int = 0
    rework: bool = False
    estimated: bool = False
    corrects: str = ""
    cost: Cost | None = None
    unreadable: tuple[Violation, ...] = field(default=())
    _facts: dict[str, Any] | None = field(default=None, init=False, compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return what the leaf says about the unit beside its key, run, account and time.

        The same object each time, for its hash and for its leaf: do not change it.
        """
        if self._facts is None:
            self._facts = self._tell()
        return self._facts

    def _tell(self) -> dict[str, Any]:
        assert self.usage is not None
        facts = self.usage.facts()
        if self.cost is not None:
            facts["cost"] = self.cost.facts()
        if self.rework:
            facts["rework"] = True
        if self.estimated:
            facts["estimated"] = True
        if self.corrects:
            facts["corrects_source_reference"] = self.corrects
        return facts

    def payload_hash(self) -> bytes:
        """Return the hash of everything the unit says, equal for every spelling of it."""
        assert self.occur_time is not None
        return fingerprint(
            {
                "account": self.account_id,
                "run": self.run_id,
                "attempt": self.attempt,
                "occur_time": format_time(self.occur_time),
                "unit": self.facts(),
            }
        )

    def violations(self, now: datetime) -> list[Violation]:
        """Return everything that is wrong with the unit by itself, fields relative to it."""
        # Functions that add to one list, over generators: 2.6 µs of each unit against 3.9.
        found = list(self.unreadable)
        _judge_key(found, self.key)
        _judge_run(found, self.run_id, self.attempt)
        if not is_uuid(self.account_id):
            found.append(Violation("account_id", "must be an account's id"))
        if self.occur_time is None:
            if not any(each.field == "occur_time" for each in self.unreadable):
                found.append(Violation("occur_time", "is required"))
        elif (wrong := wrong_moment(self.occur_time, now)) is not None:
            found.append(Violation("occur_time", wrong))
        if self.usage is None:
            found.append(Violation("kind", "say what was used: a call, a time or custom units"))
        else:
            self.usage.judge(found)
        _judge_cost(found, "cost", self.cost)
        if self.corrects:
            _judge_reference(found, "corrects_source_reference", self.corrects)
            if self.corrects == self.key.source_reference:
                found.append(Violation("corrects_source_reference", "a unit can't correct itself"))
        return found


def wrong_moment(occur_time: datetime, now: datetime) -> str | None:
    """What is wrong with the time at which something is said to have occurred; None: nothing."""
    if occur_time > now + CLOCK_SKEW:
        return "must not be in the future"
    if occur_time < FIRST_MOMENT:
        return f"must not be before {FIRST_MOMENT.year}"
    return None


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its canonical form."""
    return _UUID.fullmatch(text) is not None


def units_digest_line(key: Key) -> bytes:
    """Return a unit's line in the digest that CloseRun commits."""
    return f"{key.source_system} {key.source_reference}\n".encode()


def _judge_key(found: list[Violation], key: Key) -> None:
    if _SYSTEM.fullmatch(key.source_system) is None:
        text = "must be 1 to 64 lower case letters, digits, dots, dashes or underscores"
        found.append(Violation("source_system", text))
    _judge_reference(found, "source_reference", key.source_reference)


def _judge_reference(found: list[Violation], field_name: str, reference: str) -> None:
    if not 1 <= len(reference) <= REFERENCE_LENGTH_MAX or not reference.isprintable():
        text = f"must be 1 to {REFERENCE_LENGTH_MAX} printable characters"
        found.append(Violation(field_name, text))


def _judge_run(found: list[Violation], run_id: str, attempt: int) -> None:
    if run_id and not is_uuid(run_id):
        found.append(Violation("run_id", "must be a run's id"))
    if run_id and not 1 <= attempt <= _ATTEMPT_MAX:
        found.append(Violation("attempt", "must be 1 or more for a unit of a run"))
    if not run_id and attempt != 0:
        found.append(Violation("attempt", "must be 0 for a unit without a run"))


def _judge_name(
    found: list[Violation], field_name: str, text: str, *, is_required: bool = False
) -> None:
    if is_required and not text:
        found.append(Violation(field_name, "is required"))
    if len(text) > _NAME_LENGTH_MAX or not text.isprintable():
        wrong = f"must be at most {_NAME_LENGTH_MAX} printable characters"
        found.append(Violation(field_name, wrong))


def _judge_number(found: list[Violation], field_name: str, text: str) -> None:
    try:
        parse_decimal(text)
    except MoneyError as error:
        found.append(Violation(field_name, str(error)))


def _judge_cost(found: list[Violation], field_name: str, cost: Cost | None) -> None:
    if cost is None:
        return
    if cost.asset not in ASSETS:
        text = f"must be one of {', '.join(sorted(ASSETS))}"
        found.append(Violation(f"{field_name}.asset", text))
    _judge_number(found, f"{field_name}.value", cost.value)
