"""The stack's secrets are made once, are private, and sign what they should."""

import base64
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
from jwt import PyJWKSet

from services.standalone.errors import StandaloneError
from services.standalone.keys import IDENTITIES, Keys

NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    keys = Keys(tmp_path / "keys")
    keys.ensure()
    return keys


def mint(keys: Keys, ttl: timedelta = HOUR) -> str:
    return keys.mint_caller_token(
        subject="ada", tenant="acme", scopes=("runs:read", "runs:write"), ttl=ttl, now=NOW
    )


def test_every_secret_can_be_read_by_this_user_only(keys: Keys) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in keys.directory.iterdir()}

    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(keys.directory.stat().st_mode) == 0o700


def test_a_second_start_changes_no_key(keys: Keys) -> None:
    before = {path.name: path.read_bytes() for path in keys.directory.iterdir()}

    keys.ensure()

    assert {path.name: path.read_bytes() for path in keys.directory.iterdir()} == before


def test_each_identity_signs_what_the_trusted_keys_verify(keys: Keys) -> None:
    trusted = PyJWKSet.from_json(keys.trusted.read_text())

    for name in IDENTITIES:
        token = jwt.encode({"iss": name}, keys.identity(name).read_text(), algorithm="EdDSA")
        assert jwt.decode(token, trusted[name], algorithms=["EdDSA"]) == {"iss": name}


def test_the_keyring_has_one_active_key_of_32_bytes(keys: Keys) -> None:
    keyring = json.loads(keys.keyring.read_text())

    assert len(base64.b64decode(keyring["keys"][keyring["active"]], validate=True)) == 32


def test_a_caller_token_says_who_for_which_tenant_with_which_scopes_until_when(keys: Keys) -> None:
    claims = jwt.decode(
        mint(keys), keys.caller_secret.read_text(), algorithms=["HS256"], audience="cogni"
    )

    assert (claims["sub"], claims["tenant"]) == ("ada", "acme")
    assert claims["scope"] == "runs:read runs:write"
    assert claims["exp"] == int((NOW + HOUR).timestamp())


@pytest.mark.parametrize("ttl", [timedelta(0), timedelta(seconds=-1), timedelta(days=367)])
def test_a_token_without_end_or_beginning_is_refused(keys: Keys, ttl: timedelta) -> None:
    with pytest.raises(StandaloneError, match="A token lives longer than nothing"):
        mint(keys, ttl)


def test_a_token_of_a_stack_that_was_never_started_is_refused_with_the_command(
    tmp_path: Path,
) -> None:
    with pytest.raises(StandaloneError, match=r"services\.standalone up"):
        mint(Keys(tmp_path / "keys"))


def test_a_broken_identity_is_told_and_not_replaced(keys: Keys) -> None:
    keys.identity("runner").write_text("broken")

    with pytest.raises(StandaloneError, match=r"runner\.pem is not an Ed25519 private key"):
        keys.ensure()

    assert keys.identity("runner").read_text() == "broken"
