"""The asyncio client: the same as the blocking one, awaited."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from cogni.client.catalogue import CATALOGUE
from cogni.client.channel import call_metadata, options, tls_credentials
from cogni.client.errors import CogniError, client_closed, from_rpc_error
from cogni.client.settings import ClientSettings
from cogni.client.streams import Reconnecting, resumed_at
from cogni.client.sync import CursorRequest, CursorResponse
from cogni.client.values import to_struct
from cogni.executor.v1.executor_service_pb2 import StartRunRequest, WatchRunRequest
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import Run

if TYPE_CHECKING:
    # These stub types exist for type checkers only.
    from cogni.connections.v1.connections_service_pb2_grpc import ConnectionsServiceAsyncStub
    from cogni.executor.v1.executor_service_pb2_grpc import ExecutorServiceAsyncStub
    from cogni.executor.v1.grant_service_pb2_grpc import GrantServiceAsyncStub
    from cogni.ledger.v1.ledger_service_pb2_grpc import LedgerServiceAsyncStub
    from cogni.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub
    from cogni.scheduler.v1.trigger_service_pb2_grpc import TriggerServiceAsyncStub

Response = TypeVar("Response", bound=CursorResponse)


class AsyncClient:
    """A connection to Cogni from one event loop. Use it as an async context manager, or close it.

    As `Client`, with every call awaited and every stream an async iterator.
    """

    executor: ExecutorServiceAsyncStub
    grants: GrantServiceAsyncStub
    scheduler: SchedulerServiceAsyncStub
    triggers: TriggerServiceAsyncStub
    connections: ConnectionsServiceAsyncStub
    ledger: LedgerServiceAsyncStub

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self.settings = settings or ClientSettings.from_environment()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closed = False
        for service in CATALOGUE:
            channel = self._channel(service.server)
            stub = getattr(service.stubs, service.stub_name)(channel)
            setattr(self, service.attribute, _Calls(stub, service.descriptor.methods_by_name, self))

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls under way, which raise Cancelled, and make no more."""
        self._closed = True
        for channel in self._channels.values():
            await channel.close()

    async def start_run(
        self,
        graph_id: str,
        grant_id: str,
        input: Mapping[str, Any] | None = None,
        *,
        request_id: str | None = None,
        thread_id: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Run:
        """Starts a run of a graph under a grant. Repeating it with the same request_id is safe."""
        request = StartRunRequest(
            request_id=request_id or str(uuid.uuid4()),
            graph_id=graph_id,
            grant_id=grant_id,
            input=to_struct(input or {}),
            thread_id=thread_id,
            labels=labels or {},
        )
        return (await self.executor.StartRun(request)).run

    async def watch_run(self, run_id: str, *, after_seq: int = 0) -> AsyncIterator[RunEvent]:
        """Yields the run's events in order, each once, up to the one that ends the run.

        Resumes as `Client.watch_run` does.
        """
        reconnecting = Reconnecting()
        while True:
            broken: CogniError | None = None
            resume = False
            stream = self.executor.WatchRun(WatchRunRequest(run_id=run_id, after_seq=after_seq))
            try:
                async for batch in stream:
                    reconnecting.received()
                    resume = batch.resume
                    for event in batch.events:
                        after_seq = event.seq
                        yield event
                        if event.HasField("finished"):
                            return
            except CogniError as error:
                broken = error
            finally:
                # An abandoned call is never collected by grpc; cancelling it frees it.
                stream.cancel()
            if broken is None and not resume:
                # The log ends where `after_seq` was already.
                return
            await asyncio.sleep(reconnecting.wait_seconds(broken))

    async def watch(
        self, method: Callable[[Any], AsyncIterator[Response]], request: CursorRequest
    ) -> AsyncIterator[Response]:
        """Yields the messages of a stream over many items for ever, resuming by cursor.

        As `Client.watch`.
        """
        reconnecting = Reconnecting()
        cursor = request.cursor
        while True:
            broken: CogniError | None = None
            stream = method(resumed_at(request, cursor))
            try:
                async for message in stream:
                    reconnecting.received()
                    cursor = message.cursor
                    if message.changes:
                        yield message
            except CogniError as error:
                broken = error
            finally:
                cast(_Stream, stream).cancel()
            await asyncio.sleep(reconnecting.wait_seconds(broken))

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """Raise what goes wrong inside as a CogniError."""
        if self._closed:
            raise client_closed()
        try:
            yield
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except asyncio.CancelledError:
            # A channel that closes cancels its calls; only a task that somebody cancelled may be
            # told so by this exception.
            task = asyncio.current_task()
            if self._closed and task is not None and not task.cancelling():
                raise client_closed() from None
            raise

    def _channel(self, server: str) -> grpc.aio.Channel:
        if server not in self._channels:
            address = self.settings.addresses[server]
            described = [service.descriptor for service in CATALOGUE if service.server == server]
            credentials = tls_credentials(self.settings)
            self._channels[server] = (
                grpc.aio.insecure_channel(address, options(described))
                if credentials is None
                else grpc.aio.secure_channel(address, credentials, options(described))
            )
        return self._channels[server]


class _Calls:
    """One service's RPCs with the client's token, timeout and errors around each."""

    def __init__(
        self, stub: object, methods: Mapping[str, MethodDescriptor], client: AsyncClient
    ) -> None:
        self._stub = stub
        self._methods = methods
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._methods:
            raise AttributeError(name)
        call = getattr(self._stub, name)
        client, settings = self._client, self._client.settings

        # The timeout is gRPC's own deadline: it travels to the server with the call.
        async def unary(request: Message, *, timeout: float | None = None) -> Message:  # noqa: ASYNC109
            with client._typed_errors():
                return cast(
                    Message,
                    await call(
                        request,
                        timeout=settings.timeout_seconds if timeout is None else timeout,
                        metadata=call_metadata(settings),
                    ),
                )

        def streaming(request: Message, *, timeout: float | None = None) -> _Stream:
            with client._typed_errors():
                begun = call(request, timeout=timeout, metadata=call_metadata(settings))
            return _Stream(begun, client)

        chosen = streaming if self._methods[name].server_streaming else unary
        setattr(self, name, chosen)
        return chosen


class _Stream:
    """A server's stream whose errors are typed."""

    def __init__(self, call: Any, client: AsyncClient) -> None:
        self._call = call
        self._client = client
        self._messages = aiter(call)

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> Any:
        with self._client._typed_errors():
            return await anext(self._messages)

    def cancel(self) -> None:
        self._call.cancel()
