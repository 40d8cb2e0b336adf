"""Watches of both clients against a server that breaks off: nothing is lost, nothing is endless."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from threading import Event
from typing import Any

import grpc
import pytest

from cogni.client import AsyncClient, Client, ClientSettings
from cogni.client.errors import Cancelled
from cogni.connections.v1 import connections_service_pb2 as connections_pb
from cogni.connections.v1.connection_pb2 import Connection
from cogni.connections.v1.connections_service_pb2_grpc import (
    ConnectionsServiceServicer,
    add_ConnectionsServiceServicer_to_server,
)
from cogni.executor.v1 import executor_service_pb2 as executor_pb
from cogni.executor.v1.executor_service_pb2_grpc import (
    ExecutorServiceServicer,
    add_ExecutorServiceServicer_to_server,
)
from cogni.executor.v1.run_event_pb2 import RunEvent, RunFinished
from cogni.executor.v1.run_pb2 import RunChange

DEADLINE_SECONDS = 30.0
LOG = [RunEvent(seq=1), RunEvent(seq=2, finished=RunFinished())]


@dataclass
class _Executor(ExecutorServiceServicer):
    asked: list[Any] = field(default_factory=list)

    def WatchRun(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.asked.append(request.after_seq)
        if len(self.asked) > 2:
            context.abort(grpc.StatusCode.INTERNAL, "asked again and again")
        if news := LOG[request.after_seq :]:
            yield executor_pb.WatchRunResponse(events=news)

    def WatchRuns(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self.asked.append((request.cursor, request.from_now))
        if request.cursor and request.from_now:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "from_now goes with an empty cursor")
        number = len(self.asked)
        yield executor_pb.WatchRunsResponse(
            changes=[RunChange(run_id=str(number))], cursor=f"c{number}"
        )
        yield executor_pb.WatchRunsResponse(cursor=f"heartbeat{number}")
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops")


class _Connections(ConnectionsServiceServicer):
    def WatchConnections(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        for connection_id in ("existing", "new"):
            change = connections_pb.ConnectionChange(
                connection=Connection(connection_id=connection_id)
            )
            # What exists comes without a cursor, as the service sends it.
            cursor = "" if connection_id == "existing" else "c1"
            yield connections_pb.WatchConnectionsResponse(changes=[change], cursor=cursor)
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "enough")


class _Silent(ExecutorServiceServicer):
    def WatchRun(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        gone = Event()
        context.add_callback(gone.set)
        yield executor_pb.WatchRunResponse(events=LOG[:1])
        gone.wait(DEADLINE_SECONDS)


@contextmanager
def _serving(executor: ExecutorServiceServicer) -> Iterator[ClientSettings]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_ExecutorServiceServicer_to_server(executor, server)  # type: ignore[no-untyped-call]
    add_ConnectionsServiceServicer_to_server(_Connections(), server)  # type: ignore[no-untyped-call]
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        names = ("executor", "scheduler", "connections", "ledger")
        yield ClientSettings(addresses=dict.fromkeys(names, address))
    finally:
        server.stop(None).wait()


Watch = Callable[[Any], Any]


async def _seen(settings: ClientSettings, kind: str, watch: Watch, count: int) -> list[Any]:
    """The first `count` messages of a watch of the blocking or the asynchronous client."""

    def block() -> list[Any]:
        with Client(settings) as client:
            return list(islice(watch(client), count))

    async def follow() -> list[Any]:
        seen: list[Any] = []
        async with AsyncClient(settings) as client, aclosing(watch(client)) as messages:
            async for message in messages:
                seen.append(message)
                if len(seen) == count:
                    break
        return seen

    async with asyncio.timeout(DEADLINE_SECONDS):
        return await (asyncio.to_thread(block) if kind == "blocking" else follow())


BOTH = pytest.mark.parametrize("kind", ["blocking", "asynchronous"])


@BOTH
async def test_watching_a_finished_run_from_its_last_event_ends(kind: str) -> None:
    executor = _Executor()

    with _serving(executor) as settings:
        seen = await _seen(settings, kind, lambda client: client.watch_run("r", after_seq=2), 9)

    assert (seen, executor.asked) == ([], [2])


@BOTH
async def test_a_watch_of_news_alone_goes_on_where_it_broke_off(kind: str) -> None:
    executor = _Executor()
    request = executor_pb.WatchRunsRequest(from_now=True)

    def watch(client: Any) -> AsyncIterator[Any]:
        watching: AsyncIterator[Any] = client.watch(client.executor.WatchRuns, request)
        return watching

    with _serving(executor) as settings:
        seen = await _seen(settings, kind, watch, 2)

    assert [change.run_id for message in seen for change in message.changes] == ["1", "2"]
    assert executor.asked == [("", True), ("heartbeat1", False)]


@BOTH
async def test_what_comes_before_the_first_cursor_is_yielded_too(kind: str) -> None:
    def watch(client: Any) -> AsyncIterator[Any]:
        request = connections_pb.WatchConnectionsRequest()
        watching: AsyncIterator[Any] = client.watch(client.connections.WatchConnections, request)
        return watching

    with _serving(_Executor()) as settings:
        seen = await _seen(settings, kind, watch, 2)

    ids = [change.connection.connection_id for message in seen for change in message.changes]
    assert ids == ["existing", "new"]


async def test_closing_an_asynchronous_client_ends_its_watch_with_a_typed_error() -> None:
    with _serving(_Silent()) as settings:
        client = AsyncClient(settings)
        watch = client.watch_run("r")
        await anext(watch)
        waiting = asyncio.ensure_future(anext(watch))
        # Waits for its next message before the client closes.
        await asyncio.sleep(0)
        await client.close()

        with pytest.raises(Cancelled, match="this client is closed"):
            await asyncio.wait_for(waiting, DEADLINE_SECONDS)


async def test_a_task_that_watches_can_still_be_cancelled() -> None:
    with _serving(_Silent()) as settings:
        async with AsyncClient(settings) as client:
            watch = client.watch_run("r")
            await anext(watch)
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)
            waiting.cancel()

            with pytest.raises(asyncio.CancelledError):
                await waiting


@BOTH
async def test_a_closed_client_says_so(kind: str) -> None:
    request = executor_pb.GetRunRequest(run_id="r")
    with _serving(_Silent()) as settings:
        if kind == "blocking":
            with Client(settings) as client:
                pass
            with pytest.raises(Cancelled, match="this client is closed"):
                client.executor.GetRun(request)
            with pytest.raises(Cancelled, match="this client is closed"):
                next(client.watch_run("r"))
        else:
            async with AsyncClient(settings) as closed:
                pass
            with pytest.raises(Cancelled, match="this client is closed"):
                await closed.executor.GetRun(request)
            with pytest.raises(Cancelled, match="this client is closed"):
                await anext(closed.watch_run("r"))
