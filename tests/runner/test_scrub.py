"""Credentials are found in whatever a tool hands back, however the other side spelt them."""

from __future__ import annotations

import base64
import html
import json
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from langchain_core.messages import ToolMessage
from langgraph.types import Command, Send

from services.executor.runner.scrub import UNSEARCHABLE, Scrubber
from tests.canaries import forms

SECRETS = ("canary-4711-secret", "k3y/+='\"<&>\\ü", "abcdef")


@pytest.fixture(params=SECRETS)
def secret(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def scrubber(secret: str) -> Scrubber:
    scrubber = Scrubber()
    scrubber.learn([secret])
    return scrubber


def test_every_form_that_the_canary_scan_knows_is_taken_out(
    scrubber: Scrubber, secret: str
) -> None:
    for form in forms(secret):
        assert form not in scrubber.value(b"it is " + form + b" indeed"), form
        if form.isascii() and b"\0" not in form:
            assert form.decode() not in scrubber.value(f"it is {form.decode()} indeed"), form


def test_what_an_api_echoes_holds_no_credential(scrubber: Scrubber, secret: str) -> None:
    basic = base64.b64encode(f"user:{secret}".encode()).decode()
    echoed = json.dumps({"headers": {"Authorization": f"Basic {basic}", "X-Key": secret}})
    page = f"<pre>{html.escape(json.dumps({'key': secret}))} {html.escape(secret)}</pre>"

    for told in (echoed, json.dumps(echoed), page):
        clean = scrubber.text(told)
        for form in (secret, json.dumps(secret)[1:-1], html.escape(secret), basic[7:-4]):
            assert form not in clean


class _Odd:
    def __init__(self, held: str) -> None:
        self.held = held


@dataclass
class _Stubborn:
    held: str

    def __post_init__(self) -> None:
        if "credential" in self.held:
            raise ValueError("not what I was made for")


def test_containers_of_every_kind_are_searched_or_not_handed_on(
    scrubber: Scrubber, secret: str
) -> None:
    message = ToolMessage("fine", tool_call_id="1", artifact=_Odd(secret), told_too=secret)
    values: list[Any] = [
        deque([secret], maxlen=3),
        bytearray(secret.encode()),
        memoryview(secret.encode()),
        {"a": {secret}},
        _Odd(secret),
        _Stubborn(secret),
        Send("node", {"key": secret}),
        Command(update={"key": secret}),
        message,
    ]
    for value in values:
        clean = scrubber.value(value)
        said = f"{clean!r} {getattr(clean, '__dict__', '')}"
        assert secret not in said
        assert repr(secret)[1:-1] not in said
        assert repr(secret.encode())[2:-1] not in said

    assert scrubber.value(deque([secret], 3)) == deque(["[credential]"], 3)
    assert scrubber.value(_Odd("clean")) == UNSEARCHABLE


def test_what_holds_no_credential_stays_what_it_is(scrubber: Scrubber) -> None:
    now = datetime.now(UTC)
    value = {"at": now, "send": Send("node", {"a": 1}), "all": deque([1, 2]), "raw": b"\xff"}
    assert scrubber.value(value) == value
