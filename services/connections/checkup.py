"""What trying a connection out found."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from services.connections.connection import Connection


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried."""

    name: str
    passed: bool
    message: str
    reason: str = ""
    duration: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Checkup:
    """Everything that was tried, and the connection afterwards.

    `unknown_scopes` are the required ones of which the provider does not tell whether they are
    granted.
    """

    checks: tuple[Check, ...]
    missing_scopes: tuple[str, ...]
    connection: Connection
    unknown_scopes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return all(check.passed for check in self.checks) and not self.missing_scopes
