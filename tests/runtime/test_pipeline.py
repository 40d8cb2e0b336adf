"""Every call meets the whole pipeline: the right answer, the right refusal, and nothing leaks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from services.runtime.caller import Caller, CallerKind, current_caller
from services.runtime.errors import (
    ErrorKind,
    PeerError,
    Precondition,
    QuotaViolation,
    ServiceError,
    Violation,
    invalid,
)
from services.runtime.telemetry import current_trace_id
from services.runtime.validation import required, text
from tests.plugins.calls import feed, refused, watch
from tests.plugins.identities import Identities
from tests.plugins.pets import (
    FeedPetRequest,
    FeedPetResponse,
    UnbuiltPets,
    pet_application,
)
from tests.plugins.serving import ServeService

CANARY = "canary-8c1f"
WAIT_SECONDS = 30


class Pets(UnbuiltPets):
    """Answers with the caller's subject, or raises what it is told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.callers: list[Caller] = []
        self.traces: list[str] = []
        self.closed = asyncio.Event()
        self.started = asyncio.Event()
        self.pause = False

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.callers.append(current_caller())
        self.traces.append(current_trace_id())
        await self._act()
        return FeedPetResponse(name=current_caller().subject)

    async def WatchPet(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        try:
            for _ in range(3):
                yield FeedPetResponse(name=current_caller().subject)
            await self._act()
        finally:
            self.closed.set()

    async def _act(self) -> None:
        self.started.set()
        try:
            if self.pause:
                await asyncio.Event().wait()
        finally:
            self.closed.set()
        if self.error is not None:
            raise self.error


async def test_a_unary_call_runs_as_its_caller(serve_service: ServeService, user: str) -> None:
    pets = Pets()
    served = await serve_service("ledger", pet_application(pets))

    answer = await feed(served.channel(user))(FeedPetRequest())

    assert answer.name == "alice"
    [caller] = pets.callers
    assert caller.kind is CallerKind.USER
    assert caller.tenant_id == "acme"
    assert caller.scopes == {"pets:read", "pets:write"}


async def test_a_stream_runs_as_its_caller(serve_service: ServeService, user: str) -> None:
    served = await serve_service("ledger", pet_application(Pets()))

    answers = [each.name async for each in watch(served.channel(user))(FeedPetRequest())]

    assert answers == ["alice"] * 3


async def test_a_run_token_carries_the_claims_of_its_attempt(
    serve_service: ServeService, identities: Identities
) -> None:
    pets = Pets()
    served = await serve_service("ledger", pet_application(pets))
    claims = identities.run_claims(epoch=7)

    await feed(served.channel(identities.run_token(claims)))(FeedPetRequest())

    [caller] = pets.callers
    assert caller.run is not None
    assert caller.run.epoch == 7
    assert caller.run.connection_ids == claims.connection_ids


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CANARY),
        ValueError(CANARY),
        NotImplementedError(CANARY),
        KeyError(CANARY),
        PeerError("ledger", ErrorKind.INVALID_ARGUMENT, "X", CANARY),
        asyncio.CancelledError(CANARY),
    ],
)
@pytest.mark.parametrize("stub", [feed, watch])
async def test_what_nobody_foresaw_is_internal_with_a_trace_id_and_leaks_nothing(
    serve_service: ServeService,
    user: str,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    stub: Any,
) -> None:
    served = await serve_service("ledger", pet_application(Pets(error)))

    refusal = await refused(stub(served.channel(user))(FeedPetRequest()))

    assert refusal.code is grpc.StatusCode.INTERNAL
    assert refusal.reason == "INTERNAL"
    assert CANARY not in refusal.message + refusal.trailers
    trace_id = refusal.info.metadata["trace_id"]
    assert len(trace_id) == 32
    assert trace_id in refusal.message
    logged = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert len(logged) == 1
    assert logged[0].exc_info is not None


