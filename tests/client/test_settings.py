"""The client's settings from the environment, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cogni.client.settings import DEFAULT_ADDRESSES, ClientSettings, SettingsError


def test_without_variables_the_embedded_stacks_addresses_are_used() -> None:
    settings = ClientSettings.from_environment({})

    assert settings.addresses == DEFAULT_ADDRESSES
    assert settings.token is None
    assert not settings.tls


def test_a_token_file_is_read_again_at_each_call(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    settings = ClientSettings.from_environment({"COGNI_TOKEN_FILE": str(path)})
    assert settings.token is not None
    assert settings.token() == "first"

    path.write_text("second\n")

    assert settings.token() == "second"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"COGNI_TIMEOUT_SECONDS": "soon"}, "give a number"),
        ({"COGNI_TIMEOUT_SECONDS": "0"}, "positive"),
        ({"COGNI_TOKEN": "a", "COGNI_TOKEN_FILE": "b"}, "not both"),
        ({"COGNI_CLIENT_CA_FILE": "/nonexistent"}, "cannot read"),
    ],
)
def test_settings_that_make_no_sense_are_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ClientSettings.from_environment(environment)
