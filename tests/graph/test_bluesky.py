"""post_to_bluesky: what it sends, and that a retry posts nothing again."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web

from cogni.egress_rules import EgressRules
from cogni.graph import Credential, post_to_bluesky
from cogni.graph.bluesky import ANSWER_BYTES_MAX, link_facets, record_key
from cogni.graph.egress import EgressError, egress_allowed_by
from cogni.graph.invocation import Invocation, serving


@pytest.fixture
async def repository() -> AsyncIterator[tuple[str, dict[str, Any], list[str]]]:
    """A server that knows putRecord: its address, its records, and the tokens it saw."""
    records: dict[str, Any] = {}
    tokens: list[str] = []

    async def put(request: web.Request) -> web.Response:
        body = await request.json()
        tokens.append(request.headers["authorization"])
        if "swapRecord" in body and body["swapRecord"] is None and body["rkey"] in records:
            return web.json_response({"error": "InvalidSwap", "message": "exists"}, status=400)
        if body["record"]["text"] == "forbidden":
            return web.json_response({"error": "NotAllowed", "message": "no"}, status=403)
        if body["record"]["text"] == "moved":
            return web.Response(status=307, headers={"location": str(request.url)})
        if body["record"]["text"] == "large":
            return web.Response(body=b"x" * (ANSWER_BYTES_MAX + 1))
        records[body["rkey"]] = body
        uri = f"at://{body['repo']}/{body['collection']}/{body['rkey']}"
        return web.json_response({"uri": uri, "cid": "bafy"})

    app = web.Application()
    app.router.add_post("/xrpc/com.atproto.repo.putRecord", put)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    yield f"http://127.0.0.1:{port}/", records, tokens
    await runner.cleanup()


@contextmanager
def leased(url: str, invocation_id: str = "inv-1", *, allow: bool = True) -> Iterator[None]:
    """A session at that server, under an operator who allows its address or not."""
    fields = {"access_jwt": "jwt-1", "did": "did:plc:a", "handle": "a.test", "service_url": url}
    rules = EgressRules.parse(url.removeprefix("http://").rstrip("/") if allow else "")
    session = Credential("bluesky_session", fields)
    with serving(Invocation(invocation_id, session)), egress_allowed_by(rules):
        yield


async def test_a_retried_invocation_posts_once_and_answers_the_same(repository: Any) -> None:
    url, records, tokens = repository

    with leased(url):
        first = await post_to_bluesky.ainvoke({"text": "hello https://a.test"})
        # As a graph does that cannot await.
        second = await asyncio.to_thread(post_to_bluesky.invoke, {"text": "hello https://a.test"})

    assert first == second
    assert len(records) == 1
    assert tokens == ["Bearer jwt-1", "Bearer jwt-1"]


async def test_another_invocation_is_another_post(repository: Any) -> None:
    url, records, _ = repository

    for invocation_id in ("inv-1", "inv-2"):
        with leased(url, invocation_id):
            await post_to_bluesky.ainvoke({"text": "hello"})

    assert len(records) == 2


async def test_a_refusal_and_a_long_text_are_told_to_the_model(repository: Any) -> None:
    url, records, _ = repository
    with leased(url):
        refused = await post_to_bluesky.ainvoke({"text": "forbidden"})
        long = await post_to_bluesky.ainvoke({"text": "x" * 301})

    assert "NotAllowed" in refused
    assert "shorten" in long
    assert records == {}


async def test_a_private_address_is_refused_unless_the_operator_allows_it(repository: Any) -> None:
    url, _, tokens = repository
    told = []
    for address in (url, "https://10.0.0.1"):
        with leased(address, allow=False):
            told.append(await post_to_bluesky.ainvoke({"text": "hello"}))
            told.append(await asyncio.to_thread(post_to_bluesky.invoke, {"text": "hello"}))

    assert all("may not call that server" in each for each in told)
    assert tokens == []


async def test_the_surroundings_send_the_token_to_no_proxy(
    repository: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, records, _ = repository
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    with leased(url):
        await post_to_bluesky.ainvoke({"text": "hello"})

    assert len(records) == 1


async def test_a_redirect_is_a_refusal_and_the_token_does_not_follow_it(repository: Any) -> None:
    url, _, tokens = repository
    with leased(url):
        told = await post_to_bluesky.ainvoke({"text": "moved"})

    assert "307" in told
    assert len(tokens) == 1


async def test_an_answer_that_is_too_large_leaves_in_doubt_what_was_done(repository: Any) -> None:
    url, _, _ = repository
    with leased(url), pytest.raises(EgressError, match="too large") as lost:
        await post_to_bluesky.ainvoke({"text": "large"})

    assert lost.value.maybe_done


def test_a_record_key_is_a_valid_tid_and_depends_on_the_invocation_only() -> None:
    keys = {record_key(f"inv-{number}") for number in range(1000)}

    assert len(keys) == 1000
    assert all(re.fullmatch(r"[234567abcdefghij][2-7a-z]{12}", key) for key in keys)
    assert record_key("inv-1") == record_key("inv-1")


def test_links_are_marked_in_bytes() -> None:
    (facet,) = link_facets("é https://a.test/x")

    assert facet["index"] == {"byteStart": 3, "byteEnd": 19}
