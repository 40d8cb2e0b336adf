"""`cogni connections authorize`, against a real server and an OAuth server."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from typer.testing import CliRunner, Result

from cogni.cli import authorizing
from cogni.egress_rules import EgressRules
from services.connections.composition import Choices, compose
from services.connections.keyring import KeyRing
from services.connections.use_cases.authorizations import Redirects
from services.runtime.drain import Drain
from tests.connections.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer, serve
from tests.databases import DatabaseFactory
from tests.plugins.identities import Identities
from tests.plugins.serving import ServeService

CALLBACK = "https://cogni.example.com/callback"


@pytest.fixture
def oauth() -> OAuthServer:
    return OAuthServer()


@pytest.fixture
def address(oauth: OAuthServer) -> Iterator[str]:
    http = serve(oauth)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()
    thread.join()


async def test_a_person_agrees_in_a_browser_and_the_connection_is_made(
    database: DatabaseFactory,
    serve_service: ServeService,
    identities: Identities,
    key_ring: KeyRing,
    oauth: OAuthServer,
    address: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drain = Drain()
    choices = Choices(EgressRules.parse(address), redirects=Redirects(callback=CALLBACK))
    parts = compose(await database("connections"), key_ring, choices, drain)
    served = await serve_service("connections", parts.application, drain=drain)
    scopes = ("connections:read", "connections:write")
    monkeypatch.setenv("COGNI_CONNECTIONS_ADDRESS", served.address)
    monkeypatch.setenv("COGNI_TOKEN", identities.user_token("t1", "ann", scopes))
    settings = json.dumps(
        {
            "authorization_endpoint": f"http://{address}/authorize",
            "token_endpoint": f"http://{address}/token",
            "base_url": f"http://{address}",
            "client_id": CLIENT_ID,
        }
    )

    def agree(url: str) -> str:
        query = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        answer = {"state": query["state"], "code": oauth.authorize(query)}
        return f"{query['redirect_uri']}?{urlencode(answer)}"

    async def cogni(*words: str) -> Result:
        words = ("authorize", *words, "--with-client-secret", "--settings", settings)
        return await asyncio.to_thread(
            CliRunner().invoke, authorizing.app, list(words), input=f"{CLIENT_SECRET}\n"
        )

    monkeypatch.setattr(authorizing, "browsed", agree)
    made = await cogni("oauth2", "--name", "ours", "--json")
    monkeypatch.setattr(authorizing, "browsed", lambda url: "https://cogni.example.com/elsewhere")
    wrong = await cogni("oauth2")
    both = await cogni()
    await parts.close()

    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["display_name"] == "ours"
    assert json.loads(made.stdout)["state"] == "CONNECTION_STATE_ACTIVE"
    assert wrong.exit_code == 2
    assert "no answer of a provider" in wrong.output
    assert both.exit_code == 2
