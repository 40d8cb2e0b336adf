"""The settings of the Executor's server."""

from typing import ClassVar

from services.runtime.command import ServiceProcessSettings
from services.runtime.settings import BrokerSettings, own, shared


class ExecutorSettings(ServiceProcessSettings, BrokerSettings):
    """What `python -m services.executor` reads."""

    service: ClassVar[str] = "executor"

    ledger_address: str = shared(
        ..., "host:port of the Ledger.", pattern=r"(\[[0-9A-Fa-f:]+\]|[^:\s]+):[0-9]{1,5}"
    )
    connections_address: str = shared(
        ..., "host:port of Connections.", pattern=r"(\[[0-9A-Fa-f:]+\]|[^:\s]+):[0-9]{1,5}"
    )
    watch_streams_max: int = own(
        1000, "WatchRun streams one server process carries at most.", ge=1, le=100_000
    )
    change_streams_max: int = own(
        100,
        "WatchRuns and WatchGrants streams one server process carries at most.",
        ge=1,
        le=10_000,
    )
