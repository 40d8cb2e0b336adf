"""Tokens prove what they should to whom they should, and nothing else is believed."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydantic import SecretStr

from services.runtime.caller import Caller, CallerKind
from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.settings import AuthSettings, SettingsError
from services.runtime.tokens import (
    FileKeys,
    SecretKey,
    ServiceTokens,
    TokenVerifier,
    UrlKeys,
    load_service_key,
)
from services.runtime.tokens.keys import CALLER_ALGORITHMS, SERVICE_ALGORITHMS
from tests.plugins.identities import SECRET, Identities, pem, write_jwks


class Clock:
    """A clock that moves when told."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def refusal(verifier: TokenVerifier, token: str) -> str:
    with pytest.raises(ServiceError) as refused:
        await verifier.verify(token)
    assert refused.value.kind is ErrorKind.UNAUTHENTICATED
    return refused.value.reason


def signed(key: Ed25519PrivateKey, kid: str, **changes: Any) -> str:
    """A service token for the Ledger; keyword arguments replace claims, None removes one."""
    now = int(time.time())
    claims = {
        "iss": kid,
        "sub": f"service:{kid}",
        "aud": "cogni:ledger",
        "tenant": "acme",
        "iat": now,
        "exp": now + 300,
        **changes,
    }
    given = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(given, key, algorithm="EdDSA", headers={"kid": kid})


async def test_a_caller_token_names_its_subject_tenant_and_scopes(identities: Identities) -> None:
    token = identities.user_token("acme", "alice", ["runs:read", "runs:write"])

    caller = await identities.verifier("executor").verify(token)

    assert caller == Caller(
        CallerKind.USER, "alice", "acme", frozenset({"runs:read", "runs:write"})
    )


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"exp": int(time.time()) - 3600}, "TOKEN_EXPIRED"),
        ({"exp": None}, "TOKEN_INVALID"),
        ({"exp": "tomorrow"}, "TOKEN_INVALID"),
        ({"exp": 1e400}, "TOKEN_INVALID"),
        ({"nbf": int(time.time()) + 3600}, "TOKEN_INVALID"),
        ({"iat": int(time.time()) + 3600}, "TOKEN_INVALID"),
        ({"aud": "somebody"}, "TOKEN_INVALID"),
        ({"aud": None}, "TOKEN_INVALID"),
        ({"aud": "cogni:executor"}, "TOKEN_INVALID"),
        ({"aud": ["cogni", "cogni:executor"]}, "TOKEN_INVALID"),
        ({"sub": None}, "TOKEN_INVALID"),
        ({"sub": ""}, "TOKEN_INVALID"),
        ({"sub": "s" * 256}, "TOKEN_INVALID"),
        ({"sub": "a\x00b"}, "TOKEN_INVALID"),
        ({"sub": "service:executor"}, "TOKEN_INVALID"),
        ({"tenant": None}, "TOKEN_INVALID"),
        ({"tenant": "*"}, "TOKEN_INVALID"),
        ({"tenant": "Acme"}, "TOKEN_INVALID"),
        ({"tenant": "a" * 64}, "TOKEN_INVALID"),
        ({"tenant": "acme\n"}, "TOKEN_INVALID"),
        ({"scope": ["runs:read"]}, "TOKEN_INVALID"),
        ({"secret": "another secret that is long enough, too"}, "TOKEN_INVALID"),
    ],
)
async def test_a_caller_token_that_is_not_right_is_refused(
    identities: Identities, changes: dict[str, Any], reason: str
) -> None:
    token = identities.user_token(**changes)
    assert await refusal(identities.verifier("executor"), token) == reason


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "ü.ü.ü", "x" * 9000])
async def test_what_is_no_jwt_is_refused(identities: Identities, token: str) -> None:
    assert await refusal(identities.verifier("executor"), token) == "TOKEN_INVALID"


