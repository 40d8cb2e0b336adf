"""A server says when it serves, ends its streams before it stops, and keeps its loops running."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from services.runtime.drain import Drain, stream_drained
from services.runtime.health import Health
from services.runtime.loops import Loops
from services.runtime.settings import TelemetrySettings
from services.runtime.telemetry import start_telemetry
from tests.plugins.calls import feed, refusal_of, refused, watch
from tests.plugins.pets import (
    SERVICE,
    FeedPetRequest,
    FeedPetResponse,
    UnbuiltPets,
    pet_application,
)
from tests.plugins.serving import Served, ServeService

WAIT_SECONDS = 30
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Pets(UnbuiltPets):
    """Feeds until it is let go, and watches until the server drains."""

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.feeding = asyncio.Event()
        self.let_go = asyncio.Event()
        self.watching = asyncio.Event()

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.feeding.set()
        await self.let_go.wait()
        return FeedPetResponse(name=request.name)

    async def WatchPet(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield FeedPetResponse(name="first")
        self.watching.set()
        await self.drain.draining.wait()
        yield FeedPetResponse(name="resume here")
        raise stream_drained()


async def check(served: Served, name: str) -> int:
    stub = health_pb2_grpc.HealthStub(served.channel())
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
    return int(answer.status)


async def test_health_needs_no_token_and_knows_each_service_by_name(
    serve_service: ServeService,
) -> None:
    served = await serve_service("ledger", pet_application(UnbuiltPets()))

    assert await check(served, "") == SERVING
    assert await check(served, SERVICE) == SERVING
    stub = health_pb2_grpc.HealthStub(served.channel())
    unknown = await refused(stub.Check(health_pb2.HealthCheckRequest(service="other")))
    assert unknown.code is grpc.StatusCode.NOT_FOUND


async def test_a_drain_says_not_serving_ends_streams_with_a_resume_point_and_waits_for_calls(
    serve_service: ServeService, user: str
) -> None:
    drain = Drain()
    pets = Pets(drain)
    served = await serve_service("ledger", pet_application(pets), drain=drain)
    health = health_pb2_grpc.HealthStub(served.channel()).Watch(health_pb2.HealthCheckRequest())
    assert (await health.read()).status == SERVING
    call = feed(served.channel(user))(FeedPetRequest(name="rex"))
    stream = watch(served.channel(user))(FeedPetRequest())
    await asyncio.wait_for(pets.feeding.wait(), WAIT_SECONDS)
    await asyncio.wait_for(pets.watching.wait(), WAIT_SECONDS)

    stopping = asyncio.create_task(served.server.stop(WAIT_SECONDS))

    assert (await health.read()).status == NOT_SERVING
    assert await health.read() == grpc.aio.EOF
    assert [(await stream.read()).name for _ in range(2)] == ["first", "resume here"]
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await stream.read()
    refusal = refusal_of(ended.value)
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
    assert not stopping.done()
    pets.let_go.set()
    assert (await call).name == "rex"
    await asyncio.wait_for(stopping, WAIT_SECONDS)


class Busy(UnbuiltPets):
    """Feeds quickly, many at once."""

    def __init__(self) -> None:
        self.fed = 0
        self.busy = asyncio.Event()

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        await asyncio.sleep(0)
        self.fed += 1
        if self.fed == 300:
            self.busy.set()
        return FeedPetResponse()


async def test_busy_clients_that_back_off_see_nothing_but_unavailable_in_a_drain(
    serve_service: ServeService, user: str
) -> None:
    pets, drain = Busy(), Drain()
    served = await serve_service("ledger", pet_application(pets), drain=drain)
    call = feed(served.channel(user))

    async def client() -> tuple[int, grpc.StatusCode]:
        for answered in itertools.count():
            try:
                await call(FeedPetRequest(), timeout=WAIT_SECONDS)
            except grpc.aio.AioRpcError as error:
                return answered, error.code()
        raise AssertionError

    clients = [asyncio.create_task(client()) for _ in range(30)]
    await asyncio.wait_for(pets.busy.wait(), WAIT_SECONDS)

    await served.server.stop(WAIT_SECONDS)

    answers = await asyncio.gather(*clients)
    assert {code for _, code in answers} == {grpc.StatusCode.UNAVAILABLE}
    # Every call that was begun was answered.
    assert sum(answered for answered, _ in answers) == pets.fed


async def test_leases_are_handed_back_after_streams_were_told_and_before_the_stop(
    serve_service: ServeService, user: str
) -> None:
    drain = Drain()
    seen: list[tuple[bool, int]] = []

    async def hand_back() -> None:
        # The server still answers here: handing back may itself be a call.
        seen.append((drain.draining.is_set(), await check(served, "")))

    served = await serve_service(
        "ledger", pet_application(UnbuiltPets(), hand_back=hand_back), drain=drain
    )

    await served.server.stop(WAIT_SECONDS)

    assert seen == [(True, NOT_SERVING)]


@pytest.mark.parametrize("hurry", [True, False])
async def test_a_drain_ends_at_its_grace_and_a_second_signal_ends_it_at_once(
    serve_service: ServeService, user: str, hurry: bool
) -> None:
    drain = Drain()
    pets = Pets(drain)
    served = await serve_service("ledger", pet_application(pets), drain=drain)
    call = feed(served.channel(user))(FeedPetRequest())
    await asyncio.wait_for(pets.feeding.wait(), WAIT_SECONDS)

    drain.begin()
    stopping = asyncio.create_task(served.server.stop(1000 if hurry else 0.1))
    if hurry:
        await asyncio.wait({stopping}, timeout=0.05)
        drain.begin()

    await asyncio.wait_for(stopping, WAIT_SECONDS)
    with pytest.raises(grpc.aio.AioRpcError) as cut:
        await asyncio.wait_for(call, WAIT_SECONDS)
    assert cut.value.code() is grpc.StatusCode.UNAVAILABLE


def names_listed(answer: Any) -> list[str]:
    return [each.name for each in answer.list_services_response.service]


@pytest.mark.parametrize("mode", ["open", "authenticated", "off"])
async def test_reflection_is_for_whom_the_setting_says(
    serve_service: ServeService, user: str, mode: str
) -> None:
    served = await serve_service("ledger", pet_application(UnbuiltPets()), reflection=mode)
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel())
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    bearer = (("authorization", f"Bearer {user}"),)

    if mode == "open":
        answers = [each async for each in stub.ServerReflectionInfo(iter([request]))]
        assert SERVICE in names_listed(answers[0])
    elif mode == "authenticated":
        answers = [
            each async for each in stub.ServerReflectionInfo(iter([request]), metadata=bearer)
        ]
        assert SERVICE in names_listed(answers[0])
        refusal = await refused(stub.ServerReflectionInfo(iter([request])))
        assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    else:
        refusal = await refused(stub.ServerReflectionInfo(iter([request]), metadata=bearer))
        assert refusal.code is grpc.StatusCode.UNIMPLEMENTED


async def test_a_loop_that_fails_is_logged_seen_in_health_and_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    health, starts, again = Health(Drain()), 0, asyncio.Event()
    seen: list[int] = []

    async def flaky() -> None:
        nonlocal starts
        starts += 1
        seen.append(health.state("loop.flaky"))
        if starts == 1:
            raise RuntimeError("first time")
        again.set()
        await asyncio.Event().wait()

    telemetry = start_telemetry(TelemetrySettings(), "test")
    loops = Loops({"flaky": flaky}, health, telemetry, backoff_seconds_min=0.01)

    loops.start()
    await asyncio.wait_for(again.wait(), WAIT_SECONDS)

    assert starts == 2
    assert seen == [SERVING, SERVING]
    assert loops.states["flaky"].failures == 1
    assert "loop flaky failed" in caplog.text
    await loops.stop()


async def test_a_loop_that_a_stray_cancellation_ended_starts_again() -> None:
    starts, again = 0, asyncio.Event()

    async def leaky() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            # What grpc.aio raises where it awaits a call that somebody else cancelled.
            raise asyncio.CancelledError
        again.set()
        await asyncio.Event().wait()

    telemetry = start_telemetry(TelemetrySettings(), "test")
    loops = Loops({"leaky": leaky}, Health(Drain()), telemetry, backoff_seconds_min=0.01)

    loops.start()
    await asyncio.wait_for(again.wait(), WAIT_SECONDS)

    assert loops.states["leaky"].failures == 1
    await asyncio.wait_for(loops.stop(), WAIT_SECONDS)


async def test_a_loop_waiting_to_start_again_is_not_serving() -> None:
    health, failed = Health(Drain()), asyncio.Event()

    async def broken() -> None:
        failed.set()
        raise RuntimeError("always")

    telemetry = start_telemetry(TelemetrySettings(), "test")
    loops = Loops({"broken": broken}, health, telemetry, backoff_seconds_min=1000)

    loops.start()
    await asyncio.wait_for(failed.wait(), WAIT_SECONDS)

    assert health.state("loop.broken") == NOT_SERVING
    await loops.stop()


def test_a_server_whose_access_table_misses_an_rpc_does_not_start() -> None:
    application = pet_application(UnbuiltPets(), access={})

    with pytest.raises(Exception, match=f"/{SERVICE}/FeedPet has no access entry"):
        application.check()
