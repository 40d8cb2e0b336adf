"""The embedded PostgreSQL survives what happens to it and leaves nothing behind."""

import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from services.standalone import postgres
from services.standalone.errors import StandaloneError
from services.standalone.ports import free_port, require_free
from services.standalone.postgres import START_ATTEMPTS_MAX, EmbeddedPostgres


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "data", durable=False)
    yield server
    server.destroy()


async def fetch(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def test_a_plain_url_reaches_postgresql_18_in_utf8_and_utc(cluster: EmbeddedPostgres) -> None:
    url = cluster.start()

    assert url.startswith("postgresql://cogni:")
    assert str(await fetch(url, "SHOW server_version")).startswith("18")
    assert await fetch(url, "SHOW server_encoding") == "UTF8"
    assert await fetch(url, "SHOW timezone") == "UTC"


async def test_data_survive_a_stop_and_a_new_start(cluster: EmbeddedPostgres) -> None:
    await fetch(cluster.start(), "CREATE TABLE kept AS SELECT 42 AS value")
    cluster.stop()

    again = EmbeddedPostgres(cluster.data_dir, durable=False)
    try:
        assert await fetch(again.start(), "SELECT value FROM kept") == 42
    finally:
        again.stop()


async def test_it_recovers_after_kill_9_though_its_pid_file_names_a_living_process(
    cluster: EmbeddedPostgres,
) -> None:
    await fetch(cluster.start(), "CREATE TABLE kept AS SELECT 42 AS value")
    assert cluster.process is not None
    cluster.process.kill()
    cluster.process.wait()
    pid_file = cluster.cluster_dir / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")

    url = cluster.start()

    assert await fetch(url, "SELECT value FROM kept") == 42


async def test_it_waits_for_orphans_of_a_killed_server_that_are_slow_to_end(
    cluster: EmbeddedPostgres,
) -> None:
    connection = await asyncpg.connect(cluster.start())
    orphan: int = await connection.fetchval("SELECT pg_backend_pid()")
    os.kill(orphan, signal.SIGSTOP)
    assert cluster.process is not None
    cluster.process.kill()
    cluster.process.wait()
    launched: list[int] = []
    launch = cluster.launch

    def launch_and_count() -> subprocess.Popen[bytes]:
        launched.append(1)
        if len(launched) > START_ATTEMPTS_MAX + 1:
            os.kill(orphan, signal.SIGCONT)
        return launch()

    cluster.launch = launch_and_count  # type: ignore[method-assign, assignment]
    try:
        url = cluster.start()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGCONT)

    assert await fetch(url, "SELECT 1") == 1
    assert len(launched) > START_ATTEMPTS_MAX
    connection.terminate()


async def test_a_wrong_password_is_refused(cluster: EmbeddedPostgres) -> None:
    url = cluster.start()

    with pytest.raises(asyncpg.InvalidPasswordError):
        await fetch(url.replace(cluster.password, "guess"), "SELECT 1")


def test_only_this_user_can_read_the_password(cluster: EmbeddedPostgres) -> None:
    cluster.initialise()

    mode = stat.S_IMODE((cluster.data_dir / "postgres.password").stat().st_mode)
    assert mode == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_started_by_root_it_runs_unprivileged_and_opens_no_parent_folder(
    cluster: EmbeddedPostgres, tmp_path: Path
) -> None:
    before = [folder.stat().st_mode for folder in tmp_path.resolve().parents]

    cluster.start()

    assert cluster.process is not None
    assert os.stat(f"/proc/{cluster.process.pid}").st_uid != 0
    assert cluster.cluster_dir.stat().st_mode & 0o077 == 0
    assert [folder.stat().st_mode for folder in tmp_path.resolve().parents] == before


def test_a_data_directory_of_another_version_is_refused_with_a_sentence(
    cluster: EmbeddedPostgres,
) -> None:
    cluster.initialise()
    (cluster.cluster_dir / "PG_VERSION").write_text("15\n")

    with pytest.raises(StandaloneError, match="written by PostgreSQL 15 and this is 18"):
        cluster.start()


def test_a_requested_port_that_is_taken_is_refused_with_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster = EmbeddedPostgres(tmp_path / "data", durable=False, port=port)

        with pytest.raises(StandaloneError, match=f"Port {port} for PostgreSQL is already in use"):
            cluster.start()
    cluster.destroy()


def test_a_killed_server_gets_its_port_back_once_what_is_left_of_it_lets_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = EmbeddedPostgres(tmp_path / "data", durable=False, port=free_port())
    cluster.start()
    assert cluster.process is not None
    cluster.process.kill()
    cluster.process.wait()
    assert cluster.port is not None
    left = socket.create_server(("127.0.0.1", cluster.port))

    def refused_once(port: int, purpose: str) -> int:
        try:
            return require_free(port, purpose)
        finally:
            left.close()

    monkeypatch.setattr(postgres, "require_free", refused_once)
    cluster.start()
    cluster.destroy()


def test_a_directory_in_use_is_refused_with_the_pid(cluster: EmbeddedPostgres) -> None:
    cluster.start()
    assert cluster.process is not None
    second = EmbeddedPostgres(cluster.data_dir, durable=False, stop_seconds=0.1)

    with pytest.raises(
        StandaloneError, match=f"in use by the PostgreSQL with pid {cluster.process.pid}"
    ):
        second.start()


def test_an_initialisation_that_died_halfway_is_started_over(cluster: EmbeddedPostgres) -> None:
    cluster.initialise()
    cluster.cluster_dir.rename(cluster.cluster_dir.with_name("postgres.new"))

    assert cluster.start()


def test_the_server_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    parent = os.fork()
    if parent == 0:
        cluster = EmbeddedPostgres(tmp_path / "data", durable=False)
        cluster.start()
        assert cluster.process is not None
        os.write(write_end, f"{cluster.process.pid}\n".encode())
        signal.pause()
    os.close(write_end)
    server = int(os.read(read_end, 32))
    descriptor = os.pidfd_open(server)

    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)

    assert ended(descriptor, seconds=30)
    EmbeddedPostgres(tmp_path / "data", durable=False).destroy()


def ended(descriptor: int, *, seconds: float) -> bool:
    """Waits until the process behind the pidfd is gone."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