async def test_a_token_nested_past_the_stack_is_refused(identities: Identities) -> None:
    def part(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    token = ".".join((part('{"alg":"HS256"}'), part('{"a":' + "[" * 5000), "x"))
    assert await refusal(identities.verifier("executor"), token) == "TOKEN_INVALID"


async def test_an_unsigned_token_is_refused(identities: Identities) -> None:
    claims = {"sub": "a", "tenant": "acme", "aud": "cogni", "exp": int(time.time()) + 60}
    token = jwt.encode(claims, None, algorithm="none")
    assert await refusal(identities.verifier("executor"), token) == "TOKEN_INVALID"


async def test_the_issuer_is_checked_when_one_is_set(identities: Identities) -> None:
    verifier = TokenVerifier("executor", SecretKey(SECRET), issuer="https://id.example")

    assert await verifier.verify(identities.user_token(iss="https://id.example"))
    assert await refusal(verifier, identities.user_token(iss="https://other")) == "TOKEN_INVALID"
    assert await refusal(verifier, identities.user_token()) == "TOKEN_INVALID"


KEYS: list[tuple[str, Callable[[], Any], Any]] = [
    ("EdDSA", Ed25519PrivateKey.generate, OKPAlgorithm),
    ("ES256", lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    ("RS256", lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
]


def user_claims() -> dict[str, Any]:
    now = int(time.time())
    return {"sub": "alice", "tenant": "acme", "aud": "cogni", "exp": now + 60}


@pytest.mark.parametrize(("algorithm", "generate", "family"), KEYS)
async def test_callers_may_sign_with_any_allowed_public_key(
    tmp_path: Path, algorithm: str, generate: Callable[[], Any], family: Any
) -> None:
    key = generate()
    public = family.to_jwk(key.public_key(), as_dict=True)
    (tmp_path / "jwks").write_text(json.dumps({"keys": [{**public, "kid": "k1"}]}))
    verifier = TokenVerifier("executor", FileKeys(tmp_path / "jwks", CALLER_ALGORITHMS))

    named = jwt.encode(user_claims(), key, algorithm=algorithm, headers={"kid": "k1"})
    nameless = jwt.encode(user_claims(), key, algorithm=algorithm)
    strange = jwt.encode(user_claims(), key, algorithm=algorithm, headers={"kid": "k2"})

    assert (await verifier.verify(named)).subject == "alice"
    assert (await verifier.verify(nameless)).subject == "alice"
    assert await refusal(verifier, strange) == "TOKEN_INVALID"


async def test_a_public_key_is_never_a_shared_secret(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    write_jwks(tmp_path / "jwks", {"k1": key})
    verifier = TokenVerifier("executor", FileKeys(tmp_path / "jwks", CALLER_ALGORITHMS))
    published = key.public_key().public_bytes_raw()

    token = jwt.encode(user_claims(), published, algorithm="HS256", headers={"kid": "k1"})

    assert await refusal(verifier, token) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": "oct", "k": base64.urlsafe_b64encode(SECRET.encode()).decode(), "alg": "HS256"},
        RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True),
        {
            **OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate().public_key(), as_dict=True),
            "use": "enc",
        },
    ],
)
def test_a_key_set_without_a_usable_key_is_refused(tmp_path: Path, entry: dict[str, Any]) -> None:
    (tmp_path / "jwks").write_text(json.dumps({"keys": [entry]}))
    with pytest.raises(Exception, match="holds no usable key"):
        FileKeys(tmp_path / "jwks", CALLER_ALGORITHMS)


async def test_a_service_speaks_as_itself(identities: Identities) -> None:
    token = identities.service_token("executor", "ledger", "acme", on_behalf_of="alice")

    caller = await identities.verifier("ledger").verify(token)

    assert caller.kind is CallerKind.SERVICE
    assert caller.service == "executor"
    assert caller.subject == "service:executor"
    assert caller.owner == "alice"
    assert caller.scopes == frozenset()


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "scheduler"},
        {"iss": None},
        {"sub": "service:scheduler"},
        {"sub": "alice"},
        {"aud": "cogni:connections"},
        {"tenant": None},
        {"tenant": "A B"},
        {"exp": int(time.time()) + 24 * 3600},
        {"iat": None},
        {"typ": "run"},
        {"typ": "admin"},
        {"on_behalf_of": ""},
        {"on_behalf_of": 7},
    ],
)
async def test_a_service_token_that_is_not_right_is_refused(
    identities: Identities, changes: dict[str, Any]
) -> None:
    token = signed(identities.keys["executor"], "executor", **changes)
    assert await refusal(identities.verifier("ledger"), token) == "TOKEN_INVALID"


async def test_a_service_key_cannot_speak_as_another_service(identities: Identities) -> None:
    stolen = signed(identities.keys["scheduler"], "executor")
    unknown = signed(Ed25519PrivateKey.generate(), "stranger")
    as_user = jwt.encode(
        user_claims(), identities.keys["executor"], algorithm="EdDSA", headers={"kid": "executor"}
    )

    for token in (stolen, unknown, as_user):
        assert await refusal(identities.verifier("ledger"), token) == "TOKEN_INVALID"


