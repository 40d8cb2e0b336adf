"""Whatever bytes arrive from outside, only the documented refusals come out of the parsers.

Each is a short search here; with LONG=1 (make chaos ONLY=connections LONG=1) it is a long one.
"""

from __future__ import annotations

import json
import ssl
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from cogni.egress_rules import EgressRules, origin_of
from services.connections.adapters.egress import Egress
from services.connections.authorization import state_hash
from services.connections.callback import PATH, Callback
from services.connections.connection import Connection
from services.connections.convert import installation_message, lease_message
from services.connections.installation import ListedInstallation
from services.connections.keyring import KeyRingError, parse_key_ring
from services.connections.lease import Lease
from services.connections.providers.bluesky import BLUESKY
from services.connections.providers.failures import FailureKind, ProviderError
from services.connections.providers.github_app import github_app
from services.connections.providers.github_installations import AppKey
from services.connections.providers.github_oauth import github_oauth
from services.connections.providers.http import Answer, Request, get, retry_after
from services.connections.providers.oauth import OAuthClient
from services.connections.providers.oauth2 import OAUTH2
from services.connections.providers.provider import (
    AuthorizationGrant,
    LeaseWish,
    Material,
    Provider,
)
from services.connections.providers.twitter import twitter
from services.connections.secret import AuthKind, Secret, Session
from services.connections.settings import (
    ConnectionsSettings,
    github_keys,
    key_ring,
    oauth_clients,
    webhooks,
)
from services.connections.store.changes import STREAM
from services.connections.vault import PLAINTEXT_BYTES_MAX
from services.runtime.caller import Caller
from services.runtime.cursor import decode_cursor
from services.runtime.errors import ServiceError
from services.runtime.paging import decode_page_token
from services.runtime.settings import SettingsError
from tests.connections.test_providers import NOW, PEM, Scripted, settings_of
from tests.outside_bytes import (
    CANARY,
    LARGE,
    LONG,
    bodies,
    headers,
    spelled,
    statuses,
    texts,
    times,
    values,
    written_out,
)

TLS = ssl.create_default_context()

_CLIENT = OAuthClient("id", "s")
_OAUTH2_SETTINGS = {
    "authorization_endpoint": "https://a.example.com",
    "token_endpoint": "https://a.example.com/t",
    "base_url": "https://api.example.com",
    "client_id": "c",
}
PROVIDERS: list[tuple[Provider, dict[str, Any]]] = [
    (BLUESKY, {}),
    (
        github_app({"main": AppKey(PEM)}),
        {"app_id": "1", "installation_id": "2", "private_key": "main"},
    ),
    (github_oauth(_CLIENT), {}),
    (twitter(_CLIENT), {}),
    (OAUTH2, _OAUTH2_SETTINGS),
]
SECRET = Secret(
    AuthKind.APP_PASSWORD,
    {"identifier": "ann", "password": CANARY, "access_token": CANARY, "refresh_token": CANARY},
)
SESSION = Session(
    dict.fromkeys(("access_token", "refresh_token", "access_jwt", "refresh_jwt"), CANARY),
    NOW + timedelta(hours=1),
)
WISH = LeaseWish(("issues:write",), ("octo/hello",))


def check_refusal(failure: ProviderError) -> None:
    """It can be told to a caller, and quotes nothing: an answer may hold what was sent."""
    assert CANARY not in str(failure.to_service_error())


def usable(provider: Provider, material: Material, session: Session) -> None:
    """What came out can be sealed, read back, stored in text columns, and leased."""
    assert len(session.to_bytes()) <= PLAINTEXT_BYTES_MAX
    assert Session.from_bytes(session.to_bytes()) == session
    if session.expire_time is not None:
        assert session.expire_time >= NOW
    for stored in (session.account_id, session.account_name, *session.scopes):
        assert "\0" not in stored
        stored.encode()
    lent = provider.lend(Material(material.settings, material.secret, session), LeaseWish())
    lease_message(Lease("lease", lent, NOW, session.scopes, provider.id)).SerializeToString()
    # What h11 and HTTP/2 take as a header's value.
    assert all(" " <= character <= "~" for value in session.values.values() for character in value)


