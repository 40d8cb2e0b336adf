"""http_request: a leased key goes to its own origins, in its own place, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from langchain_core.tools import BaseTool

from cogni.egress_rules import EgressRules
from cogni.graph import Credential, Effect, http_request, http_request_tool, policy_of
from cogni.graph.egress import EgressError, egress_allowed_by
from cogni.graph.invocation import Invocation, serving

KEY = "key-canary/+="


@dataclass
class Api:
    """A server that remembers what it was sent, and answers by path."""

    address: str = ""
    seen: list[web.BaseRequest] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        self.bodies.append(await request.read())
        match request.path:
            case "/redirect":
                return web.Response(status=302, headers={"location": "http://169.254.169.254/"})
            case "/large":
                return web.Response(body=b"x" * 3000)
            case "/slow":
                await self.release.wait()
                return web.Response()
            case _:
                return web.json_response({"ok": True}, headers={"x-secret": "no", "etag": "e"})

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @contextmanager
    def leased(self, *, allow: bool = True, **fields: str) -> Iterator[None]:
        given = {"key": KEY, "header_name": "X-Key", "allowed_origins": self.url, **fields}
        leased = Credential("api_key", {name: each for name, each in given.items() if each})
        rules = EgressRules.parse(self.address if allow else "")
        with serving(Invocation("inv-1", leased)), egress_allowed_by(rules):
            yield

    async def call(self, path: str = "/", tool: BaseTool = http_request, **arguments: Any) -> Any:
        with self.leased():
            return await tool.ainvoke({"url": f"{self.url}{path}", **arguments})


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    api = Api()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    api.address = f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    yield api
    api.release.set()
    await runner.cleanup()


@pytest.mark.parametrize(
    ("fields", "header", "query"),
    [
        ({}, ("X-Key", KEY), ""),
        ({"header_name": "Authorization", "header_prefix": "Bearer "}, ("Authorization",), ""),
        ({"header_name": "", "query_name": "key"}, (), KEY),
    ],
)
async def test_the_key_goes_where_the_connection_says(
    api: Api, fields: dict[str, str], header: tuple[str, ...], query: str
) -> None:
    with api.leased(**fields):
        arguments = {"url": f"{api.url}/things?a=b"}
        answer = await asyncio.to_thread(http_request.invoke, arguments)

    assert (answer["status"], answer["body"]) == (200, '{"ok": true}')
    assert answer["headers"] == {"content-type": "application/json; charset=utf-8", "etag": "e"}
    (request,) = api.seen
    assert request.query.get("a") == "b"
    assert request.query.get("key", "") == query
    expected = {"X-Key": KEY, "Authorization": f"Bearer {KEY}"}
    assert all(request.headers[name] == expected[name] for name in header[:1])


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/",
        "http://{address}.evil.example/",
        "http://user@{address}/",
        "https://{address}/",
        "http://{address}/#fragment",
        "file:///etc/passwd",
        "http://{address}\\@evil.example/",
    ],
)
async def test_the_key_goes_to_no_other_origin(api: Api, url: str) -> None:
    with api.leased():
        told = await http_request.ainvoke({"url": url.format(address=api.address)})

    assert "may not go there" in told or "the URL " in told
    assert api.seen == []


async def test_a_private_address_is_refused_unless_the_operator_allows_it(api: Api) -> None:
    with api.leased(allow=False):
        told = await http_request.ainvoke({"url": api.url})

    assert "may not call that server" in told
    assert api.seen == []


async def test_a_redirect_is_an_answer_and_is_not_followed(api: Api) -> None:
    answer = await api.call("/redirect")
    with api.leased():
        followed = await http_request.ainvoke({"url": answer["headers"]["location"]})

    assert answer["status"] == 302
    assert "may not go there" in followed
    assert len(api.seen) == 1


async def test_an_answer_that_is_too_large_or_too_slow_is_cut_off(api: Api) -> None:
    assert "too large" in await api.call("/large", http_request_tool(answer_bytes_max=1000))
    assert "in time" in await api.call("/slow", http_request_tool(timeout_seconds=1))


async def test_what_a_request_did_is_not_guessed_at(api: Api) -> None:
    tool = http_request_tool(methods=["POST"], timeout_seconds=1)

    with pytest.raises(EgressError) as lost:
        await api.call("/slow", tool, method="POST", body="{}")

    assert lost.value.maybe_done
    assert KEY not in str(lost.value)


async def test_headers_that_are_not_the_models_are_refused(api: Api) -> None:
    for name, value in (
        ("Host", "evil.example"),
        ("x-key", "mine"),
        ("Transfer-Encoding", "chunked"),
        ("Cookie", "a=b"),
        ("X-A", "a\r\nX-B: c"),
        ("X A", "a"),
        ("X-A", "ä"),
        ("X-A", "a" * 5000),
    ):
        assert "header" in await api.call(headers={name: value})
    assert "at most" in await api.call(headers={f"X-{number}": "" for number in range(30)})
    assert api.seen == []
    await api.call(headers={"Accept": "text/plain"})
    assert api.seen[0].headers["Accept"] == "text/plain"


async def test_only_the_declared_methods_are_done_and_the_header_makes_them_repeatable(
    api: Api,
) -> None:
    writes = http_request_tool("create", methods=["POST"], idempotency_header="Idempotency-Key")

    refused = await api.call(method="POST")
    denied = await api.call(tool=writes, method="POST", headers={"idempotency-key": "x"})
    for _ in range(2):
        await api.call(tool=writes, method="POST", body="{}")

    assert "not allowed" in refused
    assert "not for you" in denied
    assert [each.headers["Idempotency-Key"] for each in api.seen] == ["inv-1", "inv-1"]
    assert api.bodies == [b"{}", b"{}"]
    reads, acts, repeats = (
        policy_of(each) for each in (http_request, http_request_tool("w", methods=["PUT"]), writes)
    )
    assert (reads.effects, acts.effects, repeats.effects) == (
        Effect.NONE,
        Effect.OUTWARD,
        Effect.OUTWARD,
    )
    assert (acts.idempotent, repeats.idempotent) == (False, True)
    assert all(each.untrusted for each in (reads, acts, repeats))
    with pytest.raises(ValueError, match="methods"):
        http_request_tool(methods=["CONNECT"])
    with pytest.raises(ValueError, match="header"):
        http_request_tool(idempotency_header="a b")


async def test_a_bearer_token_goes_to_its_own_api(api: Api) -> None:
    tool = http_request_tool(connection="oauth2")
    leased = Credential("bearer", {"access_token": KEY, "base_url": f"{api.url}/v1"})
    with (
        serving(Invocation("inv-1", leased)),
        egress_allowed_by(EgressRules.parse(api.address)),
    ):
        await tool.ainvoke({"url": f"{api.url}/v1/me"})
        told = await tool.ainvoke({"url": "https://evil.example/v1/me"})

    assert api.seen[0].headers["Authorization"] == f"Bearer {KEY}"
    assert "may not go there" in told
    assert KEY not in told
