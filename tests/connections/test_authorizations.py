"""Connecting through a provider's page: PKCE, single-use state, and tokens that rotate."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from cogni.egress_rules import EgressRules
from services.connections.adapters.callback_pages import Pages
from services.connections.adapters.egress import Egress, EgressLimits
from services.connections.authorization import BeginWanted
from services.connections.callback import Callback
from services.connections.connection import Connection, State, StateReason
from services.connections.connection_requests import NewConnectionWanted
from services.connections.credential import BearerCredential
from services.connections.keyring import KeyRing
from services.connections.providers.catalogue import Catalogue
from services.connections.secret import AuthKind, Secret
from services.connections.use_cases.authorizations import Authorizations, Redirects
from services.connections.use_cases.connections import Connections
from services.connections.use_cases.leases import Leases
from services.connections.use_cases.narrowing import Narrowing
from services.connections.use_cases.sealed import Vault
from services.connections.use_cases.sessions import Sessions
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from tests.connections.conftest import create_wanted, lease_wanted, runner, user
from tests.connections.oauth_server import CLIENT_ID, CLIENT_SECRET, OAuthServer, serve
from tests.databases import Clock, DatabaseFactory

CALLBACK = "https://cogni.example.com/callback"
ISSUER = "https://auth.example.com"
CUT_OFF = timedelta(seconds=1.5)


@pytest.fixture
def oauth() -> OAuthServer:
    return OAuthServer()


@pytest.fixture
def address(oauth: OAuthServer) -> Iterator[str]:
    http = serve(oauth)
    thread = threading.Thread(
        target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield f"127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()
    thread.join()


@dataclass
class Office:
    """The use cases of a server that may call the test's OAuth server."""

    database: Database
    authorizations: Authorizations
    connections: Connections
    leases: Leases
    sessions: Sessions
    oauth: OAuthServer
    address: str

    def settings(self) -> dict[str, Any]:
        return {
            "authorization_endpoint": "https://auth.example.com/authorize?tenant=x",
            "token_endpoint": f"http://{self.address}/token",
            "base_url": "https://api.example.com",
            "client_id": CLIENT_ID,
            "issuer": ISSUER,
            "scopes": ["read"],
        }

    def wanted(self, **changes: Any) -> BeginWanted:
        new = NewConnectionWanted("oauth2", "", {}, self.settings(), CLIENT_SECRET, ())
        return replace(BeginWanted(new_id(), "", new, (), "", ""), **changes)

    async def send_there(self, caller: Caller, wanted: BeginWanted) -> tuple[str, str]:
        """Begin, and be the person at the provider's page: state and code."""
        begun = await self.authorizations.begin(caller, wanted)
        query = {k: v[0] for k, v in parse_qs(urlsplit(begun.url).query).items()}
        return query["state"], self.oauth.authorize(query)

    async def connect(self, caller: Caller | None = None) -> Connection:
        caller = caller or user()
        state, code = await self.send_there(caller, self.wanted())
        return await self.authorizations.complete(caller, state, ISSUER, code=code, error="")

    async def state_of(self, made: Connection) -> tuple[State, StateReason]:
        found = await self.connections.get(user(), made.connection_id)
        return found.state, found.state_reason

    async def lease(self, made: Connection) -> str:
        caller = runner(made.connection_id)
        wanted = lease_wanted(made.connection_id, invocation_id=new_id())
        credential = (await self.leases.lease(caller, wanted)).credential
        assert isinstance(credential, BearerCredential)
        return credential.access_token


@pytest.fixture
async def office(
    database: DatabaseFactory, key_ring: KeyRing, oauth: OAuthServer, address: str
) -> AsyncIterator[Office]:
    db = await database("connections")
    rules = EgressRules.parse(address)
    egress = Egress(rules)
    vault, catalogue = Vault(key_ring), Catalogue()
    sessions = Sessions(db, vault, catalogue, egress)
    redirects = Redirects(
        CALLBACK,
        frozenset({"https://ui.example.com/cb"}),
        frozenset({"https://ui.example.com/done"}),
    )
    yield Office(
        db,
        Authorizations(db, vault, catalogue, egress, rules, redirects),
        Connections(db, vault, catalogue, egress, rules),
        Leases(db, vault, catalogue, sessions, Narrowing(egress)),
        sessions,
        oauth,
        address,
    )
    await sessions.close()
    await egress.close()


