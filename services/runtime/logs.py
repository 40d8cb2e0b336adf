"""Structured logs: one line a record, with the ids of the work under way and no secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TextIO

from services.runtime.settings import TelemetrySettings
from services.runtime.telemetry import current_trace_id

_fields: ContextVar[Mapping[str, str]] = ContextVar(
    "cogni_log_fields", default=MappingProxyType({})
)

#: Bearer values and JWTs wherever they stand, and passwords inside URLs.
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 [redacted]"),
    # From the beginning of a word with few hyphens on: begun after each hyphen, a text of many
    # "-eyJ" took the square of its length, 1.4 s for 80 kB.
    (
        re.compile(r"(?a)(?<![\w-])((?:\w{0,64}-){0,4})eyJ[\w-]{8,}+\.[\w-]++\.[\w-]*+"),
        r"\1[redacted]",
    ),
    (re.compile(r"(?<=://)([^/\s:@]*):[^/\s@]+@"), r"\1:[redacted]@"),
)


class log_context:  # noqa: N801  # used like the function it stands for: `with log_context(…):`
    """Adds fields (run_id, tenant_id, …) to every record made inside the block."""

    # A class: contextlib's generators cost ten times as much, and every call passes here twice.
    __slots__ = ("_fields", "_token")

    def __init__(self, **fields: str) -> None:
        self._fields = fields

    def __enter__(self) -> None:
        # Nobody changes a dict once it is in the variable.
        self._token: Token[Mapping[str, str]] = _fields.set({**_fields.get(), **self._fields})

    def __exit__(self, *_: object) -> None:
        _fields.reset(self._token)


_LOG_URLS = ("httpx", "httpx2")
_LOG_CONTENTS = ("botocore", "hpack", "httpcore", "httpcore2", "openai", "urllib3")


def redact(text: str) -> str:
    """The text without anything that looks like a bearer token, a JWT, or a URL's password."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def start_logs(settings: TelemetrySettings, service: str, stream: TextIO | None = None) -> None:
    """Sends all records of this process, libraries' too, to stderr in the chosen format."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        JsonFormatter(service) if settings.log_format == "json" else TextFormatter(service)
    )
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    logging.captureWarnings(True)
    quieten_libraries()


def quieten_libraries() -> None:
    """Keep libraries from logging what passes through them, whatever level was chosen.

    The HTTP ones log URLs at INFO, headers and bodies at DEBUG; botocore logs data keys that KMS
    has unwrapped.
    """
    for name in _LOG_URLS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _LOG_CONTENTS:
        logging.getLogger(name).setLevel(logging.INFO)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for collectors."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Redacted after formatting, so that exception texts and arguments are covered too."""
        entry = {
            "time": _time(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": redact(record.getMessage()),
            **_context(),
        }
        if record.exc_info:
            entry["exception"] = redact(self.formatException(record.exc_info))
        if record.stack_info:
            entry["stack"] = redact(record.stack_info)
        return json.dumps(entry, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """A readable line, and the traceback below it, for people."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Redacted after formatting, so that exception texts and arguments are covered too."""
        time = _time(record).strftime("%H:%M:%S.%f")[:-3]
        fields = "".join(f" {key}={value}" for key, value in _context().items())
        # A message quotes what others sent: its line breaks must not begin records of their own.
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\n    ")
        line = f"{time} {record.levelname:7} {self._service}: {message}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _context() -> dict[str, str]:
    trace_id = current_trace_id()
    return {**_fields.get(), **({"trace_id": trace_id} if trace_id else {})}
