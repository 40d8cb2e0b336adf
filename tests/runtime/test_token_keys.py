"""The keys that tokens are checked and made with: which are usable, and how they are exchanged."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from http.client import BadStatusLine
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydantic import SecretStr

from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.settings import AuthSettings, SettingsError
from services.runtime.tokens import FileKeys, TokenVerifier, UrlKeys, load_service_key
from services.runtime.tokens.keys import CALLER_ALGORITHMS, KeysError, KeySet
from tests.plugins.identities import SECRET, Identities, pem, write_jwks
from tests.runtime.conftest import Clock, refusal, user_claims

KEYS: list[tuple[str, Callable[[], Any], Any]] = [
    ("EdDSA", Ed25519PrivateKey.generate, OKPAlgorithm),
    ("ES256", lambda: ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    ("RS256", lambda: rsa.generate_private_key(65537, 2048), RSAAlgorithm),
]


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


def test_a_key_of_odd_types_is_passed_over() -> None:
    odd = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    document = json.dumps({"keys": [{**odd, "alg": ["EdDSA"]}, {**odd, "kid": "good"}]}).encode()

    assert KeySet.parse(document, CALLER_ALGORITHMS).find("good", "EdDSA")
    with pytest.raises(KeysError):
        KeySet.parse(b"[" * 100_000, CALLER_ALGORITHMS)


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
    published.document = BadStatusLine("a captive portal")
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


@pytest.mark.parametrize(
    "content",
    [None, "no pem", pem(Ed25519PrivateKey.generate()).replace("M", "N", 3)],
)
def test_an_unusable_service_key_is_told_in_a_sentence(content: str | None) -> None:
    with pytest.raises(SettingsError, match="COGNI_SERVICE_KEY_FILE"):
        load_service_key(SecretStr(content) if content is not None else None)


async def test_a_provider_that_hangs_holds_up_nobody_whose_key_is_known(tmp_path: Path) -> None:
    key, clock, asked = Ed25519PrivateKey.generate(), Clock(0), asyncio.Event()
    write_jwks(tmp_path / "jwks", {"k1": key})
    published = Jwks((tmp_path / "jwks").read_bytes())

    async def hang(url: str) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    answers = [published, published, hang]
    keys = UrlKeys("x", CALLER_ALGORITHMS, lambda url: answers.pop(0)(url), clock)
    assert await keys.find("k1", "EdDSA")
    published.document = OSError("unreachable")
    clock.now += 3600
    assert await keys.find("k1", "EdDSA")
    clock.now += 10

    async with asyncio.timeout(5):
        assert await keys.find("k1", "EdDSA")
        await asked.wait()
        assert await keys.find("k1", "EdDSA")
