"""The order in which every call passes: observe, answer errors, authenticate, admit, validate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio

from services.runtime.access import Access
from services.runtime.caller import Caller, acting_as
from services.runtime.cancellation import asked_to_end
from services.runtime.drain import Drain, stopping
from services.runtime.errors import ServiceError
from services.runtime.interceptors.authentication import Gatekeeper
from services.runtime.interceptors.observation import Call, Metadata, Observer
from services.runtime.interceptors.status import (
    STATUS_DETAILS_KEY,
    code_of,
    deadline_exceeded,
    not_implemented,
    service_error,
    to_status,
    unforeseen,
)
from services.runtime.interceptors.timeout import Timeout
from services.runtime.logs import log_context
from services.runtime.streams import StreamShare
from services.runtime.validation import RuleSet

_log = logging.getLogger(__name__)

_UNIMPLEMENTED = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNIMPLEMENTED.value[0])

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Unary = Callable[[Any, Context], Awaitable[Any]]
Stream = Callable[[Any, Context], AsyncIterator[Any]]


@dataclass(frozen=True, slots=True)
class Deadlines:
    """What bounds a unary call at the server: its own deadline, within a maximum."""

    default_seconds: float
    max_seconds: float

    def of(self, context: Context) -> float:
        """Seconds this call may still take."""
        remaining = context.time_remaining()
        wanted = self.default_seconds if remaining is None else remaining
        return min(wanted, self.max_seconds)


class Pipeline(grpc.aio.ServerInterceptor):
    """One interceptor for all of it: each method is wrapped once, at its first call.

    A chain of interceptors would build a new handler per call and layer.
    """

    def __init__(
        self,
        observer: Observer,
        gatekeeper: Gatekeeper,
        rules: RuleSet,
        deadlines: Deadlines,
        streams: StreamShare,
        drain: Drain,
    ) -> None:
        self._observer = observer
        self._gatekeeper = gatekeeper
        self._rules = rules
        self._deadlines = deadlines
        self._streams = streams
        self._drain = drain
        #: How many calls came after the drain began.
        self.refused_by_drain = 0
        #: Bounded by the number of registered methods.
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The wrapped handler of the method."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return self._unknown_method(method)
            wrapped = self._wrapped[method] = self._wrap(method, handler)
        return wrapped

    def _unknown_method(self, method: str) -> Handler:
        async def refuse(request: Any, context: Context) -> Any:
            with self._observer.call("unknown method", ()) as call:
                await _refuse(context, not_implemented(), call)

        return grpc.unary_unary_rpc_method_handler(refuse)

    def _wrap(self, method: str, handler: Handler) -> Handler:
        if handler.request_streaming and handler.response_streaming:
            # Only reflection streams both ways; its requests have no rules.
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, cast(Stream, handler.stream_stream)),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.request_streaming:
            raise TypeError(f"{method} streams its requests, which this server does not guard")
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, cast(Stream, handler.unary_stream)),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, cast(Unary, handler.unary_unary)),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unary(self, method: str, behaviour: Unary) -> Unary:
        is_open, access = self._gatekeeper.is_open(method), self._gatekeeper.access(method)

        async def serve(request: Any, context: Context) -> Any:
            metadata = _metadata(context)
            with self._observer.call(method, metadata) as call:
                seconds = self._deadlines.of(context)
                timeout = Timeout(seconds)
                try:
                    with timeout:
                        if is_open:
                            return await behaviour(request, context)
                        caller = await self._admit(access, metadata, call)
                        with acting_as(caller), log_context(tenant_id=caller.tenant_id):
                            self._rules.check(request)
                            return await behaviour(request, context)
                except BaseException as error:
                    if isinstance(error, TimeoutError) and timeout.expired:
                        error = deadline_exceeded(round(seconds, 3))
                    await _refuse(context, error, call)

        return serve

    def _stream(self, method: str, behaviour: Stream) -> Unary:
        is_open, access = self._gatekeeper.is_open(method), self._gatekeeper.access(method)

        # A coroutine that writes, rather than a generator: when the client goes away while a
        # message is on its way, the handler's own generator is closed here and now, in this
        # task, instead of by the garbage collector in another.
        async def serve(request: Any, context: Context) -> None:
            metadata = _metadata(context)
            with self._observer.call(method, metadata) as call:
                try:
                    if is_open:
                        await _copy(behaviour(request, context), context)
                        return
                    caller = await self._admit(access, metadata, call)
                    with acting_as(caller), log_context(tenant_id=caller.tenant_id):
                        self._rules.check(request)
                        with self._streams.held(caller.tenant_id):
                            await _copy(behaviour(request, context), context)
                except BaseException as error:
                    await _refuse(context, error, call)

        return serve

    async def _admit(self, access: Access | None, metadata: Metadata, call: Call) -> Caller:
        if self._drain.draining.is_set():
            self.refused_by_drain += 1
            raise stopping()
        caller = await self._gatekeeper.admit(access, metadata)
        call.admitted(caller)
        return caller


def _metadata(context: Context) -> Metadata:
    return tuple(context.invocation_metadata() or ())


async def _copy(responses: AsyncIterator[Any], context: Context) -> None:
    async with aclosing(responses):  # type: ignore[type-var]  # always an async generator
        async for response in responses:
            await context.write(response)


async def _refuse(context: Context, error: BaseException, call: Call) -> NoReturn:
    """Ends the call with the status that `error` means; raises what grpc.aio expects to see."""
    if _is_for_grpc(error):
        call.ended("CANCELLED")
        raise error
    answer = _answer(context, error)
    if answer is None:
        _log.error("unforeseen failure in %s", call.method, exc_info=error)
        answer = unforeseen(call.trace_id)
    status = to_status(answer, call.trace_id)
    code = code_of(answer)
    call.ended(code.name)
    await context.abort(code, status.message, ((STATUS_DETAILS_KEY, status.SerializeToString()),))


def _is_for_grpc(error: BaseException) -> bool:
    """Whether grpc.aio must see the error as it is: an abort, a cancelled call, a dying process."""
    if isinstance(error, asyncio.CancelledError):
        # A CancelledError that nobody asked this task for leaks out of something the handler
        # awaited. grpc.aio would end the call without a status, and the client would hang.
        return asked_to_end()
    return isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception)


def _answer(context: Context, error: BaseException) -> ServiceError | None:
    # The generated base servicers set this code before they raise; a NotImplementedError from
    # anywhere else is a defect like any other.
    if isinstance(error, NotImplementedError) and context.code() in _UNIMPLEMENTED:
        return not_implemented()
    return service_error(error)
