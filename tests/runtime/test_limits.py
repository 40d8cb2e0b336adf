"""What one connection may ask of a server, seen from the wire: streams, message sizes, pings."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio
import pytest

from services.runtime import server
from services.runtime.settings import ServerSettings
from tests.plugins import serving
from tests.plugins.calls import Refusal, feed, refusal_of, refused, watch
from tests.plugins.identities import Identities
from tests.plugins.pets import FeedPetRequest, FeedPetResponse, UnbuiltPets, pet_application
from tests.plugins.serving import Served, ServeService

WAIT_SECONDS = 30
#: Types of HTTP/2 frames (RFC 9113, 6), and the codes that refuse a stream (7).
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
REFUSED_STREAM, ENHANCE_YOUR_CALM = 7, 11
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WATCH_HEALTH = b"/grpc.health.v1.Health/Watch"


class Wire:
    """A connection on which a test writes the frames of HTTP/2 itself, and so keeps no limit."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, served: Served) -> Wire:
        wire = cls(*await asyncio.open_connection(*served.address.split(":")))
        wire._writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        wire.send(SETTINGS)
        return wire

    def send(self, kind: int, flags: int = 0, payload: bytes = b"", stream: int = 0) -> None:
        head = len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4)
        self._writer.write(head + payload)

    def watch_health(self, stream: int) -> None:
        """Open a stream that nobody ends."""
        # Indexed `:method: POST` and `:scheme: http`; the rest in full (RFC 7541, 6).
        headers = b"\x83\x86\x04" + _text(WATCH_HEALTH)
        headers += b"\x0f\x10" + _text(b"application/grpc") + b"\x00" + _text(b"te")
        self.send(HEADERS, END_HEADERS, headers + _text(b"trailers"), stream)
        self.send(DATA, END_STREAM, bytes(5), stream)

    async def receive(self) -> tuple[int, int, int, bytes]:
        """The next frame's type, flags, stream and payload."""
        async with asyncio.timeout(WAIT_SECONDS):
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3]))
        return head[3], head[4], int.from_bytes(head[5:]), payload

    async def until_dropped(self) -> list[int]:
        """The types of all frames that come until the server closes the connection."""
        kinds = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while True:
                kinds.append((await self.receive())[0])
        return kinds

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionResetError):
            await self._writer.wait_closed()


def _text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


class Pets(UnbuiltPets):
    """Feeds until it is let go."""

    def __init__(self) -> None:
        self.feeding = asyncio.Semaphore(0)
        self.let_go = asyncio.Event()
        self.fed = 0

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.fed += 1
        self.feeding.release()
        await self.let_go.wait()
        return FeedPetResponse(name=request.name)


