"""The way out: only vetted addresses, bounded answers, and no secret in what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogni.egress_rules import EgressRules, is_public, origin_of
from services.connections.adapters.egress import Egress, EgressLimits
from services.connections.providers.failures import FailureKind, ProviderError
from services.connections.providers.http import get


@asynccontextmanager
async def server(answer: bytes, *, hold: asyncio.Event | None = None) -> AsyncIterator[str]:
    """A server that says `answer` to whoever connects, and then nothing more."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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


async def failure(egress: Egress, url: str) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await egress.send(get(url, bearer="CANARY"))
    await egress.close()
    assert "CANARY" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:db8::1",
    ],
)
def test_no_local_or_special_address_is_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_ordinary_addresses_are_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "ftp://example.com",
        "https://user:pass@example.com",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://exa mple.com",
        "https://example.com:99999",
        "https:///nothing",
        "https://example.com\\@evil.com",
        "file:///etc/passwd",
        "https://example.com/" + "a" * 3000,
    ],
)
def test_such_urls_are_refused_before_any_name_is_resolved(url: str) -> None:
    assert EgressRules().complaint_about_url(url) is not None


@given(st.text(max_size=100))
def test_no_text_makes_the_url_parser_fail_otherwise(text: str) -> None:
    with contextlib.suppress(ValueError):
        origin_of(text)
    EgressRules().complaint_about_url(text)


async def test_a_name_that_leads_inside_is_refused_even_among_public_addresses() -> None:
    async def resolver(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.7"]

    found = await failure(Egress(EgressRules(), resolver=resolver), "https://rebind.example.com")
    assert found.kind is FailureKind.EGRESS_DENIED


async def test_a_name_is_resolved_once_and_what_was_checked_is_what_is_used() -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.7"]])

    async def resolver(host: str, port: int) -> list[str]:
        return next(answers)

    async with server(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}") as address:
        port = address.rpartition(":")[2]
        rules = EgressRules.parse(f"named.test:{port}")
        egress = Egress(rules, resolver=resolver)
        answer = await egress.send(get(f"http://named.test:{port}/"))
        await egress.close()
    assert (answer.status, answer.body) == (200, b"{}")
    assert next(answers) == ["10.0.0.7"], "nobody asked a second time"


async def test_an_answer_without_end_is_cut_off() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n"
    async with server(head + b"x" * 5000) as address:
        limits = EgressLimits(answer_bytes_max=1000)
        egress = Egress(EgressRules.parse(address), limits=limits)
        found = await failure(egress, f"http://{address}/")
    assert (found.kind, found.maybe_done) == (FailureKind.ANSWER_INVALID, True)


async def test_a_silent_server_is_left_in_time_and_may_have_acted() -> None:
    hold = asyncio.Event()
    async with server(b"HTTP/1.1 200 OK\r\n", hold=hold) as address:
        limits = EgressLimits(total=timedelta(seconds=1))
        found = await failure(
            Egress(EgressRules.parse(address), limits=limits), f"http://{address}/"
        )
    assert (found.kind, found.maybe_done) == (FailureKind.UNAVAILABLE, True)


async def test_a_server_that_is_not_there_has_certainly_not_acted() -> None:
    async with server(b"") as address:
        pass
    found = await failure(Egress(EgressRules.parse(address)), f"http://{address}/")
    assert (found.kind, found.maybe_done) == (FailureKind.UNAVAILABLE, False)


async def test_what_is_not_http_is_an_invalid_answer() -> None:
    async with server(b"220 smtp.example.com ESMTP\r\n\r\n") as address:
        found = await failure(Egress(EgressRules.parse(address)), f"http://{address}/")
    assert found.kind is FailureKind.ANSWER_INVALID


async def test_a_redirect_is_handed_back_and_not_followed() -> None:
    redirect = b"HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\n\r\n"
    async with server(redirect) as address:
        egress = Egress(EgressRules.parse(address))
        answer = await egress.send(get(f"http://{address}/"))
        await egress.close()
    assert answer.status == 302
