"""Connecting, leasing, posting, refreshing and revoking at a real Bluesky PDS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from cogni.connections.v1 import connection_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from cogni.egress_rules import EgressRules
from cogni.graph import Credential, post_to_bluesky
from cogni.graph.egress import egress_allowed_by
from cogni.graph.invocation import Invocation, serving
from services.connections.composition import Choices, compose
from services.connections.keyring import KeyRing
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from tests.databases import DatabaseFactory
from tests.peers.node_servers import free_port, node_server
from tests.plugins.calls import refused
from tests.plugins.identities import Identities
from tests.plugins.serving import Served, ServeService

PACKAGES = {"@atproto/pds": "0.4.217", "@did-plc/server": "0.0.1"}
SCOPES = ("connections:read", "connections:write", "connections:admin")


@dataclass
class Account:
    """Somebody's account at the PDS, with an app password for us."""

    url: str
    handle: str
    did: str
    access_jwt: str
    app_password: str

    def call(self, method: str, content: dict[str, Any], token: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {token or self.access_jwt}"}
        url = f"{self.url}/xrpc/{method}"
        return httpx.post(url, json=content, headers=headers, timeout=30)

    def posts(self) -> list[dict[str, Any]]:
        """Every post of the account, as the server lists them to anybody."""
        answer = httpx.get(
            f"{self.url}/xrpc/com.atproto.repo.listRecords",
            params={"repo": self.did, "collection": "app.bsky.feed.post", "limit": "100"},
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        return answer.json()["records"]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("pds")
    plc_port, port = free_port(), free_port()
    with node_server("pds", PACKAGES, "pds.mjs", str(folder), str(plc_port), str(port)):
        yield f"http://127.0.0.1:{port}"


_NUMBERS = iter(range(1000))


@pytest.fixture
def account(pds: str) -> Account:
    handle = f"ann{next(_NUMBERS)}.test"
    made = httpx.post(
        f"{pds}/xrpc/com.atproto.server.createAccount",
        json={"handle": handle, "email": f"{handle}@example.com", "password": "main-password"},
        timeout=30,
    )
    assert made.status_code == 200, made.text
    session = made.json()
    account = Account(pds, handle, session["did"], session["accessJwt"], "")
    password = account.call("com.atproto.server.createAppPassword", {"name": "cogni"})
    assert password.status_code == 200, password.text
    account.app_password = password.json()["password"]
    return account


@dataclass
class Office:
    """A Connections server that may call the PDS, and those who call it."""

    served: Served
    database: Database
    identities: Identities

    @property
    def ann(self) -> Any:
        token = self.identities.user_token("t1", "ann", SCOPES)
        return stubs.ConnectionsServiceStub(self.served.channel(token))

    async def connect(self, account: Account) -> connection_pb2.Connection:
        answer = await self.ann.CreateConnection(create_request(account))
        return answer.connection  # type: ignore[no-any-return]

    async def lease(self, made: connection_pb2.Connection) -> Any:
        claims = self.identities.run_claims("t1", connection_ids=(made.connection_id,))
        stub = stubs.ConnectionsServiceStub(self.served.channel(self.identities.run_token(claims)))
        request = messages.LeaseCredentialRequest(
            connection_id=made.connection_id, invocation_id=new_id(), tool="post_to_bluesky"
        )
        return (await stub.LeaseCredential(request)).credential.bluesky_session


def create_request(account: Account) -> messages.CreateConnectionRequest:
    request = messages.CreateConnectionRequest(request_id=new_id(), provider="bluesky")
    request.secret.app_password.identifier = account.handle
    request.secret.app_password.password = account.app_password
    request.settings["service_url"] = account.url
    return request


@pytest.fixture
async def office(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities, pds: str
) -> AsyncIterator[Office]:
    db = await database("connections")
    drain = Drain()
    choices = Choices(EgressRules.parse(pds.removeprefix("http://")))
    parts = compose(db, KeyRing("k1", {"k1": bytes(range(32))}), choices, drain)
    served = await serve_service("connections", parts.application, drain=drain)
    yield Office(served, db, identities)
    await parts.close()


async def test_a_leased_session_posts_as_the_account_and_a_repeat_posts_once(
    office: Office, account: Account
) -> None:
    made = await office.connect(account)
    assert made.account.id == account.did
    session = await office.lease(made)
    assert (session.did, session.handle) == (account.did, account.handle)
    # What the runner makes of a lease.
    fields = {field.name: value for field, value in session.ListFields()}
    leased = Credential("bluesky_session", fields)
    text = "from a lease: https://example.com"
    answers, written = [], []
    with egress_allowed_by(EgressRules.parse(account.url.removeprefix("http://"))):
        for invocation_id in ("inv-1", "inv-1", "inv-2"):
            with serving(Invocation(invocation_id, leased)):
                answers.append(await post_to_bluesky.ainvoke({"text": text}))
            written.append(account.posts())
        with serving(Invocation("inv-1", leased)):
            answers.append(await asyncio.to_thread(post_to_bluesky.invoke, {"text": text}))
        over = Credential("bluesky_session", {**fields, "access_jwt": "x.y.z"})
        with serving(Invocation("inv-3", over)):
            refusal = await post_to_bluesky.ainvoke({"text": text})

    first, again, other, blocking = answers
    assert first == again == blocking != other
    posted = account.posts()
    assert {each["uri"] for each in posted} == {first["uri"], other["uri"]}
    assert len(posted) == 2
    # A repetition has another time of creation; the record is as it was written first.
    assert written[0] == written[1]
    assert written[0][0] in posted
    assert all(each["value"]["text"] == text and each["value"]["facets"] for each in posted)
    assert refusal.startswith("Bluesky refused the post: ")


async def test_a_leased_session_cannot_do_what_an_app_password_cannot(
    office: Office, account: Account
) -> None:
    session = await office.lease(await office.connect(account))
    refusal = account.call(
        "com.atproto.server.createAppPassword", {"name": "escalate"}, session.access_jwt
    )
    assert refusal.status_code in (400, 401, 403)


async def test_a_session_is_tried_out_and_refreshed_at_the_server(
    office: Office, account: Account
) -> None:
    made = await office.connect(account)
    test = messages.TestConnectionRequest(connection_id=made.connection_id)
    refresh = messages.RefreshConnectionRequest(connection_id=made.connection_id, force=True)
    for _ in range(3):
        tested = await office.ann.TestConnection(test)
        assert tested.passed, tested
        assert (await office.ann.RefreshConnection(refresh)).refreshed
    log = messages.ListAccessRecordsRequest(connection_id=made.connection_id)
    records = (await office.ann.ListAccessRecords(log)).records
    generations = [each.details["generation"] for each in records if "generation" in each.details]
    # One session, renewed: had a refresh been refused, a new sign-in would still have passed.
    assert generations == ["4", "3", "2"]
    assert await office.lease(made)


async def test_a_revoked_app_password_is_noticed_and_named(
    office: Office, account: Account
) -> None:
    made = await office.connect(account)
    revoked = account.call("com.atproto.server.revokeAppPassword", {"name": "cogni"})
    assert revoked.status_code == 200, revoked.text
    request = messages.RefreshConnectionRequest(connection_id=made.connection_id, force=True)
    assert (await refused(office.ann.RefreshConnection(request))).reason == ("CREDENTIAL_REJECTED")
    get = messages.GetConnectionRequest(connection_id=made.connection_id)
    found = (await office.ann.GetConnection(get)).connection
    assert found.state == connection_pb2.CONNECTION_STATE_NEEDS_REAUTH
    assert found.state_reason == (connection_pb2.CONNECTION_STATE_REASON_CREDENTIAL_REJECTED)


async def test_the_servers_rate_limit_is_passed_on_with_its_delay(
    office: Office, account: Account
) -> None:
    for _ in range(40):
        try:
            await office.connect(account)
        except Exception:
            break
    refusal = await refused(office.ann.CreateConnection(create_request(account)))
    assert refusal.reason == "PROVIDER_RATE_LIMITED"
    [retry] = [each for each in refusal.details if hasattr(each, "retry_delay")]
    assert retry.retry_delay.seconds > 0
