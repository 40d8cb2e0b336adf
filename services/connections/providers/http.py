"""What a provider may do on the network, and how its answers are read without trusting them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import urlencode

from services.connections.providers.failures import (
    FailureKind,
    ProviderError,
    answer_invalid,
)

JSON_DEPTH_MAX = 32
_TEXT_LENGTH_MAX = 4096
_TOKEN_LENGTH_MAX = 16 * 1024
# RFC 6749 Appendix A: what tokens are made of, and what a header can carry.
_TOKEN = re.compile(r"[\x20-\x7e]+")
# The media types that an answer in place of JSON usually has; others are not repeated, because a
# provider's answer may hold what it was sent.
_KNOWN_TYPES = ("text/html", "text/plain", "application/xml", "text/xml")


@dataclass(frozen=True, slots=True)
class Request:
    """One call to a provider. Its text form shows neither headers nor body."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, bounded in size; header names in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class Http(Protocol):
    """The one way out: see adapters/egress."""

    async def send(self, request: Request) -> Answer:
        """Send and return the answer whatever its status. Raises ProviderError."""
        ...


def post_json(url: str, content: Mapping[str, Any], *, bearer: str = "") -> Request:
    """A POST of a JSON object."""
    headers = {"accept": "application/json", "content-type": "application/json"}
    return Request("POST", url, _with_bearer(headers, bearer), json.dumps(content).encode())


def post_empty(url: str, *, bearer: str) -> Request:
    """A POST without a body, as XRPC procedures without input want it."""
    return Request("POST", url, _with_bearer({"accept": "application/json"}, bearer))


def post_form(
    url: str, content: Mapping[str, str], headers: Mapping[str, str] | None = None
) -> Request:
    """A POST of a form, as OAuth's token endpoint takes it."""
    return Request(
        "POST",
        url,
        {
            "accept": "application/json",
            "content-type": "application/x-www-form-urlencoded",
            **(headers or {}),
        },
        urlencode(content).encode(),
    )


def get(url: str, *, bearer: str = "") -> Request:
    """A GET that expects JSON."""
    return Request("GET", url, _with_bearer({"accept": "application/json"}, bearer))


def _with_bearer(headers: dict[str, str], bearer: str) -> dict[str, str]:
    return {**headers, "authorization": f"Bearer {bearer}"} if bearer else headers


def json_object(answer: Answer, *, who: str) -> dict[str, Any]:
    """The answer's JSON object. Raises ProviderError when it is anything else."""
    try:
        content = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        kind = answer.headers.get("content-type", "").split(";")[0].strip().lower()
        named = kind if kind in _KNOWN_TYPES else "something else"
        raise answer_invalid(
            f"{who} answered {answer.status} with {named if answer.body else 'nothing'} instead "
            "of JSON; check that the URL is its API."
        ) from error
    if not isinstance(content, dict):
        raise answer_invalid(f"{who} answered with JSON that is no object.")
    return content


def text_field(content: Mapping[str, Any], name: str, *, who: str) -> str:
    """A required text of the answer. Raises ProviderError when missing, empty or oversized."""
    value = optional_text(content, name)
    if not value:
        raise answer_invalid(f"{who} answered without a usable {name!r}.")
    return value


def optional_text(content: Mapping[str, Any], name: str) -> str:
    """A text of the answer, or "" when it is missing or unusable: oversized, with control
    characters, or with the lone surrogates that JSON can spell and nothing can store."""
    value = content.get(name)
    if not isinstance(value, str) or len(value) > _TEXT_LENGTH_MAX or not value.isprintable():
        return ""
    return value


def token_field(content: Mapping[str, Any], name: str, *, who: str) -> str:
    """A required token. Raises ProviderError when it is missing or no header could carry it."""
    value = optional_token(content, name, who=who)
    if not value:
        raise answer_invalid(f"{who} answered without a usable {name!r}.")
    return value


def optional_token(content: Mapping[str, Any], name: str, *, who: str) -> str:
    """A token, or "" when there is none. Raises ProviderError for one that cannot be used: to go
    on without it would lose a rotating token silently."""
    value = content.get(name)
    if value is None or value == "":
        return ""
    usable = isinstance(value, str) and len(value) <= _TOKEN_LENGTH_MAX and _TOKEN.fullmatch(value)
    if not usable:
        raise answer_invalid(f"{who} answered without a usable {name!r}.")
    return str(value)


def retry_after(answer: Answer, *, now: datetime) -> timedelta | None:
    """How long the provider asks to wait: Retry-After, or the reset time of RateLimit headers."""
    header = answer.headers.get("retry-after", "")
    if header.isdecimal() and len(header) <= 9:
        return timedelta(seconds=int(header))
    if header:
        try:
            moment = parsedate_to_datetime(header)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return max(moment - now, timedelta(seconds=1))
        except (ValueError, OverflowError):
            return None
    for name in ("ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset"):
        reset = answer.headers.get(name, "")
        if reset.isdecimal() and len(reset) <= 11:
            seconds = int(reset) - int(now.timestamp())
            # Small numbers are a delay (the RateLimit draft), large ones a moment.
            return timedelta(seconds=max(1, seconds if seconds > -86_400 else int(reset)))
    return None


def raise_for_trouble(answer: Answer, *, who: str, now: datetime) -> None:
    """Raise ProviderError for the answers that say nothing about the credential."""
    if answer.status == 429:
        raise ProviderError(
            FailureKind.RATE_LIMITED,
            f"{who} limits how often this may be done.",
            retry_after=retry_after(answer, now=now),
        )
    if answer.status >= 500 or answer.status == 408:
        raise ProviderError(
            FailureKind.UNAVAILABLE,
            f"{who} has trouble of its own (HTTP {answer.status}).",
            retry_after=retry_after(answer, now=now),
            maybe_done=True,
        )
    if 300 <= answer.status < 400:
        raise answer_invalid(
            f"{who} answered with a redirect; give the URL it redirects to.", maybe_done=False
        )
