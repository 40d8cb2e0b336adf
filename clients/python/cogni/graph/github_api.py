"""One exchange with GitHub's REST API, with the leased token, its refusals made readable."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from langchain_core.tools import ToolException

from cogni.graph.egress import Answer, Egress, EgressError, EgressLimits
from cogni.graph.invocation import credential
from cogni.graph.reading import Fields, after_an_act, json_of, said

TIMEOUT_SECONDS = 20.0

_WHO = "GitHub"
# The version of the API whose answers are understood here.
# https://docs.github.com/en/rest/about-the-rest-api/api-versions
_VERSION = "2022-11-28"
_REPOSITORY = re.compile(r"[A-Za-z0-9-]{1,39}/[A-Za-z0-9._-]{1,100}")
_LAST_PAGE = re.compile(r'[?&]page=([0-9]{1,6})[^>]*>; rel="last"')


class GitHubApi:
    """GitHub, as the leased credential may use it; an async context manager.

    Raises ToolException for what GitHub refuses, with what to do; EgressError when it cannot be
    reached.
    """

    def __init__(self) -> None:
        leased = credential()
        self._url = leased["base_url"].rstrip("/")
        self._headers = {
            "accept": "application/vnd.github+json",
            "authorization": f"Bearer {leased['access_token']}",
            "x-github-api-version": _VERSION,
        }
        self._egress = Egress(EgressLimits(total_seconds=TIMEOUT_SECONDS))

    async def __aenter__(self) -> Self:
        await self._egress.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._egress.__aexit__(kind, error, trace)

    async def page(
        self, path: str, number: int, size: int, **query: str
    ) -> tuple[list[Fields], int]:
        """A page of a list, counted from 1, and the number of the last as GitHub says it."""
        wanted = {**query, "per_page": size, "page": number}
        answer = _checked(await self._exchange("GET", path, wanted))
        content = json_of(_WHO, answer.body)
        if not isinstance(content, list):
            raise ToolException("GitHub answered with something that is no list.")
        last = _LAST_PAGE.search(answer.headers.get("link", ""))
        return [Fields(_WHO, each) for each in content], int(last[1]) if last else number

    async def post(self, path: str, content: Mapping[str, Any]) -> Fields:
        """Create something; what GitHub made of it.

        Raises ToolException when GitHub says that it did not, EgressError when nobody knows.
        """
        answer = await self._exchange("POST", path, {}, json.dumps(content).encode())
        if answer.status < 500:
            _checked(answer)
        with after_an_act():
            return Fields(_WHO, json_of(_WHO, _checked(answer).body))

    async def login(self) -> str | None:
        """The person whose token it is; None for an app's, which is nobody's."""
        answer = await self._exchange("GET", "/user", {})
        if answer.status in (403, 404):
            return None
        return Fields(_WHO, json_of(_WHO, _checked(answer).body)).text("login")

    async def _exchange(
        self, method: str, path: str, query: Mapping[str, Any], body: bytes = b""
    ) -> Answer:
        headers = {**self._headers, **({"content-type": "application/json"} if body else {})}
        url = f"{self._url}{path}{'?' if query else ''}{urlencode(query)}"
        try:
            return await self._egress.exchange(method, url, headers, body)
        except EgressError as error:
            if error.maybe_done and method != "GET":
                # Nobody knows what became of it: that is no answer to give to a model.
                raise
            raise ToolException(f"GitHub: {error}") from None


def repository_path(repository: str) -> str:
    """The path of "owner/name". Raises ToolException for anything else."""
    if _REPOSITORY.fullmatch(repository) is None or repository.split("/")[1] in (".", ".."):
        raise ToolException(f"{repository!r} is no repository like owner/name.")
    return f"/repos/{repository}"


def _checked(answer: Answer) -> Answer:
    if answer.status < 300:
        return answer
    if (wait := _wait(answer)) is not None:
        moment = (datetime.now(UTC) + wait).strftime("%H:%M:%S")
        raise ToolException(
            f"GitHub limits how often this may be done: try again in "
            f"{int(wait.total_seconds())} seconds, at {moment} UTC, and not sooner."
        )
    match answer.status:
        case 401:
            advice = "GitHub no longer honours the credential; test the connection."
        case 403:
            advice = "The connection's app may not do this, or the repository forbids it."
        case 404:
            advice = "There is no such thing, or the connection does not reach the repository."
        case 410 | 422:
            advice = "GitHub understands and refuses what was asked for."
        case status if status < 400:
            advice = "It has moved; name the repository as it is called now."
        case _:
            advice = "GitHub has trouble of its own."
    why = said(answer.body, "message") or "no message"
    raise ToolException(f"GitHub answered {answer.status} ({why}). {advice}")


def _wait(answer: Answer) -> timedelta | None:
    """How long GitHub asks to wait; None when it refuses for another reason.

    https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
    """
    if answer.status not in (403, 429):
        return None
    after = answer.headers.get("retry-after", "")
    if after.isdecimal() and len(after) < 7:
        return timedelta(seconds=int(after))
    reset = answer.headers.get("x-ratelimit-reset", "")
    used_up = answer.headers.get("x-ratelimit-remaining") == "0"
    if used_up and reset.isdecimal() and len(reset) < 12:
        return timedelta(seconds=max(1, int(reset) - int(datetime.now(UTC).timestamp())))
    # A minute is what GitHub asks for where it names no time.
    return timedelta(minutes=1) if answer.status == 429 or used_up else None