async def reason_of(awaitable: Any) -> str:
    with pytest.raises(ServiceError) as caught:
        await awaitable
    return caught.value.reason


async def test_a_person_who_says_yes_makes_a_connection_that_leases(office: Office) -> None:
    made = await office.connect()
    assert (made.owner, made.state, made.scopes) == ("ann", State.ACTIVE, ("read", "write"))
    assert made.auth_kind is AuthKind.OAUTH2
    assert (await office.lease(made)).endswith(".0")


async def test_the_page_gets_pkce_state_and_scopes_and_no_secret(office: Office) -> None:
    begun = await office.authorizations.begin(user(), office.wanted(scopes=("read", "admin")))
    query = parse_qs(urlsplit(begun.url).query)
    assert query["tenant"] == ["x"]
    assert query["scope"] == ["read admin"]
    assert query["redirect_uri"] == [CALLBACK]
    assert len(query["state"][0]) >= 43
    assert len(query["code_challenge"][0]) == 43
    assert CLIENT_SECRET not in begun.url


async def test_a_retried_begin_answers_with_the_same_page(office: Office) -> None:
    wanted = office.wanted()
    first = await office.authorizations.begin(user(), wanted)
    again = await office.authorizations.begin(user(), wanted)
    assert (again.url, again.authorization_id) == (first.url, first.authorization_id)
    other = replace(wanted, scopes=("admin",))
    assert await reason_of(office.authorizations.begin(user(), other)) == "REQUEST_ID_REUSED"


async def test_a_state_works_once(office: Office) -> None:
    state, code = await office.send_there(user(), office.wanted())
    await office.authorizations.complete(user(), state, ISSUER, code=code, error="")
    again = office.authorizations.complete(user(), state, ISSUER, code=code, error="")
    assert await reason_of(again) == "AUTHORIZATION_INVALID"


@pytest.mark.parametrize("stranger", [user("eve"), user(tenant_id="t2")])
async def test_a_state_is_of_no_use_to_anybody_else(office: Office, stranger: Caller) -> None:
    state, code = await office.send_there(user(), office.wanted())
    stolen = office.authorizations.complete(stranger, state, ISSUER, code=code, error="")
    assert await reason_of(stolen) == "AUTHORIZATION_INVALID"
    assert await office.authorizations.complete(user(), state, ISSUER, code=code, error="")


async def test_an_expired_state_is_refused(office: Office, clock: Clock) -> None:
    state, code = await office.send_there(user(), office.wanted())
    await clock.advance(office.database, timedelta(minutes=16))
    late = office.authorizations.complete(user(), state, ISSUER, code=code, error="")
    assert await reason_of(late) == "AUTHORIZATION_INVALID"


@pytest.mark.parametrize("issuer", ["https://evil.example.com", ""])
async def test_an_answer_of_another_issuer_or_of_nobodys_is_refused(
    office: Office, issuer: str
) -> None:
    state, code = await office.send_there(user(), office.wanted())
    mixed_up = office.authorizations.complete(user(), state, issuer, code=code, error="")
    assert await reason_of(mixed_up) == "AUTHORIZATION_INVALID"
    assert office.oauth.token_requests == [], "the code was not sent anywhere"


async def test_a_person_who_says_no_is_told_apart(office: Office) -> None:
    state, _ = await office.send_there(user(), office.wanted())
    denied = office.authorizations.complete(user(), state, ISSUER, code="", error="access_denied")
    assert await reason_of(denied) == "AUTHORIZATION_DENIED"


async def test_a_forged_code_is_rejected(office: Office) -> None:
    state, _ = await office.send_there(user(), office.wanted())
    forged = office.authorizations.complete(user(), state, ISSUER, code="forged", error="")
    assert await reason_of(forged) == "CREDENTIAL_REJECTED"


