"""The settings of the Connections server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import ClassVar

from pydantic import SecretStr

from services.connections.egress_rules import EgressRules
from services.connections.keyring import KeyRing, KeyRingError, parse_key_ring
from services.runtime.command import ServiceProcessSettings
from services.runtime.pools import DatabaseLimits
from services.runtime.settings import (
    SettingsError,
    own,
)


class ConnectionsSettings(ServiceProcessSettings):
    """What the server needs."""

    service: ClassVar[str] = "connections"

    keyring: SecretStr = own(
        ...,
        'The key-encryption keys: {"active": "k1", "keys": {"k1": "<base64 of 32 bytes>"}}.',
    )
    egress_allow: str = own(
        "",
        "host:port pairs, separated by commas, that may be called although they are private or "
        "without TLS, for example an AT Protocol server on this machine.",
    )
    provider_timeout_seconds: float = own(
        10.0, "The longest that one call to a provider may take.", gt=0, le=60
    )

    operator_tenant: str = own(
        "",
        "The tenant whose administrators rotate the deployment's keys; unset, every tenant's may.",
        pattern=r"([a-z0-9][a-z0-9-]{0,62})?",
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        try:
            EgressRules.parse(self.egress_allow)
        except ValueError as error:
            yield f"COGNI_CONNECTIONS_EGRESS_ALLOW: {error}."
        try:
            key_ring(self)
        except SettingsError as error:
            yield from error.problems


def key_ring(settings: ConnectionsSettings) -> KeyRing:
    """The ring that the settings name. Raises SettingsError with what to change."""
    try:
        return parse_key_ring(settings.keyring.get_secret_value(), source="The key ring")
    except KeyRingError as error:
        raise SettingsError([f"COGNI_CONNECTIONS_KEYRING_FILE: {error}."]) from error


def database_limits(settings: ConnectionsSettings) -> DatabaseLimits:
    """What the process may take from its database."""
    return DatabaseLimits(
        app_connections_max=settings.database_pool_size,
        statement=timedelta(seconds=settings.database_statement_timeout_seconds),
        lock=timedelta(seconds=settings.database_lock_timeout_seconds),
        idle_in_transaction=timedelta(seconds=settings.database_idle_timeout_seconds),
    )
