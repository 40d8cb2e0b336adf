"""The settings of the Connections server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import SecretStr

from cogni.egress_rules import EgressRules
from services.connections.keyring import KeyRing, KeyRingError, parse_key_ring
from services.connections.providers.github_installations import (
    GITHUB_API,
    AppKey,
    checked_api_url,
)
from services.connections.providers.oauth import OAuthClient
from services.connections.use_cases.authorizations import Redirects
from services.connections.webhook import SHAPE, Endpoint, WebhookError, parse_endpoints
from services.runtime.command import ServiceProcessSettings
from services.runtime.settings import SettingsError, own


class ConnectionsSettings(ServiceProcessSettings):
    """What the server needs."""

    service: ClassVar[str] = "connections"

    keyring: SecretStr | None = own(
        None,
        'The key-encryption keys: {"active": "k1", "keys": {"k1": "<base64 of 32 bytes>"}}. '
        "Required without aws_kms_key; beside it, the keys that older rows are still under.",
    )
    aws_kms_key: str = own(
        "",
        "ARN, id or alias of an AWS KMS key that wraps instead of the key ring; credentials and "
        "region as boto3 finds them.",
        max_length=2048,
    )
    aws_kms_endpoint: str = own(
        "", "Another address of KMS, for example of a private endpoint.", pattern=r"(https?://.+)?"
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
    oauth_clients: SecretStr | None = own(
        None,
        'The OAuth clients you registered: {"twitter": {"client_id": "…", "client_secret": "…"}, '
        '"github_oauth": {…}}.',
    )
    github_keys: SecretStr | None = own(
        None,
        'The private keys of your GitHub Apps, in PEM, by name: {"my-app": "-----BEGIN…"}; or '
        '{"my-app": {"pem": "-----BEGIN…", "tenants": ["acme"]}} for these tenants only. Who may '
        "use an app's key reaches every account that installed the app. A key is for "
        'https://api.github.com alone; "api_url": "https://…" beside "pem" names another GitHub.',
    )
    webhooks: SecretStr | None = own(
        None,
        "Where signed events of connections are sent, by tenant: "
        '{"acme": {"url": "https://…", "secrets": ["whsec_…"]}}; "*" stands for tenants without '
        "an entry. Two secrets sign side by side while one replaces the other.",
    )
    callback_url: str = own(
        "",
        "Public URL of the callback process (python -m services.connections callback), as it is "
        "registered at the providers; unset, callers bring a redirect URI of their own.",
        pattern=r"(https?://.+)?",
    )
    callback_listen: str = own(
        "127.0.0.1:8470",
        "host:port on which the callback process listens; put TLS in front of it.",
        pattern=r"(\[[0-9A-Fa-f:]+\]|[^:\s]+):[0-9]{1,5}",
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
        for read in (key_ring, oauth_clients, github_keys, webhooks):
            try:
                read(self)
            except SettingsError as error:
                yield from error.problems


def key_ring(settings: ConnectionsSettings) -> KeyRing | None:
    """The ring that the settings name, if any. Raises SettingsError with what to change."""
    if settings.keyring is None:
        if settings.aws_kms_key:
            return None
        sentence = (
            "COGNI_CONNECTIONS_KEYRING_FILE is required: stored credentials are encrypted under "
            "its keys. Or set COGNI_CONNECTIONS_AWS_KMS_KEY."
        )
        raise SettingsError([sentence])
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


def oauth_clients(settings: ConnectionsSettings) -> dict[str, OAuthClient]:
    """The operator's OAuth clients by provider. Raises SettingsError."""
    shape = '{"twitter": {"client_id": "…", "client_secret": "…"}, "github_oauth": {…}}'
    problem = SettingsError([f"COGNI_CONNECTIONS_OAUTH_CLIENTS_FILE must look like {shape}."])
    clients = {}
    for name, entry in _json_object(settings.oauth_clients, problem).items():
        if name not in ("twitter", "github_oauth") or not isinstance(entry, dict):
            raise problem
        values = {key: entry.get(key, "") for key in ("client_id", "client_secret")}
        texts = all(isinstance(value, str) for value in values.values())
        if not texts or not values["client_id"] or set(entry) - set(values):
            raise problem
        clients[name] = OAuthClient(**values)
    return clients


def github_keys(settings: ConnectionsSettings) -> dict[str, AppKey]:
    """The operator's GitHub Apps' keys by name. Raises SettingsError."""
    variable = "COGNI_CONNECTIONS_GITHUB_KEYS_FILE"
    shape = (
        '{"my-app": "-----BEGIN …"} or {"my-app": {"pem": "-----BEGIN …", "tenants": ["acme"], '
        '"api_url": "https://…"}}'
    )
    problem = SettingsError([f"{variable} must look like {shape}."])
    found = {}
    for name, entry in _json_object(settings.github_keys, problem).items():
        given = {"pem": entry} if isinstance(entry, str) else entry
        if not isinstance(given, dict) or not set(given) <= {"pem", "tenants", "api_url"}:
            raise problem
        pem, tenants = given.get("pem"), given.get("tenants")
        named = tenants is None or (
            isinstance(tenants, list) and all(isinstance(each, str) for each in tenants)
        )
        if not isinstance(pem, str) or "PRIVATE KEY" not in pem or not named:
            raise problem
        api_url = given.get("api_url", GITHUB_API)
        if not isinstance(api_url, str):
            raise problem
        if complaint := _complaint_about_url(settings, api_url):
            raise SettingsError([f"{variable}: the api_url of {name!r} {complaint}."])
        allowed = None if tenants is None else frozenset(tenants)
        found[name] = AppKey(pem, allowed, checked_api_url(api_url))
    return found


def _complaint_about_url(settings: ConnectionsSettings, url: str) -> str | None:
    try:
        rules = EgressRules.parse(settings.egress_allow)
    except ValueError:
        # EGRESS_ALLOW itself is wrong, and says so.
        rules = EgressRules()
    return rules.complaint_about_url(url)


def webhooks(settings: ConnectionsSettings) -> dict[str, Endpoint]:
    """Where events go, by tenant. Raises SettingsError."""
    variable = "COGNI_CONNECTIONS_WEBHOOKS_FILE"
    problem = SettingsError([f"{variable} must look like {SHAPE}."])
    try:
        endpoints = parse_endpoints(_json_object(settings.webhooks, problem))
        rules = EgressRules.parse(settings.egress_allow)
    except WebhookError as error:
        raise SettingsError([f"{variable}: {error}."]) from None
    except ValueError:
        # EGRESS_ALLOW itself is wrong, and says so.
        return {}
    complaints = [
        f"{variable}: the URL of {tenant_id!r} {complaint}; COGNI_CONNECTIONS_EGRESS_ALLOW can "
        "name its host and port."
        for tenant_id, endpoint in endpoints.items()
        if (complaint := rules.complaint_about_url(endpoint.url)) is not None
    ]
    if complaints:
        raise SettingsError(complaints)
    return endpoints


def _json_object(secret: SecretStr | None, problem: SettingsError) -> dict[str, Any]:
    if secret is None:
        return {}
    try:
        content = json.loads(secret.get_secret_value())
    except (ValueError, RecursionError):
        raise problem from None
    if not isinstance(content, dict):
        raise problem
    return content