@pytest.mark.parametrize("uri", ["https://evil.example.com/cb", CALLBACK + "/more"])
async def test_people_are_sent_back_only_where_the_operator_said(office: Office, uri: str) -> None:
    wanted = office.wanted(redirect_uri=uri)
    assert await reason_of(office.authorizations.begin(user(), wanted)) == "INVALID_REQUEST"
    wanted = office.wanted(return_uri=uri)
    assert await reason_of(office.authorizations.begin(user(), wanted)) == "INVALID_REQUEST"


async def test_a_token_at_its_end_is_refreshed_and_the_new_one_kept(
    office: Office, clock: Clock
) -> None:
    made = await office.connect()
    for rotation in range(1, 4):
        await clock.advance(office.database, timedelta(hours=2))
        assert (await office.lease(made)).endswith(f".{rotation}")
    [family] = office.oauth.report().values()
    assert (family["alive"], family["rotations"]) == (True, 3)


async def test_tokens_obtained_elsewhere_are_imported_and_kept_alive(office: Office) -> None:
    secret = Secret(
        AuthKind.OAUTH2,
        {
            "access_token": "",
            "refresh_token": office.oauth.new_family(),
            "expire_time": "",
            "client_secret": CLIENT_SECRET,
        },
    )
    wanted = create_wanted(provider="oauth2", settings=office.settings(), secret=secret)
    made = await office.connections.create(user(), wanted)
    assert (await office.connections.create(user(), wanted)).connection_id == made.connection_id
    assert (await office.lease(made)).endswith(".1")


async def test_a_grant_that_the_provider_withdrew_needs_a_person_and_one_can_help(
    office: Office, clock: Clock
) -> None:
    made = await office.connect()
    for family in office.oauth.families.values():
        family.alive = False
    await clock.advance(office.database, timedelta(hours=2))
    assert await reason_of(office.lease(made)) == "CREDENTIAL_REJECTED"
    assert await office.state_of(made) == (State.NEEDS_REAUTH, StateReason.CREDENTIAL_REJECTED)
    assert await reason_of(office.lease(made)) == "CONNECTION_NEEDS_REAUTH"

    wanted = BeginWanted(new_id(), made.connection_id, None, (), "", "")
    state, code = await office.send_there(user(), wanted)
    await office.authorizations.complete(user(), state, ISSUER, code=code, error="")

    assert await office.state_of(made) == (State.ACTIVE, StateReason.NONE)
    assert await office.lease(made)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, "text/html", b"<html>welcome</html>"), "PROVIDER_ANSWER_INVALID"),
        ((200, "application/json", b""), "PROVIDER_ANSWER_INVALID"),
        ((200, "application/json", b"[]"), "PROVIDER_ANSWER_INVALID"),
        ((200, "application/json", b'{"access_token": 5}'), "PROVIDER_ANSWER_INVALID"),
        ((200, "application/json", b"x" * 2_000_000), "PROVIDER_ANSWER_INVALID"),
        ((200, "application/json", b"[" * 100_000), "PROVIDER_ANSWER_INVALID"),
        ((302, "text/html", b""), "PROVIDER_ANSWER_INVALID"),
        ((400, "application/json", b'{"error": "invalid_client"}'), "PROVIDER_ANSWER_INVALID"),
        ((503, "text/html", b"busy"), "PROVIDER_UNAVAILABLE"),
        ((429, "text/html", b"slow"), "PROVIDER_RATE_LIMITED"),
        ((200, "application/json", b'{"error": "bad_refresh_token"}'), "CREDENTIAL_REJECTED"),
    ],
)
async def test_only_a_clear_refusal_ends_a_connection(
    office: Office, clock: Clock, answer: tuple[int, str, bytes], reason: str
) -> None:
    made = await office.connect()
    await clock.advance(office.database, timedelta(hours=2))
    office.oauth.answer_instead = answer
    assert await reason_of(office.lease(made)) == reason
    state, _ = await office.state_of(made)
    assert (state is State.NEEDS_REAUTH) == (reason == "CREDENTIAL_REJECTED")