@pytest.mark.parametrize("stub", [feed, watch])
@pytest.mark.parametrize(
    "error",
    [
        OSError(CANARY),
        ConnectionRefusedError(CANARY),
        TimeoutError(CANARY),
        PeerError("ledger", ErrorKind.UNAVAILABLE, "", CANARY),
    ],
)
async def test_what_cannot_be_reached_is_unavailable_with_a_delay(
    serve_service: ServeService, user: str, error: BaseException, stub: Any
) -> None:
    served = await serve_service("ledger", pet_application(Pets(error)))

    refusal = await refused(stub(served.channel(user))(FeedPetRequest()))

    assert refusal.code is grpc.StatusCode.UNAVAILABLE
    assert refusal.reason == "UNAVAILABLE"
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.seconds == 1
    assert CANARY not in refusal.message + refusal.trailers


async def test_a_refusal_carries_each_of_its_details(
    serve_service: ServeService, user: str
) -> None:
    error = ServiceError(
        ErrorKind.FAILED_PRECONDITION,
        "GRANT_REVOKED",
        "The grant is revoked.",
        metadata={"grant_id": "g1"},
        violations=(Violation("grant_id", "is revoked"),),
        retry_after=timedelta(seconds=2.5),
        preconditions=(Precondition("GRANT", "g1", "must be active"),),
        quota=(QuotaViolation("tenant:acme", "ten a day"),),
    )
    served = await serve_service("ledger", pet_application(Pets(error)))

    refusal = await refused(feed(served.channel(user))(FeedPetRequest()))

    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "GRANT_REVOKED"
    assert refusal.message == "The grant is revoked."
    assert refusal.info.metadata["grant_id"] == "g1"
    [violation] = refusal.detail(error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == ("grant_id", "is revoked")
    assert refusal.detail(error_details_pb2.RetryInfo).retry_delay.nanos == 500_000_000
    [missing] = refusal.detail(error_details_pb2.PreconditionFailure).violations
    assert (missing.type, missing.subject) == ("GRANT", "g1")
    [quota] = refusal.detail(error_details_pb2.QuotaFailure).violations
    assert quota.subject == "tenant:acme"


async def test_an_error_with_endless_violations_still_reaches_the_client(
    serve_service: ServeService, user: str
) -> None:
    endless = invalid(*(Violation(f"units[{i}]." + "ü" * 400, "é" * 400) for i in range(5000)))
    served = await serve_service("ledger", pet_application(Pets(endless)))

    refusal = await refused(feed(served.channel(user))(FeedPetRequest()))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    listed = refusal.detail(error_details_pb2.BadRequest).field_violations
    assert listed[-1].description.endswith("more violations")


async def test_requests_are_validated_before_the_handler_with_all_violations_at_once(
    serve_service: ServeService, user: str
) -> None:
    pets = Pets()
    rules = {FeedPetRequest: (required("request_id"), text("name", max_length=3))}
    served = await serve_service("ledger", pet_application(pets, rules=rules))

    refusal = await refused(feed(served.channel(user))(FeedPetRequest(name="four")))

    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.reason == "INVALID_REQUEST"
    listed = refusal.detail(error_details_pb2.BadRequest).field_violations
    assert [each.field for each in listed] == ["request_id", "name"]
    assert pets.callers == []


async def test_an_unbuilt_method_is_not_implemented_after_the_caller_was_checked(
    serve_service: ServeService, user: str, identities: Identities
) -> None:
    served = await serve_service("ledger", pet_application(UnbuiltPets()))

    built = await refused(feed(served.channel(user))(FeedPetRequest()))
    streamed = await refused(watch(served.channel(user))(FeedPetRequest()))
    anonymous = await refused(feed(served.channel())(FeedPetRequest()))

    assert (built.code, built.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    assert (streamed.code, streamed.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")
    assert anonymous.code is grpc.StatusCode.UNAUTHENTICATED


async def test_an_unknown_method_is_not_implemented(serve_service: ServeService, user: str) -> None:
    served = await serve_service("ledger", pet_application(Pets()))

    refusal = await refused(feed(served.channel(user), "TeleportPet")(FeedPetRequest()))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_IMPLEMENTED")


@pytest.mark.parametrize(
    ("client_seconds", "settings"),
    [
        (None, {"default_deadline_seconds": 0.5}),
        (30.0, {"default_deadline_seconds": 0.01, "max_deadline_seconds": 0.5}),
    ],
)
async def test_the_server_bounds_every_unary_call(
    serve_service: ServeService,
    user: str,
    client_seconds: float | None,
    settings: dict[str, float],
) -> None:
    pets = Pets()
    pets.pause = True
    served = await serve_service("ledger", pet_application(pets), **settings)

    refusal = await refused(feed(served.channel(user))(FeedPetRequest(), timeout=client_seconds))

    assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert refusal.reason == "DEADLINE_EXCEEDED"
    assert pets.closed.is_set()


async def test_streams_are_exempt_from_the_default_deadline(
    serve_service: ServeService, user: str
) -> None:
    pets = Pets()
    pets.pause = True
    served = await serve_service(
        "ledger",
        pet_application(pets),
        default_deadline_seconds=0.01,
        max_deadline_seconds=0.01,
    )
    call = watch(served.channel(user))(FeedPetRequest())

    answers = [await call.read() for _ in range(3)]
    pending = asyncio.ensure_future(call.read())
    done, _ = await asyncio.wait({pending}, timeout=0.2)

    assert len(answers) == 3
    assert not done
    pending.cancel()
    call.cancel()


@pytest.mark.parametrize("stub", [feed, watch])
async def test_a_client_that_goes_away_cancels_its_handler_quietly(
    serve_service: ServeService, user: str, caplog: pytest.LogCaptureFixture, stub: Any
) -> None:
    pets = Pets()
    pets.pause = True
    served = await serve_service("ledger", pet_application(pets))
    call = stub(served.channel(user))(FeedPetRequest())
    await asyncio.wait_for(pets.started.wait(), WAIT_SECONDS)

    call.cancel()

    await asyncio.wait_for(pets.closed.wait(), WAIT_SECONDS)
    assert [each for each in caplog.records if each.levelno >= logging.ERROR] == []


class Endless(UnbuiltPets):
    """Streams without end, and remembers in which task its generator began and was closed."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.closed = asyncio.Event()

    async def WatchPet(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.tasks.append(asyncio.current_task())
        try:
            while True:
                yield FeedPetResponse(name="x" * 1000)
        finally:
            self.tasks.append(asyncio.current_task())
            self.closed.set()


async def test_a_stream_cut_while_it_writes_is_closed_in_its_own_task(
    serve_service: ServeService, user: str
) -> None:
    pets = Endless()
    served = await serve_service("ledger", pet_application(pets))
    call = watch(served.channel(user))(FeedPetRequest())
    await call.read()

    call.cancel()

    await asyncio.wait_for(pets.closed.wait(), WAIT_SECONDS)
    began, closed = pets.tasks
    assert began is closed


async def test_a_call_continues_the_trace_of_its_caller(
    serve_service: ServeService, user: str
) -> None:
    pets = Pets()
    served = await serve_service("ledger", pet_application(pets))
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = (("traceparent", f"00-{trace_id}-00f067aa0ba902b7-01"),)

    await feed(served.channel(user))(FeedPetRequest(), metadata=metadata)
    await feed(served.channel(user))(FeedPetRequest(), metadata=(("traceparent", "nonsense"),))

    assert pets.traces[0] == trace_id
    assert pets.traces[1] not in ("", trace_id)


@pytest.mark.parametrize(
    "metadata",
    [
        (("authorization", "Basic YWxpY2U6"),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer a"), ("authorization", "Bearer b")),
        (("authorization", "Bearer " + "[" * 7000),),
    ],
)
async def test_malformed_authorization_is_an_invalid_token(
    serve_service: ServeService, metadata: tuple[tuple[str, str], ...]
) -> None:
    served = await serve_service("ledger", pet_application(Pets()))

    refusal = await refused(feed(served.channel())(FeedPetRequest(), metadata=metadata))

    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.UNAUTHENTICATED,
        "TOKEN_INVALID",
    )


async def test_across_tenants_only_where_the_table_says_so(
    serve_service: ServeService, identities: Identities
) -> None:
    served = await serve_service("ledger", pet_application(Pets()))
    channel = served.channel(identities.service_token("executor", "ledger", "*"))

    answers = [each async for each in watch(channel)(FeedPetRequest())]
    refusal = await refused(feed(channel)(FeedPetRequest()))

    assert len(answers) == 3
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "CALLER_NOT_ALLOWED",
    )