# What once went wrong is tried each time.
@given(st.sampled_from(PROVIDERS), statuses, headers, bodies)
@example(PROVIDERS[-1], 400, {}, spelled(error=CANARY))
@example(PROVIDERS[-1], 200, {}, spelled(access_token="a", token_type=CANARY))
@example(PROVIDERS[-1], 200, {"content-type": f"text/{CANARY}"}, b"html")
@example(PROVIDERS[-1], 200, {}, spelled(access_token="t\u00f6ken"))
@example(PROVIDERS[-1], 200, {}, spelled(access_token="a", refresh_token="\ud800"))
@example(PROVIDERS[-1], 200, {}, spelled(access_token="a", scope="a\0b"))
@example(PROVIDERS[-1], 200, {}, b"quotes")
@example(PROVIDERS[0], 200, {}, spelled(accessJwt="a", refreshJwt="r\n", did="did:x"))
@example(
    PROVIDERS[0], 200, {}, spelled(accessJwt="a", refreshJwt="r", did="did:x", handle="\ud800")
)
@example(
    PROVIDERS[1],
    201,
    {},
    spelled(token="t", expires_at="2026-03-01T13:00:00Z", permissions={"a\0": "read", "b": 1}),
)
@example(PROVIDERS[1], 201, {}, spelled(token="t", expires_at="0001-01-01T00:00:00+23:59"))
@example(PROVIDERS[2], 200, {}, spelled(token="t\u00f6ken"))
@example(PROVIDERS[2], 502, {}, b"html")
@LONG
async def test_no_answer_of_a_provider_is_misread(
    chosen: tuple[Provider, dict[str, Any]], status: int, given_headers: dict[str, str], body: bytes
) -> None:
    provider, values = chosen
    material = Material(settings_of(provider, **values), SECRET, SESSION)
    http = Scripted(Answer(status, given_headers, written_out(body)))
    assert provider.sessions is not None
    asks = [provider.sessions.begin, provider.sessions.renew]
    if provider.oauth is not None:
        grant, flow = AuthorizationGrant("https://cb", "code", "verifier"), provider.oauth
        asks.append(lambda material, http, now: flow.exchange(material, grant, http, now))
    if (narrow := provider.narrow) is not None:
        asks.append(lambda material, http, now: narrow(material, WISH, http, now))
    for ask in asks:
        try:
            session = await ask(material, http, NOW)
        except ProviderError as failure:
            check_refusal(failure)
        else:
            usable(provider, material, session)
    if provider.probe is not None:
        try:
            assert (await provider.probe(material, http, NOW)).isprintable()
        except ProviderError as failure:
            check_refusal(failure)


listed = st.lists(
    st.one_of(
        st.fixed_dictionaries(
            {"id": st.one_of(st.integers(), values)},
            optional={
                "account": st.one_of(
                    st.fixed_dictionaries({}, optional={"id": values, "login": values}), values
                ),
                "html_url": st.one_of(texts, values),
                "permissions": values,
                "suspended_at": times,
            },
        ),
        values,
    ),
    max_size=3,
).map(lambda content: json.dumps(content).encode())


@given(statuses, headers, st.one_of(listed, bodies))
@example(200, {}, b"[null]")
@example(200, {}, b'[{"id": true}]')
@example(200, {}, spelled(id=1))
@example(200, {}, b'[{"id": 1, "suspended_at": "0001-01-01T00:00:00+23:59"}]')
@example(200, {}, b'[{"id": 1, "suspended_at": 7, "account": "a"}]')
@example(502, {}, b"html")
@LONG
async def test_no_list_of_installations_is_misread(
    status: int, given_headers: dict[str, str], body: bytes
) -> None:
    provider, values = PROVIDERS[1]
    http = Scripted(Answer(status, given_headers, written_out(body)))
    assert provider.installations is not None
    try:
        found, _ = await provider.installations.page(
            settings_of(provider, **values), 1, 2, http, NOW
        )
    except ProviderError as failure:
        check_refusal(failure)
    else:
        assert len(found) <= 2
        for each in found:
            installation_message(ListedInstallation(each, ())).SerializeToString()


@given(headers)
@example({"retry-after": "Mon, 01 Jan 2020 00:00:00 +99999999999999999999"})
@example({"retry-after": "Mon, 01 Jan 0001 00:00:00 +2359"})
@LONG
def test_no_header_makes_the_wait_reader_fail_or_wait_backwards(given: dict[str, str]) -> None:
    wait = retry_after(Answer(429, given, b""), now=NOW)
    assert wait is None or wait >= timedelta(0)
    ProviderError(FailureKind.RATE_LIMITED, "x", retry_after=wait).to_service_error()


