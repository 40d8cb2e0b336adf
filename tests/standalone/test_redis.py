"""The embedded Redis keeps what it was told and lets nobody in without the password."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from services.standalone.errors import StandaloneError
from services.standalone.redis import EmbeddedRedis


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(tmp_path / "data with a space")
    yield server
    server.stop()


def test_what_was_written_survives_a_stop_and_a_new_start(server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(server.start()) as client:
        client.set("kept", "42")
    server.stop()

    with redis.Redis.from_url(server.start()) as client:
        assert client.get("kept") == b"42"


def test_what_was_written_survives_kill_9(server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(server.start()) as client:
        client.set("kept", "42")
    assert server.process is not None
    server.process.kill()
    server.process.wait()

    with redis.Redis.from_url(server.start()) as client:
        assert client.get("kept") == b"42"


def test_nobody_gets_in_without_the_password(server: EmbeddedRedis) -> None:
    server.start()

    with (
        redis.Redis(port=server.port or 0, retry=Retry(NoBackoff(), 0)) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_the_password_is_not_among_the_arguments_of_the_process(server: EmbeddedRedis) -> None:
    server.start()

    assert server.process is not None
    arguments = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert server.password.encode() not in arguments


def test_a_requested_port_that_is_taken_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = EmbeddedRedis(tmp_path, port=port)

        with pytest.raises(StandaloneError, match=f"Port {port} for Redis is already in use"):
            server.start()
