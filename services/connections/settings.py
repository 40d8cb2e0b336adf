"""The settings of the Connections server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import SecretStr

from services.connections.egress_rules import EgressRules
from services.connections.keyring import KeyRing, KeyRingError, parse_key_ring
from services.connections.use_cases.authorizations import Redirects
from services.runtime.command import ServiceProcessSettings
from services.runtime.settings import SettingsError, own


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

    callback_url: str = own(
        "",
        "Public URL of the callback process (python -m services.connections callback), as it is "
        "registered at the providers; unset, callers bring a redirect URI of their own.",
        pattern=r"(https?://.+)?",
    )
    redirect_uris: str = own(
        "", "Redirect URIs that callers may use instead, exact and separated by commas."
    )
    return_uris: str = own(
        "", "Where the callback may send people afterwards, exact and separated by commas."
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


def redirects(settings: ConnectionsSettings) -> Redirects:
    """Where people may be sent during an authorization."""
    return Redirects(
        settings.callback_url,
        _listed(settings.redirect_uris),
        _listed(settings.return_uris),
    )


def _listed(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())
