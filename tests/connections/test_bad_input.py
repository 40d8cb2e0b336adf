"""Bad input is refused in words that its sender understands."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import error_details_pb2

from cogni.connections.v1 import connections_service_pb2 as messages
from services.runtime.ids import new_id
from tests.connections.conftest import Service
from tests.plugins.calls import refused
from tests.plugins.strangers import prove_strangers

API = {"allowed_origins": ["https://api.example.com"]}
OAUTH = {
    "authorization_endpoint": "https://auth.example.com",
    "token_endpoint": "https://auth.example.com/token",
    "base_url": "https://api.example.com",
    "client_id": "c",
}


@pytest.mark.parametrize(
    ("provider", "settings", "secret", "told"),
    [
        ("api_key", {}, {"api_key": {"key": "k"}}, {"settings.allowed_origins": "is required"}),
        (
            "api_key",
            {"allowed_origins": "https://a.com", "nonsense": 1},
            {"api_key": {"key": "k"}},
            {
                "settings.allowed_origins": "must be a list",
                "settings.nonsense": "is no setting of api_key; it has: allowed_origins, ",
            },
        ),
        ("api_key", API, {"api_key": {"key": "k\u00fc"}}, {"secret.api_key.key": "must be ASCII"}),
        (
            "api_key",
            {"allowed_origins": ["https://api..example.com"]},
            {"api_key": {"key": "k"}},
            {"settings.allowed_origins": "must have a host whose parts"},
        ),
        (
            "mcp:x",
            {"server_url": "https://\u00fcn\u00ef.example/"},
            {"api_key": {"key": "k"}},
            {"settings.server_url": "must be ASCII: write the host in punycode"},
        ),
        (
            "oauth2",
            OAUTH,
            {"oauth_tokens": {"access_token": "a", "expire_time": {"seconds": 10**12}}},
            {"secret.oauth_tokens.expire_time": "is not a valid timestamp"},
        ),
        (
            "oauth2",
            OAUTH,
            {"api_key": {"key": "k"}},
            {"secret": "is of the wrong kind; oauth2 takes secret.oauth_tokens, or BeginAuth"},
        ),
        ("bluesky", {}, None, {"secret": "is required; bluesky takes secret.app_password"}),
    ],
)
async def test_what_is_wrong_with_settings_and_secrets_is_told_in_plain_words(
    service: Service, provider: str, settings: Any, secret: Any, told: dict[str, str]
) -> None:
    request = messages.CreateConnectionRequest(
        request_id=new_id(), provider=provider, secret=secret
    )
    request.settings.update(settings)

    found = await refused(service.user().CreateConnection(request))

    violations = found.detail(error_details_pb2.BadRequest).field_violations
    assert {each.field for each in violations} == set(told)
    for each in violations:
        assert each.description.startswith(told[each.field])


async def test_to_another_tenant_a_connection_is_unknown(service: Service) -> None:
    made = await service.user().CreateConnection(service.bluesky())
    request = messages.GetConnectionRequest(connection_id=made.connection.connection_id)

    count = await prove_strangers(
        "connections",
        service.application,
        service.served,
        service.identities,
        {"connection_id": made.connection.connection_id},
    )

    assert count >= 9
    assert (await service.user().GetConnection(request)).connection == made.connection
