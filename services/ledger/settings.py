"""The settings of the Ledger's processes."""

from __future__ import annotations

from typing import ClassVar

from pydantic import SecretStr

from services.runtime.settings import DatabaseSettings, ServerSettings, ServiceSettings, own


class LedgerSettings(ServiceSettings, DatabaseSettings, ServerSettings):
    """What `python -m services.ledger` reads."""

    service: ClassVar[str] = "ledger"

    log_key: SecretStr | None = own(
        None,
        "File with the Ed25519 private key (PEM) that signs the heads of the tenants' logs. "
        "Without it nothing can be proven outside; keep it as long as receipts must hold.",
        file_only=True,
    )
    log_origin: str = own(
        "cogni-ledger",
        "What the names of the logs begin with, as in <origin>/<tenant>; give each installation "
        "its own, for example a domain name.",
        pattern=r"[A-Za-z0-9][A-Za-z0-9./_-]{0,127}",
    )


class MigrationSettings(ServiceSettings, DatabaseSettings):
    """What `python -m services.ledger migrate` reads."""

    service: ClassVar[str] = "ledger"
    siblings: ClassVar[tuple[type[ServiceSettings], ...]] = (LedgerSettings,)