async def test_the_callers_secret_makes_no_service_token(identities: Identities) -> None:
    claims = {**user_claims(), "aud": "cogni:ledger", "iss": "executor", "sub": "service:executor"}
    token = jwt.encode(claims, SECRET, algorithm="HS256", headers={"kid": "executor"})
    assert await refusal(identities.verifier("ledger"), token) == "TOKEN_INVALID"


async def test_a_server_without_trusted_keys_believes_no_service(identities: Identities) -> None:
    verifier = TokenVerifier("ledger", SecretKey(SECRET))
    assert await refusal(verifier, identities.service_token("executor", "ledger")) == (
        "TOKEN_INVALID"
    )


async def test_a_run_token_names_its_attempt(identities: Identities) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + HOUR
    claims = identities.run_claims(expire_time=end, owner="alice")

    for service in ("connections", "ledger"):
        caller = await identities.verifier(service).verify(identities.run_token(claims))
        assert caller.kind is CallerKind.RUN
        assert caller.run == claims
        assert caller.owner == "alice"


HOUR = timedelta(hours=1)


@pytest.mark.parametrize("service", ["executor", "scheduler"])
async def test_a_run_token_is_for_connections_and_ledger_alone(
    identities: Identities, service: str
) -> None:
    token = identities.run_token()
    assert await refusal(identities.verifier(service), token) == "TOKEN_INVALID"


async def test_only_the_executor_signs_run_tokens(identities: Identities) -> None:
    token = signed(
        identities.keys["runner"],
        "runner",
        typ="run",
        run_id="r",
        epoch=1,
        grant_id="g",
        connection_ids=[],
        account_id="a",
    )
    assert await refusal(identities.verifier("ledger"), token) == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "changes",
    [{"epoch": 0}, {"epoch": True}, {"epoch": "1"}, {"run_id": ""}, {"connection_ids": "c"}],
)
async def test_malformed_run_claims_are_refused(
    identities: Identities, changes: dict[str, Any]
) -> None:
    claims = {"run_id": "r", "epoch": 1, "grant_id": "g", "connection_ids": [], "account_id": "a"}
    token = signed(identities.keys["executor"], "executor", typ="run", **{**claims, **changes})
    assert await refusal(identities.verifier("ledger"), token) == "TOKEN_INVALID"


async def test_a_run_token_is_dead_at_its_expiry_without_any_leeway(
    identities: Identities,
) -> None:
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=30)
    token = identities.run_token(identities.run_claims(expire_time=end))
    clock = Clock(end.timestamp() - 0.001)
    trusted = FileKeys(identities.folder / "trusted.json", SERVICE_ALGORITHMS)
    fresh = TokenVerifier("ledger", SecretKey(SECRET), trusted, clock=clock)
    other = TokenVerifier("ledger", SecretKey(SECRET), trusted, clock=clock)
    assert await fresh.verify(token)

    clock.now = end.timestamp()

    assert await refusal(fresh, token) == "TOKEN_EXPIRED"
    assert await refusal(other, token) == "TOKEN_EXPIRED"


class CountedKeys(SecretKey):
    """Counts how often a key was asked for."""

    asked = 0

    async def find(self, kid: str | None, algorithm: str) -> bytes | None:
        self.asked += 1
        return await super().find(kid, algorithm)


async def test_a_token_is_verified_once_and_remembered(identities: Identities) -> None:
    keys, clock = CountedKeys(SECRET), Clock(time.time())
    verifier = TokenVerifier("executor", keys, clock=clock)
    token = identities.user_token()

    first, second = await verifier.verify(token), await verifier.verify(token)
    assert (first, keys.asked) == (second, 1)

    clock.now += 301
    await verifier.verify(token)
    assert keys.asked == 2


async def test_a_withdrawn_key_ends_the_tokens_already_seen(tmp_path: Path) -> None:
    path, old, new = tmp_path / "jwks", Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    write_jwks(path, {"old": old})
    clock = Clock(0)
    verifier = TokenVerifier("executor", FileKeys(path, CALLER_ALGORITHMS, monotonic=clock))
    token = jwt.encode(user_claims(), old, algorithm="EdDSA", headers={"kid": "old"})
    assert await verifier.verify(token)

    write_jwks(path, {"new": new, "another": Ed25519PrivateKey.generate()})
    clock.now += 1

    assert await refusal(verifier, token) == "TOKEN_INVALID"


