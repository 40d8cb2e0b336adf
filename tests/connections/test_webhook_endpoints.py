"""Webhook endpoints are refused at the start when they are wrong, and no refusal shows a secret."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import SecretStr

from services.connections.settings import ConnectionsSettings, webhooks
from services.connections.webhook import WebhookError, parse_endpoints
from services.runtime.settings import SettingsError

SECRET = f"whsec_{'bmV3' * 8}"


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"t1": "https://example.com"},
        {"t1": {"url": "https://example.com"}},
        {"t1": {"url": 1, "secrets": [SECRET]}},
        {"t1": {"url": "https://example.com", "secrets": []}},
        {"t1": {"url": "https://example.com", "secrets": [SECRET] * 5}},
        {"t1": {"url": "https://example.com", "secrets": ["hunter2-hunter2-hunter2-hunter2"]}},
        {"t1": {"url": "https://example.com", "secrets": ["whsec_c2hvcnQ="]}},
        {"t1": {"url": "https://example.com", "secrets": [SECRET], "more": 1}},
    ],
)
def test_endpoints_of_a_wrong_shape_are_refused_without_showing_a_secret(content: Any) -> None:
    with pytest.raises(WebhookError) as refused:
        parse_endpoints(content)
    assert "hunter2" not in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://hooks.example.com", "https://10.0.0.1/hook", "https://u:hunter2@example.com"]
)
def test_an_endpoint_that_would_never_be_called_is_refused_at_the_start(url: str) -> None:
    content = json.dumps({"acme": {"url": url, "secrets": [SECRET]}})
    written = ConnectionsSettings.model_construct(webhooks=SecretStr(content), egress_allow="")
    with pytest.raises(SettingsError) as refused:
        webhooks(written)
    (problem,) = refused.value.problems
    assert "COGNI_CONNECTIONS_WEBHOOKS_FILE: the URL of 'acme'" in problem
    assert "hunter2" not in problem
