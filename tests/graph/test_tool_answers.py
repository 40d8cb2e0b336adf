"""Whatever a server answers to a tool, the model is told, or nobody claims to know what was done.

With LONG=1 each search is a long one.
"""

from __future__ import annotations

import copy
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from langchain_core.tools import BaseTool

from cogni.graph import (
    Credential,
    http_request,
    list_pull_requests,
    post_github_comment,
    post_to_bluesky,
    read_pull_request,
)
from cogni.graph.egress import Answer, Egress, EgressError
from cogni.graph.github import comment_marker
from cogni.graph.invocation import Invocation, serving
from tests.outside_bytes import LONG, bodies, headers, statuses, values, written_out

REPOSITORY = "octo/hello"
# Reading the machine's certificates takes longer than all else that an example does.
TLS = ssl.create_default_context()
#: The largest whole number that every reader of JSON keeps: RFC 8259 section 6.
EXACT_MAX = 2**53

_USER = {"login": "ann", "type": "User"}
PULL = {
    "number": 7,
    "title": "Count faster",
    "user": _USER,
    "state": "open",
    "draft": False,
    "head": {"ref": "faster"},
    "base": {"ref": "main"},
    "updated_at": "2026-03-01T12:00:00Z",
    "html_url": "https://github.com/octo/hello/pull/7",
}
FILE = {"filename": "a.py", "status": "added", "additions": 1, "deletions": 0, "patch": "+one"}
COMMENT = {
    "id": 1,
    "html_url": "https://github.com/octo/hello/pull/7#issuecomment-1",
    "body": f"Nice.\n\n{comment_marker('inv-1')}",
    "user": {"login": "cogni[bot]", "type": "Bot"},
}
POST = {"uri": "at://did:plc:a/app.bsky.feed.post/3l4", "cid": "bafy"}


class Scripted:
    """A network that answers by method and path, whatever the tool's way out."""

    def __init__(self, answers: Mapping[str, Answer]) -> None:
        self._answers = answers
        self.methods: list[str] = []

    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        self.methods.append(method)
        return self._answers["user" if url.endswith("/user") else method]


@contextmanager
def answered(**answers: Answer) -> Iterator[Scripted]:
    """A tool inside is answered so, and has the fields of every credential."""
    fields = {
        "access_jwt": "jwt",
        "did": "did:plc:a",
        "service_url": "https://pds.test",
        "access_token": "ghs_x",
        "base_url": "https://api.github.com",
    }
    network = Scripted(answers)
    with (
        patch.object(Egress, "exchange", network.exchange),
        patch.object(ssl, "create_default_context", return_value=TLS),
        serving(Invocation("inv-1", Credential("bearer", fields))),
    ):
        yield network


