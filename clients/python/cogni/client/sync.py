"""The blocking client: every RPC of the four services, and watches that resume by themselves."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from cogni.client.catalogue import CATALOGUE
from cogni.client.channel import call_metadata, options, tls_credentials
from cogni.client.errors import CogniError, client_closed, from_rpc_error
from cogni.client.settings import ClientSettings
from cogni.client.streams import Reconnecting, resumed_at
from cogni.client.values import to_struct
from cogni.connections.v1.connections_service_pb2_grpc import ConnectionsServiceStub
from cogni.executor.v1.executor_service_pb2 import StartRunRequest, WatchRunRequest
from cogni.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from cogni.executor.v1.grant_service_pb2_grpc import GrantServiceStub
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import Run
from cogni.ledger.v1.ledger_service_pb2_grpc import LedgerServiceStub
from cogni.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from cogni.scheduler.v1.trigger_service_pb2_grpc import TriggerServiceStub


class CursorResponse(Protocol):
    """A message of a stream over many items, as WatchRuns, WatchSlots and others send."""

    cursor: str
    resume: bool

    @property
    def changes(self) -> Sequence[Any]:
        """What changed; none in a sign of life."""


class CursorRequest(Protocol):
    """The request of such a stream."""

    cursor: str


Response = TypeVar("Response", bound=CursorResponse)


class Client:
    """A connection to Cogni. Use it as a context manager, or close it.

    Each attribute has the RPCs of one gRPC service with the contract's own names and messages:
    `client.executor.GetRun(GetRunRequest(run_id=...))`. Calls raise a CogniError, carry the
    caller's token, end after `settings.timeout_seconds` unless `timeout=` says otherwise, and are
    repeated by the channel only where the contract makes that harmless. Safe to share between
    threads. After a fork, make a new one.
    """

    executor: ExecutorServiceStub
    grants: GrantServiceStub
    scheduler: SchedulerServiceStub
    triggers: TriggerServiceStub
    connections: ConnectionsServiceStub
    ledger: LedgerServiceStub

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self.settings = settings or ClientSettings.from_environment()
        self._channels: dict[str, grpc.Channel] = {}
        self._closed = False
        for service in CATALOGUE:
            channel = self._channel(service.server)
            stub = getattr(service.stubs, service.stub_name)(channel)
            setattr(self, service.attribute, _Calls(stub, service.descriptor.methods_by_name, self))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all calls under way, which raise Cancelled, and make no more."""
        self._closed = True
        for channel in self._channels.values():
            channel.close()

    def start_run(
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
        return self.executor.StartRun(request).run

    def watch_run(self, run_id: str, *, after_seq: int = 0) -> Iterator[RunEvent]:
        """Yields the run's events in order, each once, up to the one that ends the run.

        Broken connections and restarting servers are bridged: it goes on after the last event
        that was yielded. Raises a CogniError when nothing could be read for two minutes.
        """
        reconnecting = Reconnecting()
        while True:
            broken: CogniError | None = None
            resume = False
            stream = self.executor.WatchRun(WatchRunRequest(run_id=run_id, after_seq=after_seq))
            try:
                for batch in stream:
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
            time.sleep(reconnecting.wait_seconds(broken))

    def watch(
        self, method: Callable[[Any], Iterator[Response]], request: CursorRequest
    ) -> Iterator[Response]:
        """Yields the messages of a stream over many items for ever, resuming by cursor.

        `client.watch(client.executor.WatchRuns, WatchRunsRequest(from_now=True))`. Keep the
        `cursor` of the last message that was handled to go on in another process. Heartbeats are
        not yielded. Raises a CogniError when nothing could be read for two minutes.
        """
        reconnecting = Reconnecting()
        cursor = request.cursor
        while True:
            broken: CogniError | None = None
            stream = method(resumed_at(request, cursor))
            try:
                for message in stream:
                    reconnecting.received()
                    cursor = message.cursor
                    if message.changes:
                        yield message
            except CogniError as error:
                broken = error
            finally:
                cast(grpc.Call, stream).cancel()
            time.sleep(reconnecting.wait_seconds(broken))

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        """Raise what goes wrong inside as a CogniError."""
        if self._closed:
            raise client_closed()
        try:
            yield
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None
        except ValueError:
            # gRPC's own word, when another thread closed the client a moment ago.
            if self._closed:
                raise client_closed() from None
            raise

    def _channel(self, server: str) -> grpc.Channel:
        if server not in self._channels:
            address = self.settings.addresses[server]
            described = [service.descriptor for service in CATALOGUE if service.server == server]
            credentials = tls_credentials(self.settings)
            self._channels[server] = (
                grpc.insecure_channel(address, options(described))
                if credentials is None
                else grpc.secure_channel(address, credentials, options(described))
            )
        return self._channels[server]


class _Calls:
    """One service's RPCs with the client's token, timeout and errors around each."""

    def __init__(
        self, stub: object, methods: Mapping[str, MethodDescriptor], client: Client
    ) -> None:
        self._stub = stub
        self._methods = methods
        self._client = client

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self._methods:
            raise AttributeError(name)
        call = getattr(self._stub, name)
        client, settings = self._client, self._client.settings

        def unary(request: Message, *, timeout: float | None = None) -> Message:
            with client._typed_errors():
                return cast(
                    Message,
                    call(
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

    def __init__(self, call: Any, client: Client) -> None:
        self._call = call
        self._client = client

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Any:
        with self._client._typed_errors():
            return next(self._call)

    def cancel(self) -> None:
        self._call.cancel()
