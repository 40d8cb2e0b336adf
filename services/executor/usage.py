"""A settled usage unit, as the Ledger is told of it, and what a run's units come to."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.executor.amounts import Amount

#: The Executor's name in the key of every charge.
SOURCE_SYSTEM = "executor"


class UsageKind(StrEnum):
    """What was used."""

    LLM_CALL = "LLM_CALL"
    TOOL_CALL = "TOOL_CALL"
    COMPUTE_TIME = "COMPUTE_TIME"
    CUSTOM = "CUSTOM"


class RecordProblem(StrEnum):
    """Why the Ledger has not recorded a unit: neither resolves by itself."""

    #: It has a charge of the same key with other content. A person must look.
    CONFLICT = "CONFLICT"
    #: It refuses the unit as it is. Tried again, since an account may be created meanwhile.
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class SettledUnit:
    """One unit to be charged. `counts` are tokens as the provider counts them, overlapping."""

    call_id: str
    tenant_id: str
    run_id: str
    attempt: int
    account_id: str
    kind: UsageKind
    model: str
    provider: str
    provider_response_id: str
    tool: str
    invocation_id: str
    counts: Mapping[str, int]
    cost: Amount | None
    rework: bool
    estimated: bool
    occur_time: datetime
    #: The call that was settled from its estimate and whose actual figures these are, or "".
    corrects: str = ""
    #: The W3C traceparent of its run, None when the run was started without tracing.
    traceparent: str | None = None

    def disjoint_counts(self) -> dict[str, int]:
        """Return the tokens with each under exactly one kind, as the Ledger wants them.

        Providers count cached tokens among the input, and reasoning among the output.
        """
        read = self.counts.get("cached_input_tokens", 0)
        written = self.counts.get("cache_write_tokens", 0)
        reasoning = self.counts.get("reasoning_tokens", 0)
        disjoint = {
            "INPUT": max(0, self.counts.get("input_tokens", 0) - read - written),
            "OUTPUT": max(0, self.counts.get("output_tokens", 0) - reasoning),
        }
        others = {"CACHE_READ": read, "CACHE_WRITE": written, "REASONING": reasoning}
        return disjoint | {kind: count for kind, count in others.items() if count}


@dataclass(frozen=True, slots=True)
class Closing:
    """A final run all of whose units are recorded: what CloseRun commits."""

    run_id: str
    tenant_id: str
    call_ids: tuple[str, ...]

    @property
    def digest(self) -> bytes:
        """SHA-256 over the sorted lines "executor <call_id>\\n", as the Ledger computes it."""
        return units_digest(self.call_ids)


def units_digest(call_ids: Iterable[str]) -> bytes:
    """Return the digest of a run's units."""
    lines = sorted(f"{SOURCE_SYSTEM} {call_id}\n".encode() for call_id in call_ids)
    return hashlib.sha256(b"".join(lines)).digest()