async def test_calls_over_a_connections_limit_wait_and_a_client_that_does_not_is_refused(
    serve_service: ServeService, user: str
) -> None:
    pets = Pets()
    served = await serve_service("ledger", pet_application(pets), max_concurrent_streams=2)
    call = feed(served.channel(user))
    under_way = [asyncio.ensure_future(call(FeedPetRequest(name=str(each)))) for each in range(2)]
    for _ in under_way:
        await asyncio.wait_for(pets.feeding.acquire(), WAIT_SECONDS)

    with pytest.raises(grpc.aio.AioRpcError) as third:
        await call(FeedPetRequest(), timeout=0.2)
    wire = await Wire.open(served)
    for stream in (1, 3, 5):
        wire.watch_health(stream)
    while (frame := await wire.receive())[0] != RST_STREAM:
        pass
    await wire.close()

    assert third.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert pets.fed == 2, "it waited at its client"
    assert frame[2] == 5
    assert int.from_bytes(frame[3]) in (REFUSED_STREAM, ENHANCE_YOUR_CALM)
    pets.let_go.set()
    assert [each.name for each in await asyncio.gather(*under_way)] == ["0", "1"]
    assert (await call(FeedPetRequest(name="later"))).name == "later"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that ping more often than a setting allows, so that tests need not wait."""

    def settings(**changes: Any) -> ServerSettings:
        return as_before(**changes).model_copy(update={"keepalive_seconds": 0.04})

    as_before = serving.server_settings
    monkeypatch.setattr(serving, "server_settings", settings)


async def test_a_quiet_connection_is_pinged_and_may_ping_as_often_itself(
    serve_service: ServeService, often: None
) -> None:
    served = await serve_service("ledger", pet_application(UnbuiltPets()))
    wire = await Wire.open(served)
    answered: list[bytes] = []

    # gRPC forgives two pings that come too soon.
    while len(answered) < 5:
        kind, flags, _, payload = await wire.receive()
        assert kind != GOAWAY, payload
        if kind == PING and flags & ACK:
            answered.append(payload)
        elif kind == PING:
            wire.send(PING, ACK, payload)
            wire.send(PING, payload=b"client %d" % len(answered))

    await wire.close()
    assert answered == [b"client %d" % number for number in range(5)]


async def test_a_connection_that_takes_a_ping_and_does_not_answer_is_dropped(
    serve_service: ServeService, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEPALIVE_TIMEOUT_SECONDS", 0.1)
    served = await serve_service("ledger", pet_application(UnbuiltPets()))
    wire = await Wire.open(served)

    kinds = await wire.until_dropped()

    await wire.close()
    assert kinds[-2:] == [PING, GOAWAY]


class Wordy(UnbuiltPets):
    """Answers with as many letters as it is told."""

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        return FeedPetResponse(name="x" * int(request.name or 0))


async def test_a_message_over_the_limit_is_refused_either_way_and_harms_no_other_call(
    serve_service: ServeService, user: str
) -> None:
    served = await serve_service("ledger", pet_application(Wordy()), max_message_bytes=64 * 1024)
    call = feed(served.channel(user))

    with pytest.raises(grpc.aio.AioRpcError) as taken:
        await call(FeedPetRequest(photo=b"x" * 65 * 1024))
    with pytest.raises(grpc.aio.AioRpcError) as sent:
        await call(FeedPetRequest(name=str(65 * 1024)))

    for refusal, what in ((taken, "Received"), (sent, "Sent")):
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert f"{what} message larger than max" in str(refusal.value.details())
        assert "65536" in str(refusal.value.details())
    assert len((await call(FeedPetRequest(name=str(63 * 1024)))).name) == 63 * 1024


class Watched(UnbuiltPets):
    """Says one word, and no more until the client goes away."""

    async def WatchPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        yield FeedPetResponse(name="here")
        await asyncio.Event().wait()


async def test_a_tenants_streams_are_limited_and_shut_out_nobody_else(
    serve_service: ServeService,
    identities: Identities,
    user: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "TENANT_STREAMS_MAX", 2)
    served = await serve_service("ledger", pet_application(Watched()))
    theirs, ours = served.channel(user), identities.service_token("executor", "ledger", "*")
    held = [await _begun(theirs) for _ in range(2)]

    refusal = await refused(watch(theirs)(FeedPetRequest()))

    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "2 streams per tenant" in refusal.message
    other = served.channel(identities.user_token("other", scopes={"pets:read"}))
    held += [await _begun(other), *[await _begun(served.channel(ours)) for _ in range(3)]]
    held[0].cancel()
    async with asyncio.timeout(WAIT_SECONDS):
        while isinstance(again := await _tried(theirs), Refusal):
            continue
    for each in (*held, again):
        each.cancel()


async def _begun(channel: grpc.aio.Channel) -> Any:
    """A stream whose first message has come."""
    call = watch(channel)(FeedPetRequest())
    assert (await call.read()).name == "here"
    return call


async def _tried(channel: grpc.aio.Channel) -> Any:
    try:
        return await _begun(channel)
    except grpc.aio.AioRpcError as error:
        return refusal_of(error)
