"""Calls between services carry who, for whom and in which trace, and their errors are typed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest

from services.runtime import channels
from services.runtime.caller import ALL_TENANTS, Caller, CallerKind, current_caller
from services.runtime.channels import acting_for, service_channel, sync_service_channel
from services.runtime.drain import Drain, stream_drained
from services.runtime.errors import ErrorKind, PeerError, ServiceError, unavailable
from services.runtime.settings import TelemetrySettings
from services.runtime.telemetry import continued, current_trace_id, start_telemetry
from tests.plugins.calls import feed, watch
from tests.plugins.identities import Identities
from tests.plugins.pets import (
    SERVICE,
    FeedPetRequest,
    FeedPetResponse,
    UnbuiltPets,
    pet_application,
)
from tests.plugins.serving import ServeService
from tests.plugins.silent_server import silent_server

WAIT_SECONDS = 30
FEED = f"/{SERVICE}/FeedPet"


class Pets(UnbuiltPets):
    """Remembers who called in which trace, and fails as often as told."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls: list[tuple[Caller, str, float | None]] = []
        self.hanging = False
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.calls.append((current_caller(), current_trace_id(), context.time_remaining()))
        if self.errors:
            raise self.errors.pop(0)
        self.started.set()
        try:
            if self.hanging:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return FeedPetResponse(name="fed")

    async def WatchPet(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.calls.append((current_caller(), current_trace_id(), context.time_remaining()))
        try:
            yield FeedPetResponse(name="first")
            if self.errors:
                raise self.errors.pop(0)
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


@pytest.fixture
async def connect(serve_service: ServeService, identities: Identities) -> AsyncIterator[Any]:
    """`await connect(pets)` serves them as the Ledger and gives the Executor's channel to it."""
    channels: list[grpc.aio.Channel] = []

    async def open_channel(pets: Pets, **options: Any) -> grpc.aio.Channel:
        served = await serve_service("ledger", pet_application(pets))
        tokens = identities.service_tokens("executor")
        channels.append(service_channel(served.address, "ledger", tokens, **options))
        return channels[-1]

    yield open_channel
    for each in channels:
        await each.close()


async def test_a_call_carries_the_services_token_for_the_tenant_and_the_person(
    connect: Any,
) -> None:
    pets = Pets()
    channel = await connect(pets)

    with acting_for("acme", on_behalf_of="alice"):
        assert (await feed(channel)(FeedPetRequest())).name == "fed"

    [(caller, _, _)] = pets.calls
    assert caller == Caller(
        CallerKind.SERVICE,
        "service:executor",
        "acme",
        service="executor",
        on_behalf_of="alice",
    )


async def test_a_watch_may_be_for_all_tenants(connect: Any) -> None:
    pets = Pets()
    channel = await connect(pets)

    with acting_for(ALL_TENANTS):
        stream = watch(channel)(FeedPetRequest())
        await stream.read()
        stream.cancel()

    [(caller, _, remaining)] = pets.calls
    assert caller.tenant_id == "*"
    assert remaining is None


async def test_a_call_may_bring_its_own_token(connect: Any, identities: Identities) -> None:
    pets = Pets()
    channel = await connect(pets)
    bearer = (("authorization", f"Bearer {identities.run_token()}"),)

    await feed(channel)(FeedPetRequest(), metadata=bearer)

    assert pets.calls[0][0].kind is CallerKind.RUN


async def test_a_call_for_no_tenant_is_a_programming_error(connect: Any) -> None:
    channel = await connect(Pets())
    with pytest.raises(RuntimeError, match="acting_for"):
        await feed(channel)(FeedPetRequest())


async def test_a_call_is_part_of_the_callers_trace_and_has_a_deadline(connect: Any) -> None:
    pets = Pets()
    channel = await connect(pets, default_deadline=timedelta(seconds=7))
    tracer = start_telemetry(TelemetrySettings(), "executor").tracer

    with continued(tracer, "work", {}), acting_for("acme"):
        trace_id = current_trace_id()
        await feed(channel)(FeedPetRequest())
        await feed(channel)(FeedPetRequest(), timeout=3)

    assert [each[1] for each in pets.calls] == [trace_id, trace_id]
    deadlines = [each[2] for each in pets.calls]
    assert deadlines[0] is not None
    assert deadlines[1] is not None
    # gRPC rounds a deadline up on the wire.
    assert 6 < deadlines[0] < 7.5
    assert 2 < deadlines[1] < 3.5


@pytest.mark.parametrize("stub", [feed, watch])
async def test_a_peers_refusal_is_a_typed_error(connect: Any, stub: Any) -> None:
    refusal = ServiceError(
        ErrorKind.FAILED_PRECONDITION,
        "ACCOUNT_CLOSED",
        "The account is closed.",
        metadata={"account_id": "a1"},
        retry_after=timedelta(seconds=3),
    )
    channel = await connect(Pets(refusal))

    with pytest.raises(PeerError) as refused, acting_for("acme"):
        await consume(stub(channel)(FeedPetRequest()))

    error = refused.value
    assert (error.service, error.kind) == ("ledger", ErrorKind.FAILED_PRECONDITION)
    assert (error.reason, error.message) == ("ACCOUNT_CLOSED", "The account is closed.")
    assert error.metadata["account_id"] == "a1"
    assert error.retry_after == timedelta(seconds=3)


async def consume(call: Any) -> None:
    if not hasattr(call, "__aiter__"):
        await call
        return
    async for _ in call:
        pass


@pytest.mark.parametrize("stub", [feed, watch])
async def test_a_peer_that_is_not_there_is_unavailable_without_a_reason(
    identities: Identities, stub: Any
) -> None:
    tokens = identities.service_tokens("executor")
    async with service_channel("127.0.0.1:1", "ledger", tokens) as channel:
        with pytest.raises(PeerError) as refused, acting_for("acme"):
            await consume(stub(channel)(FeedPetRequest()))

    assert (refused.value.kind, refused.value.reason) == (ErrorKind.UNAVAILABLE, "")


async def test_only_safe_methods_are_tried_again(connect: Any) -> None:
    safe, unsafe = Pets(unavailable("no")), Pets(unavailable("no"))
    repeating = await connect(safe, safe_methods=[FEED])
    careful = await connect(unsafe)

    with acting_for("acme"):
        assert (await feed(repeating)(FeedPetRequest())).name == "fed"
        with pytest.raises(PeerError):
            await feed(careful)(FeedPetRequest())

    assert (len(safe.calls), len(unsafe.calls)) == (2, 1)


async def test_cancelling_a_call_reaches_the_peer(connect: Any) -> None:
    pets = Pets()
    pets.hanging = True
    channel = await connect(pets)

    async def call() -> None:
        with acting_for("acme"):
            await feed(channel)(FeedPetRequest())

    calling = asyncio.create_task(call())
    await asyncio.wait_for(pets.started.wait(), WAIT_SECONDS)
    calling.cancel()

    with pytest.raises(asyncio.CancelledError):
        await calling
    await asyncio.wait_for(pets.cancelled.wait(), WAIT_SECONDS)


async def test_leaving_a_stream_ends_it_at_the_peer(connect: Any) -> None:
    pets = Pets()
    channel = await connect(pets)

    with acting_for("acme"):
        stream = watch(channel)(FeedPetRequest())
        async for _ in stream:
            break
        stream.cancel()

    await asyncio.wait_for(pets.cancelled.wait(), WAIT_SECONDS)


async def test_a_drained_stream_is_unavailable_with_a_short_delay(connect: Any) -> None:
    channel = await connect(Pets(stream_drained()))

    with pytest.raises(PeerError) as ended, acting_for("acme"):
        await consume(watch(channel)(FeedPetRequest()))

    assert ended.value.kind is ErrorKind.UNAVAILABLE
    assert ended.value.retry_after == timedelta(milliseconds=200)


async def test_a_thread_calls_without_an_event_loop(
    serve_service: ServeService, identities: Identities
) -> None:
    pets = Pets(ServiceError(ErrorKind.ABORTED, "LEASE_LOST", "gone"))
    served = await serve_service("ledger", pet_application(pets), drain=Drain())
    tokens = identities.service_tokens("executor")

    def work() -> tuple[PeerError, str]:
        with (
            sync_service_channel(served.address, "ledger", tokens) as channel,
            acting_for("acme"),
        ):
            with pytest.raises(PeerError) as refused:
                feed(channel)(FeedPetRequest())
            return refused.value, feed(channel)(FeedPetRequest()).name

    error, name = await asyncio.to_thread(work)

    assert (error.kind, error.reason, name) == (ErrorKind.ABORTED, "LEASE_LOST", "fed")
    assert pets.calls[1][0].service == "executor"


async def test_a_peer_that_has_stopped_answering_is_given_up(
    identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "KEEPALIVE_SECONDS", 0.1)
    monkeypatch.setattr(channels, "KEEPALIVE_TIMEOUT_SECONDS", 0.1)
    async with (
        silent_server() as address,
        service_channel(address, "ledger", identities.service_tokens("executor")) as channel,
    ):
        with acting_for("acme"), pytest.raises(PeerError) as lost:
            await feed(channel)(FeedPetRequest(), timeout=WAIT_SECONDS)

    assert lost.value.kind is ErrorKind.UNAVAILABLE
