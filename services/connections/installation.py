"""An installation: a place where an app of a provider may act, until somebody suspends it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Installation:
    """What the provider says about it now."""

    installation_id: str
    account_id: str
    account_name: str
    scopes: tuple[str, ...]
    all_repositories: bool
    suspend_time: datetime | None
    uri: str


@dataclass(frozen=True, slots=True)
class ListedInstallation:
    """An installation, and the tenant's connections that stand for it."""

    installation: Installation
    connection_ids: tuple[str, ...]
