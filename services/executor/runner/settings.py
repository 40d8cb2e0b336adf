"""The settings of the runner's process."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from cogni.egress_rules import EgressRules
from services.runtime.settings import (
    AuthSettings,
    BrokerSettings,
    DatabaseSettings,
    ServiceSettings,
    TlsSettings,
    own,
    shared,
)

_ADDRESS = r"(\[[0-9A-Fa-f:]+\]|[^:\s]+):[0-9]{1,5}"


class RunnerSettings(BrokerSettings, DatabaseSettings, TlsSettings, AuthSettings, ServiceSettings):
    """What `python -m dramatiq services.executor.worker` reads."""

    service: ClassVar[str] = "executor"

    graphs_file: Path = shared(..., "The langgraph.json whose graphs this runner carries.")
    address: str = own(..., "host:port of the Executor's server.", pattern=_ADDRESS)
    connections_address: str = shared(..., "host:port of Connections.", pattern=_ADDRESS)
    ledger_address: str = shared(..., "host:port of the Ledger.", pattern=_ADDRESS)
    runner_slots: int = shared(100, "Runs one runner process carries at most.", ge=1, le=10_000)
    runner_lease_seconds: float = shared(
        10.0,
        "How long a run stays with a runner that does not renew; a crash is noticed after it.",
        ge=3,
        le=600,
    )
    runner_loop_stall_seconds: float = shared(
        30.0,
        "A runner whose event loop stands still for so long ends itself: graph code blocks it.",
        ge=1,
        le=600,
    )
    runner_clock_skew_seconds: float = shared(
        1.0, "How far apart the clocks of two services may be.", ge=0, le=60
    )
    runner_probation_seconds: float = shared(
        5.0,
        "How long a run whose runner died runs alone; doubled each time it happens again.",
        ge=0,
        le=3600,
    )
    runner_patience_seconds: float = shared(
        60.0,
        "How long such a run waits for an idle runner before a busy one takes it.",
        ge=0,
        le=3600,
    )
    runner_drain_seconds: float = shared(
        10.0,
        "How long runs may go on when the runner shall end, before they are handed over.",
        ge=0,
        le=3600,
    )
    runner_egress_allow: str = shared(
        "",
        "host:port pairs, separated by commas, that tools may call although they are private or "
        "without TLS, for example an MCP server on this machine.",
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        try:
            EgressRules.parse(self.runner_egress_allow)
        except ValueError as error:
            yield f"COGNI_RUNNER_EGRESS_ALLOW: {error}"
