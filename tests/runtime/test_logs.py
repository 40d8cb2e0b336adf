"""Log lines carry the ids of the work under way, and never a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest

from services.runtime.logs import log_context, redact, start_logs
from services.runtime.settings import TelemetrySettings
from services.runtime.telemetry import continued, current_trace_id, start_telemetry

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
_log = logging.getLogger("services.test")


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    # basicConfig(force=True) closes the handlers it removes; pytest's must stay open.
    root.handlers = []
    yield root
    root.handlers, root.level = handlers, level
    logging.captureWarnings(False)


def started(format: Literal["json", "text"]) -> io.StringIO:
    stream = io.StringIO()
    start_logs(TelemetrySettings(log_format=format), "ledger", stream)
    return stream


def test_a_json_line_carries_service_trace_and_the_fields_of_its_context(
    root: logging.Logger,
) -> None:
    stream = started("json")
    tracer = start_telemetry(TelemetrySettings(), "ledger").tracer

    with (
        continued(tracer, "work", {}),
        log_context(run_id="r1"),
        log_context(tenant_id="acme"),
    ):
        trace_id = current_trace_id()
        _log.warning("found %d units", 3)
    _log.info("after")

    inside, after = (json.loads(line) for line in stream.getvalue().splitlines())
    assert inside["message"] == "found 3 units"
    assert (inside["service"], inside["level"]) == ("ledger", "warning")
    assert (inside["run_id"], inside["tenant_id"]) == ("r1", "acme")
    assert inside["trace_id"] == trace_id
    assert "run_id" not in after


@pytest.mark.parametrize("format", ["json", "text"])
def test_tokens_are_masked_in_messages_arguments_and_tracebacks(
    root: logging.Logger, format: Literal["json", "text"]
) -> None:
    stream = started(format)

    try:
        raise RuntimeError(f"refused Bearer {JWT}")
    except RuntimeError:
        _log.exception("calling with %s", {"authorization": f"Bearer {JWT}"})

    shown = stream.getvalue()
    assert "RuntimeError" in shown
    assert "eyJ" not in shown
    assert "[redacted]" in shown


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (JWT, "[redacted]"),
        ("Authorization: bearer abcdefgh12345678", "Authorization: bearer [redacted]"),
        ("Basic YWxpY2U6c2VjcmV0", "Basic [redacted]"),
        ("postgresql://me:hunter2@db:5432/x", "postgresql://me:[redacted]@db:5432/x"),
        (f"x-session-{JWT}.", "x-session-[redacted]."),
        (f"a.{JWT}", "a.[redacted]"),
        ("amqp://:hunter2@mq//", "amqp://:[redacted]@mq//"),
        ("http://host:8080/a@b", "http://host:8080/a@b"),
        ("The bearer is alice", "The bearer is alice"),
    ],
)
def test_what_looks_like_a_secret_is_masked_and_nothing_else(text: str, kept: str) -> None:
    assert redact(text) == kept


def test_masking_takes_no_more_than_the_length_of_a_hostile_text() -> None:
    # Long enough that the square of it would take minutes.
    text = "-eyJaaaaaaaa" * 100_000

    assert redact(text) == text


def test_a_line_break_in_a_message_begins_no_record(root: logging.Logger) -> None:
    stream = started("text")

    _log.warning("no graph %s", "x\r\n12:00:00.000 ERROR   ledger: forged")

    assert [line[:4] for line in stream.getvalue().splitlines()[1:]] == ["    "]


def test_the_level_is_the_settings(root: logging.Logger) -> None:
    stream = io.StringIO()
    start_logs(TelemetrySettings(log_level="error"), "ledger", stream)

    _log.warning("quiet")
    _log.error("loud")

    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


@pytest.mark.parametrize("name", ["httpx", "httpcore2.http11", "botocore.parsers"])
def test_libraries_that_log_what_passes_through_them_are_kept_quiet(
    root: logging.Logger, name: str
) -> None:
    stream = io.StringIO()
    start_logs(TelemetrySettings(log_level="debug"), "ledger", stream)

    logging.getLogger(name).debug("GET https://api.example.com/?key=hunter2")
    logging.getLogger("httpx").info("GET https://api.example.com/?key=hunter2")
    _log.debug("heard")

    assert "hunter2" not in stream.getvalue()
    assert "heard" in stream.getvalue()
