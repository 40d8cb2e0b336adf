"""Settings of every process: declared once, read from COGNI_* variables, refused in sentences."""

from services.runtime.settings.environment import SettingsError, load, load_or_exit
from services.runtime.settings.field import own, shared
from services.runtime.settings.groups import (
    AuthSettings,
    BrokerSettings,
    DatabaseSettings,
    ServerSettings,
    ServiceSettings,
    SettingsGroup,
    TelemetrySettings,
    TlsSettings,
)
from services.runtime.settings.table import settings_table

__all__ = [
    "AuthSettings",
    "BrokerSettings",
    "DatabaseSettings",
    "ServerSettings",
    "ServiceSettings",
    "SettingsError",
    "SettingsGroup",
    "TelemetrySettings",
    "TlsSettings",
    "load",
    "load_or_exit",
    "own",
    "settings_table",
    "shared",
]
