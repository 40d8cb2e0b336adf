"""The settings of the Scheduler's processes: server, clock and starters."""

from __future__ import annotations

from typing import ClassVar

from services.runtime.command import ServiceProcessSettings
from services.runtime.settings import (
    AuthSettings,
    BrokerSettings,
    DatabaseSettings,
    ServiceSettings,
    TlsSettings,
    shared,
)

_EXECUTOR_ADDRESS = "host:port at which the Executor is reached."


class JobSettings(BrokerSettings, DatabaseSettings, TlsSettings, AuthSettings, ServiceSettings):
    """What the clock and the starters read."""

    service: ClassVar[str] = "scheduler"

    executor_address: str = shared(..., _EXECUTOR_ADDRESS)


class ServerProcessSettings(BrokerSettings, ServiceProcessSettings):
    """What the gRPC server reads."""

    service: ClassVar[str] = "scheduler"
    siblings: ClassVar[tuple[type[ServiceSettings], ...]] = (JobSettings,)

    executor_address: str = shared(..., _EXECUTOR_ADDRESS)


JobSettings.siblings = (ServerProcessSettings,)