async def test_a_rotated_token_is_kept_although_its_answer_is_of_no_use(
    office: Office, clock: Clock
) -> None:
    made = await office.connect()
    await clock.advance(office.database, timedelta(hours=2))
    office.oauth.token_type = "mac"
    assert await reason_of(office.lease(made)) == "PROVIDER_ANSWER_INVALID"
    assert await reason_of(office.lease(made)) == "PROVIDER_ANSWER_INVALID", "not asked again"
    assert await office.state_of(made) == (State.ACTIVE, StateReason.NONE)
    office.oauth.token_type = "Bearer"
    await clock.advance(office.database, timedelta(minutes=6))
    assert (await office.lease(made)).endswith(".2")


async def test_a_slow_provider_is_cut_off_and_the_try_remembered(
    office: Office, clock: Clock, key_ring: KeyRing
) -> None:
    made = await office.connect()
    egress = Egress(EgressRules.parse(office.address), limits=EgressLimits(total=CUT_OFF))
    impatient = Sessions(office.database, Vault(key_ring), Catalogue(), egress)
    office.oauth.delay_seconds = CUT_OFF.total_seconds() * 3
    assert await reason_of(impatient.renew("t1", made.connection_id, 1)) == "PROVIDER_UNAVAILABLE"
    await egress.close()
    assert await office.state_of(made) == (State.ACTIVE, StateReason.NONE)

    office.oauth.delay_seconds = 0
    await clock.advance(office.database, timedelta(hours=2))
    assert await reason_of(office.lease(made)) == "CREDENTIAL_REJECTED"

    assert await office.state_of(made) == (State.NEEDS_REAUTH, StateReason.LOST_ROTATION)


@pytest.fixture
async def pages(office: Office) -> AsyncIterator[str]:
    """The callback process's address."""
    served = Pages(Callback(office.authorizations))
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_the_callback_completes_and_sends_the_person_on(office: Office, pages: str) -> None:
    wanted = office.wanted(return_uri="https://ui.example.com/done")
    state, code = await office.send_there(user(), wanted)
    sent_back = {"state": state, "code": code, "iss": ISSUER}
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(f"{pages}/callback", params=sent_back)
        again = await browser.get(f"{pages}/callback", params=sent_back)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("https://ui.example.com/done?connection_id=")
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert again.headers["location"].endswith("?error=AUTHORIZATION_INVALID")
    connection_id = answer.headers["location"].rpartition("=")[2]
    assert (await office.connections.get(user(), connection_id)).owner == "ann"


async def test_the_callback_shows_a_plain_page_and_escapes_what_it_shows(
    office: Office, pages: str
) -> None:
    new = NewConnectionWanted(
        "oauth2", "<script>alert(1)</script>", {}, office.settings(), CLIENT_SECRET, ()
    )
    state, code = await office.send_there(user(), office.wanted(new=new))
    sent_back = {"state": state, "code": code, "iss": ISSUER}
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(f"{pages}/callback", params=sent_back)
    assert answer.status_code == 200
    assert "is connected" in answer.text
    assert "<script>" not in answer.text


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/callback", 400),
        ("/callback?state=x", 400),
        ("/callback?state=unknown&code=c", 400),
        ("/callback?state=x&code=c&error=e", 400),
        ("/callback?state=x&state=y&code=c", 400),
        ("/callback?" + "&".join(f"a{n}=1" for n in range(50)), 400),
        ("/callback?state=x&code=" + "c" * 9000, 400),
    ],
)
async def test_the_callback_refuses_what_makes_no_sense(
    office: Office, pages: str, path: str, status: int
) -> None:
    async with httpx.AsyncClient() as browser:
        assert (await browser.get(pages + path)).status_code == status
        assert (await browser.post(pages + path)).status_code in (404, 405)


@pytest.mark.parametrize("noise", [b"", b"\0\1\2\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"a" * 40_000])
async def test_what_is_no_http_is_dropped(office: Office, pages: str, noise: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(pages.rpartition(":")[2]))
    writer.write(noise)
    writer.write_eof()
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