def changed(good: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A good answer with one thing in it replaced or left out, alone and as a list of one."""
    places = [(name,) for name in good] + [
        (name, inner) for name, part in good.items() if isinstance(part, dict) for inner in part
    ]

    def put(place: tuple[str, ...], value: Any, gone: bool, listed: bool) -> bytes:
        content = copy.deepcopy(good)
        within = content
        for name in place[:-1]:
            within = within[name]
        within[place[-1]] = value
        if gone:
            del within[place[-1]]
        return json.dumps([content] if listed else content).encode()

    return st.builds(put, st.sampled_from(places), values, st.booleans(), st.booleans())


def answers_like(good: dict[str, Any]) -> st.SearchStrategy[Answer]:
    """Mostly of a status that makes the tool read the rest."""
    content = st.one_of(
        changed(good), st.lists(values, max_size=2).map(lambda each: json.dumps(each).encode())
    )
    return st.builds(
        Answer,
        st.one_of(st.sampled_from([200, 201]), statuses),
        headers,
        st.one_of(content, content, bodies).map(written_out),
    )


def check_told(outcome: Any) -> None:
    """A checkpoint, an event and a model can take it."""
    json.dumps(outcome, ensure_ascii=False, allow_nan=False).encode()
    assert "\0" not in str(outcome)
    _check_numbers(outcome)


def _check_numbers(outcome: Any) -> None:
    if isinstance(outcome, dict | list):
        for each in outcome.values() if isinstance(outcome, dict) else outcome:
            _check_numbers(each)
    if isinstance(outcome, int):
        assert abs(outcome) < EXACT_MAX


def html(status: int) -> Answer:
    return Answer(status, {"content-type": "text/html"}, b"<html>Bad gateway")


def said(content: Any, status: int = 200) -> Answer:
    return Answer(status, {}, json.dumps(content).encode())


@given(st.sampled_from([list_pull_requests, read_pull_request]), answers_like({**PULL, **FILE}))
@example(list_pull_requests, said([1]))
@example(list_pull_requests, said([None]))
@example(list_pull_requests, said([{"number": 1}]))
@example(list_pull_requests, said([{**PULL, "title": "\ud800\0"}]))
@example(list_pull_requests, said([{**PULL, "number": 10**400}]))
@example(list_pull_requests, said([{**PULL, "user": "ann"}]))
@example(list_pull_requests, said({"message": "\ud800"}, 403))
@example(read_pull_request, said([[]]))
@example(read_pull_request, said([{**FILE, "patch": {}}]))
@example(read_pull_request, html(502))
@LONG
async def test_no_answer_makes_a_tool_that_reads_fail(tool: BaseTool, answer: Answer) -> None:
    with answered(GET=answer):
        told = await tool.ainvoke({"repository": REPOSITORY, "number": 7})

    check_told(told)


@given(answers_like(POST))
@example(html(200))
@example(html(502))
@example(html(400))
@example(said([]))
@example(said({}))
@example(said({"uri": 7}))
@example(said([], 400))
@example(said({"error": ["InvalidSwap"], "message": "\ud800"}, 400))
@example(Answer(200, {}, b""))
@LONG
async def test_a_post_is_told_refused_or_in_doubt(answer: Answer) -> None:
    with answered(POST=answer):
        try:
            told = await post_to_bluesky.ainvoke({"text": "hello"})
        except EgressError as doubt:
            _check_doubt(doubt, answer)
        else:
            check_told(told)
            assert _refused(answer) or told["uri"].startswith("at://")


@given(answers_like(COMMENT), answers_like(COMMENT), answers_like(_USER))
@example(said([]), html(201), said(_USER))
@example(said([]), html(502), said(_USER))
@example(said([]), said([], 201), said(_USER))
@example(said([]), said({**COMMENT, "id": None}, 201), said(_USER))
@example(said([None]), said(COMMENT, 201), said(_USER))
@example(said([COMMENT]), said(COMMENT, 201), said([]))
@example(said([COMMENT]), said(COMMENT, 201), said({}))
@example(said([{**COMMENT, "user": "ann"}]), said(COMMENT, 201), said({}, 403))
@example(said([{**COMMENT, "id": None}]), said({}, 302), said({}, 403))
@LONG
async def test_a_comment_is_told_refused_or_in_doubt(
    listed: Answer, made: Answer, user: Answer
) -> None:
    with answered(GET=listed, POST=made, user=user) as network:
        try:
            told = await post_github_comment.ainvoke(
                {"repository": REPOSITORY, "number": 7, "body": "Nice."}
            )
        except EgressError as doubt:
            # A comment of an earlier try is found in the list, and nothing is posted.
            _check_doubt(doubt, made if "POST" in network.methods else listed)
        else:
            check_told(told)
            told_no = isinstance(told, str)
            assert not told_no or "POST" not in network.methods or _refused(made)


def _refused(answer: Answer) -> bool:
    return 300 <= answer.status < 500


def _check_doubt(doubt: EgressError, answer: Answer) -> None:
    check_told(str(doubt))
    assert doubt.maybe_done
    assert not _refused(answer), "it said that it did nothing"


@given(answers_like(POST))
@LONG
async def test_any_answer_is_one_of_http_request(answer: Answer) -> None:
    with answered(GET=answer):
        told = await http_request.ainvoke({"url": "https://api.github.com/"})

    json.dumps(told, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (post_to_bluesky, {"text": "\ud800 https://a.test"}),
        (http_request, {"url": "https://api.github.com/", "body": "\ud800"}),
        (http_request, {"url": "https://api.github.com/\ud800"}),
        (list_pull_requests, {"repository": "octo/\ud800"}),
        (post_github_comment, {"repository": REPOSITORY, "number": 7, "body": "\ud800"}),
    ],
)
async def test_arguments_that_no_request_can_carry_are_told(
    tool: BaseTool, arguments: dict[str, Any]
) -> None:
    with answered(GET=said([]), POST=said({"message": "Invalid"}, 422)):
        check_told(await tool.ainvoke(arguments))
