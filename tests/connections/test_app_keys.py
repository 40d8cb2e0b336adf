"""The operator's app keys: how they are written, and that each is used at one GitHub alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from services.connections.providers.failures import ProviderError
from services.connections.providers.github_installations import (
    AppKey,
    AppKeys,
    GitHubAppKeySettings,
)
from services.connections.settings import ConnectionsSettings, github_keys
from services.runtime.settings import SettingsError
from tests.github_server import PEM

ENTERPRISE = "https://github.example.com/api/v3"


def read(entry: Any, egress_allow: str = "") -> AppKey:
    text = SecretStr(json.dumps({"main": entry}))
    written = ConnectionsSettings.model_construct(github_keys=text, egress_allow=egress_allow)
    return github_keys(written)["main"]


def test_a_key_is_for_github_unless_the_operator_names_another() -> None:
    assert read(PEM) == AppKey(PEM, None, "https://api.github.com")
    assert read({"pem": PEM, "api_url": f"{ENTERPRISE}/"}) == AppKey(PEM, None, ENTERPRISE)
    assert read({"pem": PEM, "tenants": ["t1"]}).tenants == {"t1"}


@pytest.mark.parametrize("url", ["http://github.example.com", "https://10.0.0.1", "github", 7, ""])
def test_a_key_for_what_is_no_address_of_a_github_is_refused(url: Any) -> None:
    with pytest.raises(SettingsError, match="GITHUB_KEYS_FILE"):
        read({"pem": PEM, "api_url": url})


def test_a_private_address_is_allowed_where_the_operator_allows_it() -> None:
    url = "http://10.0.0.1:8080"
    assert read({"pem": PEM, "api_url": url}, "10.0.0.1:8080").api_url == url


def test_a_connection_made_before_its_key_was_bound_is_proved_nothing() -> None:
    keys = AppKeys({"main": AppKey(PEM)})
    settings = GitHubAppKeySettings(app_id="1", private_key="main", api_url="https://evil.example")
    with pytest.raises(ProviderError, match="another GitHub"):
        keys.proof(settings, datetime(2026, 3, 1, tzinfo=UTC))
