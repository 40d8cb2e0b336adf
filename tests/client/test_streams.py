"""Resuming a broken stream: when to call again, how long to wait, when to give up."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest

from cogni.client.errors import NotFound, Unavailable
from cogni.client.streams import WAIT_SECONDS_MAX, Reconnecting


def gone(retry_after: timedelta | None = None) -> Unavailable:
    return Unavailable("gone", code=grpc.StatusCode.UNAVAILABLE, retry_after=retry_after)


def test_a_stream_that_ended_in_good_order_is_called_again_at_once() -> None:
    assert Reconnecting().wait_seconds(None) == 0.0


def test_waits_double_up_to_their_bound() -> None:
    reconnecting = Reconnecting(spread=lambda: 1.0)

    waits = [reconnecting.wait_seconds(gone()) for _ in range(8)]

    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, WAIT_SECONDS_MAX, WAIT_SECONDS_MAX]


def test_a_message_makes_the_next_wait_short_again() -> None:
    reconnecting = Reconnecting(spread=lambda: 1.0)
    for _ in range(5):
        reconnecting.wait_seconds(gone())

    reconnecting.received()

    assert reconnecting.wait_seconds(gone()) == 0.1


def test_the_servers_own_delay_is_respected() -> None:
    reconnecting = Reconnecting(spread=lambda: 0.0)

    assert reconnecting.wait_seconds(gone(timedelta(seconds=2))) == 2.0


def test_silence_is_bounded() -> None:
    reconnecting = Reconnecting(silence_seconds_max=1.0, spread=lambda: 1.0)

    for _ in range(4):
        reconnecting.wait_seconds(gone())

    with pytest.raises(Unavailable):
        reconnecting.wait_seconds(gone())


def test_a_refusal_is_not_retried() -> None:
    with pytest.raises(NotFound):
        Reconnecting().wait_seconds(NotFound("no", code=grpc.StatusCode.NOT_FOUND))