async def test_a_broken_key_file_leaves_the_keys_before_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, key, clock = tmp_path / "jwks", Ed25519PrivateKey.generate(), Clock(0)
    write_jwks(path, {"k1": key})
    verifier = TokenVerifier("executor", FileKeys(path, CALLER_ALGORITHMS, monotonic=clock))

    path.write_text("{")
    clock.now += 1
    token = jwt.encode(user_claims(), key, algorithm="EdDSA", headers={"kid": "k1"})

    assert await verifier.verify(token)
    assert "stay in force" in caplog.text


class Jwks:
    """A key set behind a URL."""

    def __init__(self, document: bytes) -> None:
        self.document: bytes | Exception = document
        self.fetched = 0

    async def __call__(self, url: str) -> bytes:
        self.fetched += 1
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


async def test_an_unknown_kid_refreshes_the_keys_but_not_at_will(tmp_path: Path) -> None:
    path, first, second = tmp_path / "jwks", *(Ed25519PrivateKey.generate() for _ in range(2))
    write_jwks(path, {"first": first})
    published, clock = Jwks(path.read_bytes()), Clock(0)
    keys = UrlKeys("https://id.example", CALLER_ALGORITHMS, published, clock)
    verifier = TokenVerifier("executor", keys)
    token = jwt.encode(user_claims(), second, algorithm="EdDSA", headers={"kid": "second"})

    for _ in range(5):
        assert await refusal(verifier, token) == "TOKEN_INVALID"
    assert published.fetched == 1

    write_jwks(path, {"first": first, "second": second})
    published.document = path.read_bytes()
    clock.now += 10
    assert await verifier.verify(token)
    assert published.fetched == 2


async def test_keys_that_cannot_be_fetched_make_the_server_unavailable_not_open(
    identities: Identities, tmp_path: Path
) -> None:
    published, clock = Jwks(b""), Clock(0)
    published.document = OSError("unreachable")
    keys = UrlKeys("https://id.example", CALLER_ALGORITHMS, published, clock)
    verifier = TokenVerifier("executor", keys)
    key = Ed25519PrivateKey.generate()
    write_jwks(tmp_path / "jwks", {"k1": key})
    token = jwt.encode(user_claims(), key, algorithm="EdDSA", headers={"kid": "k1"})

    with pytest.raises(ServiceError) as refused:
        await verifier.verify(token)
    assert refused.value.kind is ErrorKind.UNAVAILABLE

    published.document = (tmp_path / "jwks").read_bytes()
    clock.now += 10
    assert await verifier.verify(token)

    # The provider is gone again, longer than the keys are fresh: the last ones stay in force.
    published.document = OSError("unreachable")
    clock.now += 3600
    again = jwt.encode({**user_claims(), "sub": "bob"}, key, "EdDSA", headers={"kid": "k1"})
    assert (await verifier.verify(again)).subject == "bob"


def test_unusable_keys_are_told_in_sentences_at_start(tmp_path: Path) -> None:
    private = OKPAlgorithm.to_jwk(Ed25519PrivateKey.generate(), as_dict=True)
    (tmp_path / "private").write_text(json.dumps({"keys": [private]}))
    (tmp_path / "broken").write_text("[]")
    settings = AuthSettings(
        auth_jwks_file=tmp_path / "broken", trusted_keys_file=tmp_path / "private"
    )

    with pytest.raises(SettingsError) as refused:
        TokenVerifier.from_settings(settings, "ledger")

    assert "COGNI_AUTH_JWKS_FILE" in refused.value.problems[0]
    assert "is not a JWKS" in refused.value.problems[0]
    assert "holds a private key" in refused.value.problems[1]


def test_a_service_token_is_made_once_and_renewed_before_it_ends() -> None:
    clock = Clock(1000.0)
    tokens = ServiceTokens(Ed25519PrivateKey.generate(), "executor", clock)

    first = tokens.token("ledger", "acme")
    assert tokens.token("ledger", "acme") == first
    assert tokens.token("ledger", "other") != first
    assert tokens.token("ledger", "acme", on_behalf_of="alice") != first

    clock.now += 241
    assert tokens.token("ledger", "acme") != first


@pytest.mark.parametrize(
    "content",
    [None, "no pem", pem(Ed25519PrivateKey.generate()).replace("M", "N", 3)],
)
def test_an_unusable_service_key_is_told_in_a_sentence(content: str | None) -> None:
    with pytest.raises(SettingsError, match="COGNI_SERVICE_KEY_FILE"):
        load_service_key(SecretStr(content) if content is not None else None)
