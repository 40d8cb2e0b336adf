"""The providers: what each takes, asks for, understands and lends."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from services.connections.credential import BearerCredential, McpServerCredential
from services.connections.providers.api_key import API_KEY
from services.connections.providers.bluesky import BLUESKY
from services.connections.providers.catalogue import Catalogue, built_in
from services.connections.providers.failures import Cause, FailureKind, ProviderError
from services.connections.providers.github_app import github_app, missing_permissions
from services.connections.providers.github_installations import AppKey
from services.connections.providers.github_oauth import github_oauth
from services.connections.providers.http import Answer, Http, Request, retry_after
from services.connections.providers.mcp import MCP
from services.connections.providers.oauth import OAuthClient
from services.connections.providers.provider import (
    AuthorizationAsk,
    LeaseWish,
    Material,
    Provider,
    ProviderSettings,
)
from services.connections.providers.twitter import twitter
from services.connections.renewal import renew_time
from services.connections.secret import AuthKind, Secret, Session
from tests.github_server import (
    CLIENT_ID,
    CLIENT_SECRET,
    PEM,
    GitHub,
    Refusal,
    rate_limited,
    too_fast,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Scripted:
    """A network that answers as told and remembers what it was asked."""

    def __init__(self, answer: Answer | Callable[[Request], Answer]) -> None:
        self._answer = answer
        self.requests: list[Request] = []

    async def send(self, request: Request) -> Answer:
        self.requests.append(request)
        return self._answer if isinstance(self._answer, Answer) else self._answer(request)


def answer(status: int, content: Any, **headers: str) -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return Answer(status, headers, body)


def settings_of(provider: Provider, **values: Any) -> ProviderSettings:
    parsed = provider.parse_settings(values)
    assert isinstance(parsed, ProviderSettings), parsed
    return parsed


async def begin(provider: Provider, material: Material, http: Http) -> Session:
    assert provider.sessions is not None
    return await provider.sessions.begin(material, http, NOW)


GITHUB = github_app({"main": AppKey(PEM)})
GITHUB_MATERIAL = Material(
    settings_of(GITHUB, app_id="123", installation_id="456", private_key="main"), None
)
BLUESKY_MATERIAL = Material(
    settings_of(BLUESKY),
    Secret(AuthKind.APP_PASSWORD, {"identifier": "ann.test", "password": "p"}),
)


class Directly:
    """A network of one stand-in, without a network."""

    def __init__(self, github: GitHub) -> None:
        self.github = github

    async def send(self, request: Request) -> Answer:
        headers = {"user-agent": "test", **request.headers}
        path = request.url.removeprefix("https://api.github.com")
        reply = self.github.answer(request.method, path, headers, request.body)
        return answer(reply.status, reply.content, **reply.headers)


@pytest.fixture
def github() -> GitHub:
    """Installed at octo, on one of its repositories."""
    github = GitHub(lambda: NOW)
    github.install(456, "octo", "octo/hello", issues="write", pull_requests="write")
    return github


async def test_a_github_app_proves_itself_by_a_short_rs256_token(github: GitHub) -> None:
    session = await begin(GITHUB, GITHUB_MATERIAL, Directly(github))
    assert session.expire_time == NOW + timedelta(hours=1)
    assert session.scopes == ("issues:write", "metadata:read", "pull_requests:write")
    assert (session.account_id, session.account_name) == ("456", "octo")
    assert GITHUB.secret_violations(None) == []


async def test_a_clock_that_is_wrong_and_a_key_that_is_not_the_apps_are_refused(
    github: GitHub,
) -> None:
    github.clock = lambda: NOW - timedelta(minutes=5)
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for provider in (GITHUB, github_app({"main": AppKey(pem)})):
        with pytest.raises(ProviderError, match="refuses the app's key"):
            await begin(provider, GITHUB_MATERIAL, Directly(github))
        github.clock = lambda: NOW


async def test_a_github_lease_is_cut_down_to_what_the_tool_needs(github: GitHub) -> None:
    assert GITHUB.narrow is not None
    wish = LeaseWish(("issues:write",), ("octo/hello",))
    session = await GITHUB.narrow(GITHUB_MATERIAL, wish, Directly(github), NOW)
    lent = GITHUB.lend(Material(GITHUB_MATERIAL.settings, None, session), wish)
    assert isinstance(lent, BearerCredential)
    assert lent.base_url == "https://api.github.com"
    token = github.tokens[lent.access_token]
    assert (token.permissions, token.repositories) == ({"issues": "write"}, ["octo/hello"])


@pytest.mark.parametrize("repository", ["evil/hello", "octo/other"])
async def test_a_repository_of_that_name_and_another_owner_is_not_the_one_that_was_meant(
    github: GitHub, repository: str
) -> None:
    assert GITHUB.narrow is not None
    wish = LeaseWish((), (repository,))
    with pytest.raises(ProviderError) as caught:
        await GITHUB.narrow(GITHUB_MATERIAL, wish, Directly(github), NOW)
    assert caught.value.kind is FailureKind.REJECTED


async def test_a_suspended_installation_is_told_from_one_that_was_removed(github: GitHub) -> None:
    github.installations[456].suspended = True
    with pytest.raises(ProviderError) as suspended:
        await begin(GITHUB, GITHUB_MATERIAL, Directly(github))
    del github.installations[456]
    with pytest.raises(ProviderError) as removed:
        await begin(GITHUB, GITHUB_MATERIAL, Directly(github))
    assert suspended.value.cause is Cause.ACCOUNT_SUSPENDED
    assert removed.value.cause is Cause.WITHDRAWN_AT_PROVIDER


@pytest.mark.parametrize(
    "refusal", [rate_limited(lambda: NOW, 90), too_fast(90)], ids=["hourly", "secondary"]
)
async def test_githubs_limits_say_when_to_come_again(github: GitHub, refusal: Refusal) -> None:
    github.refusals = [refusal]
    with pytest.raises(ProviderError) as caught:
        await begin(GITHUB, GITHUB_MATERIAL, Directly(github))
    assert caught.value.kind is FailureKind.RATE_LIMITED
    assert caught.value.retry_after == timedelta(seconds=90)


async def test_a_persons_github_token_is_cut_down_too(github: GitHub) -> None:
    token = github.person("ann", "octo/hello", "octo/other", issues="write", contents="write")
    provider = github_oauth(OAuthClient(CLIENT_ID, CLIENT_SECRET))
    assert provider.narrow is not None
    before = Session({"access_token": token, "refresh_token": "r"}, NOW + timedelta(hours=8))
    material = Material(settings_of(provider), None, before)
    wish = LeaseWish(("issues:read",), ("octo/hello",))
    assert provider.missing_scopes is None, "GitHub does not tell what the token may do"
    session = await provider.narrow(material, wish, Directly(github), NOW)
    cut = github.tokens[session.values["access_token"]]
    assert (cut.permissions, cut.repositories) == ({"issues": "read"}, ["octo/hello"])
    with pytest.raises(ProviderError, match="does not reach"):
        await provider.narrow(material, LeaseWish((), ("evil/x",)), Directly(github), NOW)


@pytest.mark.parametrize("wish", [LeaseWish(("repo",)), LeaseWish((), ("not a repo",))])
async def test_a_wish_that_github_would_not_understand_is_refused(
    github: GitHub, wish: LeaseWish
) -> None:
    assert GITHUB.narrow is not None
    with pytest.raises(ProviderError):
        await GITHUB.narrow(GITHUB_MATERIAL, wish, Directly(github), NOW)


def test_a_higher_permission_covers_a_lower_one() -> None:
    granted = ("issues:write", "metadata:read")
    assert missing_permissions(granted, ("issues:read", "metadata:read")) == []
    assert missing_permissions(granted, ("metadata:write", "actions:read", "x")) == [
        "actions:read",
        "metadata:write",
        "x",
    ]


async def test_a_wrong_github_key_is_the_operators_matter_and_no_verdict(github: GitHub) -> None:
    for keys in ({}, {"main": AppKey("-----BEGIN PRIVATE KEY-----\nnonsense")}):
        provider = github_app(keys)
        with pytest.raises(ProviderError) as caught:
            await begin(provider, GITHUB_MATERIAL, Directly(github))
        assert caught.value.kind is FailureKind.ANSWER_INVALID
        assert not caught.value.maybe_done


@pytest.mark.parametrize(
    ("given", "kind", "cause"),
    [
        (answer(404, {}), FailureKind.REJECTED, Cause.WITHDRAWN_AT_PROVIDER),
        (answer(401, {}), FailureKind.ANSWER_INVALID, Cause.CREDENTIAL_REJECTED),
        (
            answer(403, {}, **{"x-ratelimit-remaining": "0"}),
            FailureKind.RATE_LIMITED,
            Cause.CREDENTIAL_REJECTED,
        ),
        (answer(502, b"<html>"), FailureKind.UNAVAILABLE, Cause.CREDENTIAL_REJECTED),
        (answer(201, b"<html>"), FailureKind.ANSWER_INVALID, Cause.CREDENTIAL_REJECTED),
        (answer(201, {"token": "x"}), FailureKind.ANSWER_INVALID, Cause.CREDENTIAL_REJECTED),
        (
            answer(201, {"token": "x", "expires_at": "soon"}),
            FailureKind.ANSWER_INVALID,
            Cause.CREDENTIAL_REJECTED,
        ),
    ],
)
async def test_githubs_answers_are_told_apart(
    given: Answer, kind: FailureKind, cause: Cause
) -> None:
    with pytest.raises(ProviderError) as caught:
        await begin(GITHUB, GITHUB_MATERIAL, Scripted(given))
    assert (caught.value.kind, caught.value.cause) == (kind, cause)


BLUESKY_SESSION = {
    "accessJwt": "a.b.c",
    "refreshJwt": "r",
    "did": "did:plc:x",
    "handle": "ann.test",
}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (answer(401, {"error": "AuthenticationRequired"}), FailureKind.REJECTED),
        (answer(401, {"error": "AccountTakedown"}), FailureKind.REJECTED),
        (answer(400, {"error": "ExpiredToken"}), FailureKind.REJECTED),
        (answer(429, {"error": "RateLimitExceeded"}), FailureKind.RATE_LIMITED),
        (answer(500, b""), FailureKind.UNAVAILABLE),
        (answer(200, b"<!doctype html>"), FailureKind.ANSWER_INVALID),
        (answer(200, b""), FailureKind.ANSWER_INVALID),
        (answer(200, []), FailureKind.ANSWER_INVALID),
        (answer(200, {**BLUESKY_SESSION, "did": "nope"}), FailureKind.ANSWER_INVALID),
        (answer(200, {**BLUESKY_SESSION, "accessJwt": 5}), FailureKind.ANSWER_INVALID),
        (answer(200, {**BLUESKY_SESSION, "active": False}), FailureKind.REJECTED),
        (answer(302, b""), FailureKind.ANSWER_INVALID),
        (answer(404, {"error": "NotFound"}), FailureKind.ANSWER_INVALID),
    ],
)
async def test_blueskys_answers_are_told_apart(given: Answer, kind: FailureKind) -> None:
    with pytest.raises(ProviderError) as caught:
        await begin(BLUESKY, BLUESKY_MATERIAL, Scripted(given))
    assert caught.value.kind is kind


@given(st.text(max_size=60))
async def test_no_token_makes_the_expiry_reader_fail_or_believe_too_much(token: str) -> None:
    if not token:
        return
    given = answer(200, {**BLUESKY_SESSION, "accessJwt": token})
    try:
        session = await begin(BLUESKY, BLUESKY_MATERIAL, Scripted(given))
    except ProviderError:
        return
    assert session.expire_time is not None
    assert NOW <= session.expire_time <= NOW + timedelta(days=1)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "30"}, 30),
        ({"retry-after": "Sun, 01 Mar 2026 12:01:00 GMT"}, 60),
        ({"ratelimit-reset": str(int(NOW.timestamp()) + 300)}, 300),
        ({"ratelimit-reset": "120"}, 120),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_what_a_provider_asks_to_wait_is_understood(
    headers: dict[str, str], wait: int | None
) -> None:
    found = retry_after(Answer(429, headers, b""), now=NOW)
    assert found == (timedelta(seconds=wait) if wait is not None else None)


async def test_x_gets_its_client_by_basic_auth_and_its_page_asks_to_stay() -> None:
    provider = twitter(OAuthClient("id", "s3cret"))
    assert provider.oauth is not None
    assert provider.sessions is not None
    url = provider.oauth.authorization_url(
        settings_of(provider), AuthorizationAsk("https://cb", (), "st", "ch")
    )
    assert "offline.access" in parse_qs(url.partition("?")[2])["scope"][0]
    http = Scripted(answer(200, {"access_token": "a2", "expires_in": 7200, "token_type": "bearer"}))
    before = Session({"access_token": "a1", "refresh_token": "r1"}, NOW, ("tweet.read",))
    session = await provider.sessions.renew(
        Material(settings_of(provider), None, before), http, NOW
    )
    assert http.requests[0].headers["authorization"] == "Basic aWQ6czNjcmV0"
    assert session.values["refresh_token"] == "r1", "an omitted refresh token is kept"
    assert session.scopes == ("tweet.read",)


async def test_github_says_no_with_200_and_is_understood() -> None:
    provider = github_oauth(OAuthClient("id", "s"))
    assert provider.sessions is not None
    before = Session({"access_token": "a", "refresh_token": "r"}, NOW)
    http = Scripted(answer(200, {"error": "bad_refresh_token"}))
    with pytest.raises(ProviderError) as caught:
        await provider.sessions.renew(Material(settings_of(provider), None, before), http, NOW)
    assert caught.value.kind is FailureKind.REJECTED


def test_an_mcp_server_is_open_or_takes_a_key() -> None:
    settings = settings_of(MCP, server_url="https://mcp.example.com/mcp")
    assert MCP.lend(Material(settings, None), LeaseWish()) == McpServerCredential(
        "https://mcp.example.com/mcp", {}
    )
    key = Secret(AuthKind.API_KEY, {"key": "k"})
    assert MCP.lend(Material(settings, key), LeaseWish()) == McpServerCredential(
        "https://mcp.example.com/mcp", {"Authorization": "Bearer k"}, "k"
    )
    assert Catalogue().get("mcp:linear") is MCP


@pytest.mark.parametrize(
    ("secret", "field"),
    [
        (None, "secret"),
        (Secret(AuthKind.APP_PASSWORD, {"identifier": "a", "password": "b"}), "secret"),
        (Secret(AuthKind.API_KEY, {"key": ""}), "secret.api_key.key"),
        (Secret(AuthKind.API_KEY, {"key": "line\nbreak"}), "secret.api_key.key"),
        (Secret(AuthKind.API_KEY, {"key": " padded"}), "secret.api_key.key"),
        (Secret(AuthKind.API_KEY, {"key": "x" * 9000}), "secret.api_key.key"),
    ],
)
def test_a_secret_of_the_wrong_shape_is_named_and_never_shown(
    secret: Secret | None, field: str
) -> None:
    [violation] = API_KEY.secret_violations(secret)
    assert violation.field == field
    if secret is not None and secret.values.get("key"):
        assert secret.values["key"] not in violation.description
        assert secret.values["key"] not in repr(secret)


def test_every_provider_explains_itself() -> None:
    for provider in built_in():
        assert provider.description.endswith(".")
        assert provider.documentation_uri.startswith("https://")
        schema = provider.settings_schema
        assert all("description" in each for each in schema.get("properties", {}).values())


@given(st.integers(1, 100_000))
def test_no_session_is_renewed_in_the_first_four_fifths_of_its_life(seconds: int) -> None:
    session = Session({}, NOW + timedelta(seconds=seconds))
    when = renew_time(BLUESKY, session, NOW)
    assert when is not None
    assert NOW + timedelta(seconds=seconds * 0.79) <= when <= NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("provider", "settings"),
    [
        (MCP, {"server_url": "https://mcp.example.com", "header_prefix": "Token "}),
        (MCP, {"server_url": "https://mcp.example.com"}),
        (API_KEY, {"allowed_origins": ["https://api.example.com"], "header_prefix": "Token "}),
    ],
)
def test_a_prefix_keeps_its_space_when_it_is_stored_and_read(
    provider: Provider, settings: dict[str, Any]
) -> None:
    given = provider.settings.model_validate(settings)
    stored = provider.settings.model_validate(given.model_dump(mode="json"))

    assert stored.header_prefix == settings.get("header_prefix", "Bearer ")  # type: ignore[attr-defined]
