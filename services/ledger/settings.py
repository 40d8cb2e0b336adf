"""The settings of the Ledger's processes."""

from __future__ import annotations

from typing import ClassVar

from services.runtime.settings import DatabaseSettings, ServerSettings, ServiceSettings


class LedgerSettings(ServiceSettings, DatabaseSettings, ServerSettings):
    """What `python -m services.ledger` reads."""

    service: ClassVar[str] = "ledger"


class MigrationSettings(ServiceSettings, DatabaseSettings):
    """What `python -m services.ledger migrate` reads."""

    service: ClassVar[str] = "ledger"
    siblings: ClassVar[tuple[type[ServiceSettings], ...]] = (LedgerSettings,)
