"""Connecting, leasing and rotating against oidc-provider, a certified OAuth server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest

from cogni.connections.v1 import connection_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from cogni.egress_rules import EgressRules
from services.connections.composition import Choices, compose
from services.connections.keyring import KeyRing
from services.connections.use_cases.authorizations import Redirects
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from tests.databases import Clock, DatabaseFactory
from tests.peers.node_servers import free_port, node_server
from tests.plugins.calls import refused
from tests.plugins.identities import Identities
from tests.plugins.serving import Served, ServeService

CLIENT_ID, CLIENT_SECRET = "cogni", "CANARY-peer-client-secret"
CALLBACK = "https://cogni.example.com/callback"
SCOPES = ("connections:read", "connections:write", "connections:admin")
NEEDS_REAUTH = connection_pb2.CONNECTION_STATE_NEEDS_REAUTH


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    port = free_port()
    arguments = (str(port), CLIENT_ID, CLIENT_SECRET, CALLBACK)
    with node_server("oidc-provider", {"oidc-provider": "9.13.3"}, "oidc.mjs", *arguments):
        yield f"http://127.0.0.1:{port}"


@dataclass
class Office:
    """A Connections server that may call the OAuth server, and those who call it."""

    served: Served
    database: Database
    identities: Identities
    issuer: str

    @property
    def ann(self) -> Any:
        token = self.identities.user_token("t1", "ann", SCOPES)
        return stubs.ConnectionsServiceStub(self.served.channel(token))

    def begin_request(self) -> messages.BeginAuthorizationRequest:
        request = messages.BeginAuthorizationRequest(
            request_id=new_id(), scopes=["openid", "offline_access"]
        )
        new = request.new_connection
        new.provider, new.client_secret = "oauth2", CLIENT_SECRET
        new.settings["authorization_endpoint"] = f"{self.issuer}/auth"
        new.settings["token_endpoint"] = f"{self.issuer}/token"
        new.settings["base_url"] = self.issuer
        new.settings["client_id"] = CLIENT_ID
        new.settings["issuer"] = self.issuer
        return request

    async def connect(self) -> connection_pb2.Connection:
        begun = await self.ann.BeginAuthorization(self.begin_request())
        sent_back = await asyncio.to_thread(consent, begun.authorization_url)
        answer = await self.ann.CompleteAuthorization(
            messages.CompleteAuthorizationRequest(
                state=sent_back["state"], issuer=sent_back["iss"], code=sent_back["code"]
            )
        )
        return answer.connection  # type: ignore[no-any-return]

    async def get(self, made: connection_pb2.Connection) -> connection_pb2.Connection:
        request = messages.GetConnectionRequest(connection_id=made.connection_id)
        return (await self.ann.GetConnection(request)).connection  # type: ignore[no-any-return]

    def run(self, made: connection_pb2.Connection) -> Any:
        claims = self.identities.run_claims("t1", connection_ids=(made.connection_id,))
        return stubs.ConnectionsServiceStub(self.served.channel(self.identities.run_token(claims)))

    async def lease(self, made: connection_pb2.Connection) -> str:
        answer = await self.run(made).LeaseCredential(lease_of(made))
        return str(answer.credential.bearer.access_token)

    async def is_honoured(self, access_token: str) -> bool:
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"{self.issuer}/token/introspection",
                data={"token": access_token},
                auth=(CLIENT_ID, CLIENT_SECRET),
            )
        return bool(answer.json()["active"])


def lease_of(made: connection_pb2.Connection) -> messages.LeaseCredentialRequest:
    return messages.LeaseCredentialRequest(
        connection_id=made.connection_id, invocation_id=new_id(), tool="test"
    )


def consent(url: str) -> dict[str, str]:
    """Be the person: sign in, say yes, and return what the provider sends to the callback."""
    with httpx.Client(follow_redirects=False) as browser:
        url = f"{url}&prompt=consent"
        for _ in range(20):
            if url.startswith(CALLBACK):
                return {name: v[0] for name, v in parse_qs(urlsplit(url).query).items()}
            page = browser.get(url)
            if page.status_code == 200 and "/interaction/" in url:
                prompt = "login" if 'name="login"' in page.text else "consent"
                form = {"prompt": prompt, "login": "ann", "password": "any"}
                page = browser.post(url, data=form)
            assert page.status_code in (302, 303), f"{url}: {page.status_code} {page.text[:500]}"
            url = urljoin(url, page.headers["location"])
    raise AssertionError("the provider never sent the person back")


@pytest.fixture
async def office(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities, issuer: str
) -> AsyncIterator[Office]:
    db = await database("connections")
    drain = Drain()
    rules = EgressRules.parse(issuer.removeprefix("http://"))
    choices = Choices(rules, redirects=Redirects(CALLBACK))
    parts = compose(db, KeyRing("k1", {"k1": bytes(range(32))}), choices, drain)
    served = await serve_service("connections", parts.application, drain=drain)
    yield Office(served, db, identities, issuer)
    await parts.close()


async def test_a_person_connects_and_a_tool_gets_a_token_that_the_server_honours(
    office: Office,
) -> None:
    made = await office.connect()
    assert made.state == connection_pb2.CONNECTION_STATE_ACTIVE
    assert "offline_access" in made.scopes
    assert await office.is_honoured(await office.lease(made))


async def test_rotation_goes_on_for_as_long_as_the_agent_works(
    office: Office, clock: Clock
) -> None:
    made = await office.connect()
    tokens = {await office.lease(made)}
    for _ in range(4):
        await clock.advance(office.database, timedelta(hours=1))
        tokens.add(await office.lease(made))
    assert len(tokens) == 5
    assert (await office.get(made)).state == connection_pb2.CONNECTION_STATE_ACTIVE


async def test_many_callers_of_one_expired_token_keep_the_grant(
    office: Office, clock: Clock
) -> None:
    made = await office.connect()
    for _ in range(3):
        await clock.advance(office.database, timedelta(hours=1))
        run = office.run(made)
        leases = await asyncio.gather(*(run.LeaseCredential(lease_of(made)) for _ in range(16)))
        tokens = {lease.credential.bearer.access_token for lease in leases}
        assert len(tokens) == 1
        assert await office.is_honoured(tokens.pop())


async def test_a_grant_revoked_at_the_server_is_noticed_and_a_person_can_renew_it(
    office: Office, clock: Clock
) -> None:
    made = await office.connect()
    stolen = await stored_refresh_token(office, made)
    async with httpx.AsyncClient(auth=(CLIENT_ID, CLIENT_SECRET)) as thief:
        form = {"grant_type": "refresh_token", "refresh_token": stolen}
        assert (await thief.post(f"{office.issuer}/token", data=form)).status_code == 200

    await clock.advance(office.database, timedelta(hours=1))
    refusal = await refused(office.run(made).LeaseCredential(lease_of(made)))

    assert refusal.reason == "CREDENTIAL_REJECTED"
    assert (await office.get(made)).state == NEEDS_REAUTH
    again = messages.BeginAuthorizationRequest(
        request_id=new_id(),
        connection_id=made.connection_id,
        scopes=["openid", "offline_access"],
    )
    begun = await office.ann.BeginAuthorization(again)
    sent_back = await asyncio.to_thread(consent, begun.authorization_url)
    await office.ann.CompleteAuthorization(
        messages.CompleteAuthorizationRequest(
            state=sent_back["state"], issuer=sent_back["iss"], code=sent_back["code"]
        )
    )
    assert await office.is_honoured(await office.lease(made))


async def stored_refresh_token(office: Office, made: connection_pb2.Connection) -> str:
    """What only a thief with the database and its keys could know."""
    from services.connections.providers.provider import ProviderSettings
    from services.connections.store import credentials
    from services.connections.use_cases.sealed import Vault

    async with office.database.tenant("t1") as tx:
        stored = await credentials.get(tx, "t1", made.connection_id)
    vault = Vault(KeyRing("k1", {"k1": bytes(range(32))}))
    material = await vault.material(ProviderSettings(), stored)
    assert material.session is not None
    return material.session.values["refresh_token"]


async def test_a_code_is_worth_nothing_without_our_proof(office: Office) -> None:
    begun = await office.ann.BeginAuthorization(office.begin_request())
    sent_back = await asyncio.to_thread(consent, begun.authorization_url)
    form = {
        "grant_type": "authorization_code",
        "code": sent_back["code"],
        "redirect_uri": CALLBACK,
        "code_verifier": "x" * 50,
    }
    async with httpx.AsyncClient(auth=(CLIENT_ID, CLIENT_SECRET)) as thief:
        stolen = await thief.post(f"{office.issuer}/token", data=form)
    assert stolen.json()["error"] == "invalid_grant"
