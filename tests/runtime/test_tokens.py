"""Tokens prove what they should to whom they should, and nothing else is believed."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.runtime.caller import Caller, CallerKind
from services.runtime.tokens import FileKeys, SecretKey, ServiceTokens, TokenVerifier
from services.runtime.tokens.keys import SERVICE_ALGORITHMS
from tests.plugins.identities import SECRET, Identities
from tests.runtime.conftest import Clock, refusal, user_claims


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
        ({"exp": 10**400}, "TOKEN_INVALID"),
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
        ({"sub": "a\nb"}, "TOKEN_INVALID"),
        ({"sub": "\ud800"}, "TOKEN_INVALID"),
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


@pytest.mark.parametrize("algorithm", [["HS256"], {}, None, 5])
async def test_a_header_of_odd_types_is_refused(identities: Identities, algorithm: object) -> None:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    token = f"{part({'alg': algorithm})}.{part({'aud': 'cogni'})}.AAAA"
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


def test_a_service_token_is_made_once_and_renewed_before_it_ends() -> None:
    clock = Clock(1000.0)
    tokens = ServiceTokens(Ed25519PrivateKey.generate(), "executor", clock)

    first = tokens.token("ledger", "acme")
    assert tokens.token("ledger", "acme") == first
    assert tokens.token("ledger", "other") != first
    assert tokens.token("ledger", "acme", on_behalf_of="alice") != first

    clock.now += 241
    assert tokens.token("ledger", "acme") != first