hosts = st.one_of(
    st.text(max_size=12),
    st.text("abz019.-_[]:%@*\u3002\u24db\u00fc\u0130", max_size=24),
    st.sampled_from(
        [
            "a..b",
            "a" * 70 + ".com",
            "\u00fcn\u00ef.example",
            "127\u30020\u30020\u30021",
            "\u24dbocalhost",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "127.1",
            "[fe80::1%25lo]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b:1::7f00:1]",
            "[v1.x]",
            "%6cocalhost",
            "u:p@example.com",
            "example.com:0",
            "example.com:65536",
            ".",
        ]
    ),
)
urls = st.one_of(
    st.text(max_size=40),
    st.builds(
        "{}{}/{}".format, st.sampled_from(["https://", "http://", "HTTPS:", "//", ""]), hosts, texts
    ),
)


async def _inside(host: str, port: int) -> list[str]:
    host.encode("idna")
    return ["10.0.0.7"]


@given(urls)
@example("https://a..b/")
@example("https://127\u30020\u30020\u30021/")
@LONG
async def test_no_url_leads_inside_or_makes_the_way_out_fail(url: str) -> None:
    with suppress(ValueError):
        origin_of(url)
    egress = Egress(EgressRules(), resolver=_inside, ssl_context=TLS)
    with pytest.raises(ProviderError) as refused:
        await egress.send(get(url, bearer=CANARY))
    await egress.close()
    assert refused.value.kind in (FailureKind.EGRESS_DENIED, FailureKind.UNAVAILABLE)
    assert not refused.value.maybe_done, "nothing was sent"


@given(texts)
@LONG
async def test_no_credential_makes_the_way_out_fail(token: str) -> None:
    egress = Egress(EgressRules.parse("127.0.0.1:1"), ssl_context=TLS)
    request = Request("GET", "http://127.0.0.1:1/", {"authorization": f"Bearer {token}"})
    with suppress(ProviderError):
        await egress.send(request)
    await egress.close()


class Unknown:
    """Authorizations that know no state."""

    async def owner_of(self, state: str) -> None:
        state_hash(state)

    async def return_uri_of(self, tenant_id: str, state: str) -> str:
        raise AssertionError("nothing was found")

    async def complete(
        self, caller: Caller, state: str, issuer: str, *, code: str, error: str
    ) -> Connection:
        raise AssertionError("nothing was found")


@given(
    st.sampled_from(["GET", "POST", "BREW"]),
    st.one_of(
        st.text(max_size=40),
        st.sampled_from(["//[", "http://[::1/callback", "http://a]b/callback"]),
        st.lists(
            st.tuples(
                st.sampled_from(["state", "code", "error", "iss", "x"]), texts.map(ascii).map(quote)
            ),
            max_size=25,
        ).map(lambda pairs: PATH + "?" + "&".join(f"{name}={value}" for name, value in pairs)),
        st.binary(max_size=20).map(lambda raw: f"{PATH}?state={quote(raw)}&code={quote(raw)}"),
    ),
)
@LONG
async def test_no_address_makes_the_callback_fail(method: str, target: str) -> None:
    page = await Callback(Unknown()).answer(method, target)
    assert page.status in (400, 404, 405)
    assert not page.location


documents = st.one_of(
    st.text(max_size=60),
    values.map(json.dumps),
    st.dictionaries(st.sampled_from(["active", "keys", "twitter", "*", "t1"]), values).map(
        json.dumps
    ),
    st.dictionaries(
        st.sampled_from(["t1", "twitter", "github_oauth", "my-app"]),
        st.dictionaries(
            st.sampled_from(["url", "secrets", "client_id", "client_secret"]),
            st.one_of(urls, st.lists(st.one_of(texts, st.just("whsec_" + "YWJj" * 10))), values),
        ),
    ).map(json.dumps),
    st.sampled_from(list(LARGE)),
)


@given(documents)
@LONG
def test_no_document_of_the_operator_fails_otherwise_than_with_what_to_change(text: str) -> None:
    text = LARGE.get(text, text)
    with suppress(KeyRingError):
        parse_key_ring(text, source="The ring")
    secret = SecretStr(text)
    written = ConnectionsSettings.model_construct(
        keyring=secret,
        oauth_clients=secret,
        github_keys=secret,
        webhooks=secret,
        egress_allow="",
        aws_kms_key="",
    )
    for read in (key_ring, oauth_clients, github_keys, webhooks):
        with suppress(SettingsError):
            read(written)


@given(st.one_of(texts, st.text("abcdefghijklmnopqrstuvwxyzABCDEF0123456789-_=", max_size=200)))
@LONG
def test_no_page_token_or_cursor_fails_otherwise(text: str) -> None:
    with suppress(ServiceError):
        decode_page_token(text, bound_to=["ListConnections", "t1"])
    with suppress(ServiceError):
        decode_cursor(text, stream=STREAM, tenant_id="t1")
