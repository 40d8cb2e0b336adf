"""A tool's way out: vetted addresses only, bounded answers, redirects handed back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cogni.egress_rules import EgressRules
from cogni.graph.egress import Egress, EgressError, EgressLimits, egress_allowed_by


@asynccontextmanager
async def server(answer: bytes, *, hold: asyncio.Event | None = None) -> AsyncIterator[str]:
    """host:port of a server that says `answer` to whoever connects, and then nothing more."""

    handled: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handled.append(task)
        # A request that cannot be sent leaves a connection on which nothing comes.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            if hold is not None:
                await hold.wait()
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"127.0.0.1:{port}"
    finally:
        if hold is not None:
            hold.set()
        listening.close()
        await listening.wait_closed()
        # Or their connections would be closed by the garbage collector, in another test.
        await asyncio.wait_for(asyncio.gather(*handled), 10)


async def failure(egress: Egress, url: str) -> EgressError:
    async with egress:
        with pytest.raises(EgressError) as caught:
            await egress.exchange("POST", url, {"authorization": "Bearer CANARY"}, b"CANARY")
    assert "CANARY" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("http://example.com/mcp", ["93.184.216.34"]),
        ("https://169.254.169.254/mcp", []),
        ("https://rebind.example.com/mcp", ["93.184.216.34", "10.0.0.7"]),
    ],
)
async def test_an_address_that_nobody_allowed_is_refused_before_anything_is_sent(
    url: str, addresses: list[str]
) -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return addresses

    found = await failure(Egress(resolver=resolver), url)

    assert "COGNI_RUNNER_EGRESS_ALLOW" in str(found)
    assert not found.maybe_done


async def test_what_the_operator_allowed_is_reached_and_its_redirect_handed_back() -> None:
    redirect = b"HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\n\r\n"
    async with server(redirect) as address:
        with egress_allowed_by(EgressRules.parse(address)):
            async with Egress() as egress:
                answer = await egress.exchange("GET", f"http://{address}/", {})

    assert (answer.status, answer.headers["location"]) == (302, "http://10.0.0.1/")


async def test_an_answer_that_is_too_large_or_never_ends_may_have_been_an_act() -> None:
    large = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000
    async with server(large) as address, server(b"HTTP/1.1", hold=asyncio.Event()) as silent:
        rules = EgressRules.parse(f"{address},{silent}")
        narrow, hasty = EgressLimits(answer_bytes_max=1000), EgressLimits(total_seconds=1)
        too_large = await failure(Egress(narrow, rules=rules), f"http://{address}/")
        too_slow = await failure(Egress(hasty, rules=rules), f"http://{silent}/")

    assert (str(too_large), too_large.maybe_done) == ("The server's answer is too large.", True)
    assert (str(too_slow), too_slow.maybe_done) == ("The server did not answer in time.", True)


@pytest.mark.parametrize(
    ("url", "header"),
    [("https://ex\u00e4mple.com/", "a"), (f"https://{'a' * 64}.com/", "a"), ("", "a\nb")],
)
async def test_what_http_cannot_carry_is_refused_without_quoting_it(url: str, header: str) -> None:
    empty = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    async with (
        server(empty) as address,
        Egress(rules=EgressRules.parse(address)) as egress,
    ):
        spelt = await egress.exchange("GET", f"http://{address}/", {"x-key": "sch\u00f6n"})
        with pytest.raises(EgressError) as caught:
            await egress.exchange("GET", url or f"http://{address}/", {"x-key": header})

    assert spelt.status == 200
    assert "a\nb" not in str(caught.value)
    assert not caught.value.maybe_done


async def test_a_server_that_is_not_there_has_certainly_not_acted() -> None:
    # Bound and not listening: nobody else can take the port meanwhile.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        found = await failure(Egress(rules=EgressRules.parse(address)), f"http://{address}/")

    assert (str(found), found.maybe_done) == ("The server cannot be reached.", False)
