"""Watchers see what exists, then every change, and can resume."""

from __future__ import annotations

import grpc
import pytest

from cogni.connections.v1 import connection_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from tests.connections.conftest import Service, update_request
from tests.plugins.calls import refused


async def test_watchers_see_what_exists_and_then_every_change_and_can_resume(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    stream = service.user().WatchConnections(messages.WatchConnectionsRequest())
    snapshot = await anext(aiter(stream))
    assert [c.connection.connection_id for c in snapshot.changes] == [bluesky.connection_id]
    begin = await anext(aiter(stream))
    assert begin.cursor

    await service.user().UpdateConnection(update_request(bluesky, "display_name", display_name="X"))
    news = await anext(aiter(stream))
    # Transactions of other tests hold a stream back: what the snapshot told may come once more.
    while [c.connection.display_name for c in news.changes] != ["X"]:
        assert {c.connection.connection_id for c in news.changes} <= {bluesky.connection_id}
        news = await anext(aiter(stream))
    stream.cancel()

    await service.user().DeleteConnection(
        messages.DeleteConnectionRequest(connection_id=bluesky.connection_id)
    )
    resumed = service.user().WatchConnections(messages.WatchConnectionsRequest(cursor=news.cursor))
    gone = await anext(aiter(resumed))
    assert [(c.connection.connection_id, c.deleted) for c in gone.changes] == [
        (bluesky.connection_id, True)
    ]
    resumed.cancel()


async def test_a_stopping_server_ends_watches_with_a_place_to_resume(service: Service) -> None:
    stream = service.user().WatchConnections(messages.WatchConnectionsRequest())
    await anext(aiter(stream))
    service.served.drain.begin()
    message = await anext(aiter(stream))
    while not message.resume:
        message = await anext(aiter(stream))
    assert message.cursor
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await anext(aiter(stream))
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_foreign_cursor_is_refused(service: Service) -> None:
    request = messages.WatchConnectionsRequest(cursor="bm9uc2Vuc2U=")
    assert (await refused(service.user().WatchConnections(request))).reason == "CURSOR_INVALID"
