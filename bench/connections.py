"""Connections: leases warm and cold, beside the echo limit and the bare query; storms, rotation."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc.aio

from bench.commits import bare_commit_ms
from bench.connections_site import Running, Site, fill, provider, server, site
from bench.echo import METHOD, echo_server
from bench.processes import cpu_seconds, descendants
from bench.report import Report
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from cogni.connections.v1 import key_rotation_pb2
from services.connections.keyring import KeyRing
from services.runtime.ids import new_id
from tests.connections.oauth_server import CLIENT_ID, CLIENT_SECRET

AREA = "connections"
CALLERS = 20
STORM_CALLERS = 80
ROTATION_CALLERS = 4
COLD = 300
#: Calls of one caller in a round.
ALONE = 150
# As many ids of connections as a token of bearable length names.
TOKEN_NAMES = 100


def measure(report: Report, long: bool) -> None:
    rounds, calls = (16, 1000) if long else (8, 600)
    with provider() as oauth, site(oauth) as where:
        with echo_server() as address, server(where, "k1") as running:
            echo = asyncio.run(_warm(report, running, address, rounds, calls))
            asyncio.run(_storm(report, running, oauth))
        ids = asyncio.run(fill(where.database_url, KeyRing("k1", where.ring), COLD))
        with server(where, "k1") as running:
            asyncio.run(_cold(report, running, ids, echo))
        asyncio.run(_rotation(report, where, 1_000_000 if long else 100_000))


@dataclass
class Side:
    """One side of a comparison: a call, its server, and what each round of many calls took."""

    one: Callable[[], Awaitable[None]]
    pid: int
    rates: list[float] = field(default_factory=list)
    loaded: list[list[float]] = field(default_factory=list)
    alone: list[list[float]] = field(default_factory=list)
    server_us: list[float] = field(default_factory=list)

    async def round(self, calls: int) -> None:
        begun, spent = time.perf_counter(), cpu_seconds(self.pid)
        self.loaded.append(await _many(self.one, calls, CALLERS))
        self.rates.append(calls / (time.perf_counter() - begun))
        self.server_us.append((cpu_seconds(self.pid) - spent) / calls * 1e6)
        self.alone.append(await _many(self.one, ALONE, 1))


def _echo_pid() -> int:
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(os.getpid())}
    [pid] = [pid for pid, command in commands.items() if b"bench.echo" in command]
    return pid


async def _many(one: Callable[[], Awaitable[None]], calls: int, callers: int) -> list[float]:
    """Milliseconds of each call."""
    taken: list[float] = []

    async def caller(count: int) -> None:
        for _ in range(count):
            begun = time.perf_counter()
            await one()
            taken.append((time.perf_counter() - begun) * 1000)

    await asyncio.gather(*(caller(calls // callers) for _ in range(callers)))
    return taken


async def _warm(report: Report, running: Running, address: str, rounds: int, calls: int) -> Side:
    """Leases of a connection that was leased before: everything that is remembered is.

    In turns with the echo, since the machine's own speed drifts; returns the echo's side.
    """
    async with running.channel(running.user_token()) as channel:
        request = messages.CreateConnectionRequest(request_id=new_id(), provider="api_key")
        request.secret.api_key.key = "k" * 40
        request.settings["allowed_origins"] = ["https://api.example.com"]
        stub = stubs.ConnectionsServiceStub(channel)
        connection_id = (await stub.CreateConnection(request)).connection.connection_id
    commits: list[float] = []
    async with (
        running.channel(running.run_token(connection_id)) as channel,
        grpc.aio.insecure_channel(address) as bare,
    ):
        call = bare.unary_unary(METHOD)

        async def one_echo() -> None:
            await call(b"x" * 200)

        stub = stubs.ConnectionsServiceStub(channel)
        ours = Side(partial(_lease, stub, connection_id), running.pid)
        echo = Side(one_echo, _echo_pid())
        for side in (ours, echo):
            await _many(side.one, 400, CALLERS)
        for _ in range(rounds):
            await echo.round(calls)
            await ours.round(calls)
            commits.append(await bare_commit_ms(running.site.database_url, ALONE))
    add = partial(report.add, AREA)
    many = f"{CALLERS} callers"
    add(f"grpc.aio echo, {many} (the limit)", "calls/s", echo.rates)
    add(f"warm leases, {many}", "leases/s", ours.rates, peer="echo", peer_values=echo.rates)
    name = f"warm lease, {many}: the server's CPU"
    add(name, "µs", ours.server_us, peer="echo's server", peer_values=echo.server_us)
    name = "warm lease p50, one caller"
    medians = _percentiles(ours.alone, 50)
    add(name, "ms", medians, peer="echo", peer_values=_percentiles(echo.alone, 50))
    add(name, "ms", medians, peer="the bare commit of one row", peer_values=commits)
    for name, leases, calls_ms in (
        ("warm lease p99, one caller", ours.alone, echo.alone),
        (f"warm lease p99, {many}", ours.loaded, echo.loaded),
    ):
        values, peers = _percentiles(leases, 99), _percentiles(calls_ms, 99)
        add(name, "ms", values, peer="echo", peer_values=peers)
    return echo


async def _cold(report: Report, running: Running, ids: Sequence[str], echo: Side) -> None:
    """The first lease of each connection by a server that has just started: it has no connection
    to PostgreSQL, no token, no row and no plan of a statement from before."""
    taken = []
    for first in range(0, len(ids), TOKEN_NAMES):
        named = ids[first : first + TOKEN_NAMES]
        async with running.channel(running.run_token(*named)) as channel:
            stub = stubs.ConnectionsServiceStub(channel)
            for connection_id in named:
                taken += await _many(partial(_lease, stub, connection_id), 1, 1)
    report.add(AREA, "very first lease after a start", "ms", taken[:1])
    for percent in (50, 99):
        peers = _percentiles(echo.alone, percent)
        name = f"cold lease p{percent}, one caller"
        report.add(AREA, name, "ms", _percentiles([taken], percent), peer="echo", peer_values=peers)


async def _lease(stub: stubs.ConnectionsServiceStub, connection_id: str) -> None:
    await stub.LeaseCredential(
        messages.LeaseCredentialRequest(
            connection_id=connection_id, invocation_id=new_id(), tool="bench"
        )
    )


def _percentiles(samples: Sequence[Sequence[float]], percent: int) -> list[float]:
    return [statistics.quantiles(each, n=100)[percent - 1] for each in samples]


async def _storm(report: Report, running: Running, oauth: str) -> None:
    """Many callers meet one expired token: how long until all have the new one."""
    async with running.channel(running.user_token()) as channel:
        stub = stubs.ConnectionsServiceStub(channel)
        taken = []
        for _ in range(3):
            connection_id = await _expired(stub, oauth)
            async with running.channel(running.run_token(connection_id)) as run:
                leases = stubs.ConnectionsServiceStub(run)
                begun = time.perf_counter()
                await _many(partial(_lease, leases, connection_id), STORM_CALLERS, STORM_CALLERS)
                taken.append((time.perf_counter() - begun) * 1000)
    name = f"{STORM_CALLERS} callers of one expired token, provider takes 20 ms"
    report.add(AREA, name, "ms", taken)


async def _expired(stub: stubs.ConnectionsServiceStub, oauth: str) -> str:
    reader, writer = await asyncio.open_connection(*oauth.split(":"))
    writer.write(b"GET /new HTTP/1.0\r\n\r\n")
    answer = (await reader.read()).decode()
    writer.close()
    request = messages.CreateConnectionRequest(request_id=new_id(), provider="oauth2")
    request.secret.oauth_tokens.refresh_token = json.loads(answer.rpartition("\r\n\r\n")[2])
    request.secret.oauth_tokens.client_secret = CLIENT_SECRET
    request.settings["authorization_endpoint"] = f"http://{oauth}/authorize"
    request.settings["token_endpoint"] = f"http://{oauth}/token"
    request.settings["base_url"] = f"http://{oauth}"
    request.settings["client_id"] = CLIENT_ID
    return str((await stub.CreateConnection(request)).connection.connection_id)


async def _rotation(report: Report, where: Site, rows: int) -> None:
    """Every row moves under a new key while callers lease; one failed lease fails the benchmark."""
    ids = await fill(where.database_url, KeyRing("k1", where.ring), rows)
    leased = ids[:: rows // TOKEN_NAMES][:TOKEN_NAMES]
    with server(where, "k2") as running:
        async with (
            running.channel(running.user_token()) as people,
            running.channel(running.run_token(*leased)) as run,
        ):
            rotating = asyncio.create_task(_rotate(stubs.ConnectionsServiceStub(people)))
            taken: list[float] = []
            stub = stubs.ConnectionsServiceStub(run)

            async def lease_on(begin: int) -> None:
                number = begin
                while not rotating.done():
                    one = partial(_lease, stub, leased[number % len(leased)])
                    taken.extend(await _many(one, 1, 1))
                    number += 1

            begun = time.perf_counter()
            await asyncio.gather(*(lease_on(number * 7) for number in range(ROTATION_CALLERS)))
            lasted = time.perf_counter() - begun
            done = await rotating
    if done.failed_rows or done.rotated_rows < rows:
        raise RuntimeError(f"the rotation left rows behind: {done}")
    seconds = done.finish_time.ToDatetime() - done.create_time.ToDatetime()
    name = f"key rotation of {rows:,} rows, leases going on"
    report.add(AREA, name, "rows/s", [rows / seconds.total_seconds()])
    report.add(AREA, "leases during the rotation, none failed", "leases/s", [len(taken) / lasted])
    report.add(AREA, "lease p99 during the rotation", "ms", _percentiles([taken], 99))


async def _rotate(stub: stubs.ConnectionsServiceStub) -> key_rotation_pb2.KeyRotation:
    begun = await stub.RotateKeys(messages.RotateKeysRequest(request_id=new_id()))
    request = messages.GetKeyRotationRequest(rotation_id=begun.rotation.rotation_id)
    while True:
        rotation = (await stub.GetKeyRotation(request)).rotation
        if rotation.state != key_rotation_pb2.KEY_ROTATION_STATE_RUNNING:
            return rotation
        await asyncio.sleep(0.25)
