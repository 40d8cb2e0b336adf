"""Executor: StartRun beside the echo limit; first event and runs/s beside two peers."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.echo import echo_rate, echo_server
from bench.embedded import GRAPHS, Embedded, database, embedded
from bench.peers.langgraph_dev import langgraph_dev
from bench.report import Report
from cogni.client import AsyncClient
from cogni.executor.v1.executor_service_pb2 import StartRunRequest
from cogni.executor.v1.grant_service_pb2 import CreateGrantRequest
from tools.peers import python_environment, run

AREA = "executor"
CONCURRENCY = 20
DBOS_REQUIREMENTS = ("dbos==3.4.0", "langgraph==1.2.22", "psycopg[binary]==3.3.9")


def measure(report: Report, long: bool) -> None:
    repeats, runs = (5, 400) if long else (3, 100)
    with echo_server() as address:
        echo = [asyncio.run(echo_rate(address, 2000, CONCURRENCY)) for _ in range(repeats)]
        serial = [asyncio.run(echo_rate(address, 500, 1)) for _ in range(repeats)]
    report.add(AREA, f"grpc.aio echo, {CONCURRENCY} callers (the limit)", "calls/s", echo)
    with embedded() as stack:
        ours = asyncio.run(_ours(report, stack, repeats, runs, echo, serial))
    _beside_langgraph_dev(report, ours, repeats, runs)
    _beside_dbos(report, ours, repeats, runs)


@dataclass(frozen=True)
class Ours:
    """What was measured of ours, for the rows that name a peer."""

    first_event_ms: list[float]
    runs_per_second: list[float]


async def _ours(
    report: Report,
    stack: Embedded,
    repeats: int,
    runs: int,
    echo: list[float],
    serial: list[float],
) -> Ours:
    async with AsyncClient(stack.settings()) as client:
        grant_id = await create_grant(client)
        await _throughput(client, grant_id, CONCURRENCY)
        latencies = [await _start_latency_ms(client, grant_id) for _ in range(50)]
        report.add(
            AREA,
            "StartRun, one caller",
            "ms",
            [statistics.median(latencies)],
            peer="echo, one caller",
            peer_values=[1000 / rate for rate in serial],
        )
        rates = [await _start_rate(client, grant_id, runs) for _ in range(repeats)]
        report.add(
            AREA,
            f"StartRun, {CONCURRENCY} callers",
            "calls/s",
            rates,
            peer="echo",
            peer_values=echo,
        )
        await _until_idle(client, grant_id)
        firsts = [await _first_event_ms(client, grant_id) for _ in range(20)]
        throughputs = [await _throughput(client, grant_id, runs) for _ in range(repeats)]
        return Ours([statistics.median(firsts)], throughputs)


async def create_grant(client: AsyncClient) -> str:
    request = CreateGrantRequest(request_id=str(uuid.uuid4()), graphs=["graph:execute:noop"])
    return (await client.grants.CreateGrant(request)).grant.grant_id


def _request(grant_id: str) -> StartRunRequest:
    return StartRunRequest(request_id=str(uuid.uuid4()), graph_id="noop", grant_id=grant_id)


async def _start_latency_ms(client: AsyncClient, grant_id: str) -> float:
    started = time.perf_counter()
    await client.executor.StartRun(_request(grant_id))
    return (time.perf_counter() - started) * 1000


async def _start_rate(client: AsyncClient, grant_id: str, calls: int) -> float:
    async def caller() -> None:
        for _ in range(calls // CONCURRENCY):
            await client.executor.StartRun(_request(grant_id))

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CONCURRENCY)))
    return calls // CONCURRENCY * CONCURRENCY / (time.perf_counter() - started)


async def _until_idle(client: AsyncClient, grant_id: str) -> None:
    """Runs are taken in order, so one run to its end means that the queue is empty."""
    run_started = await client.start_run("noop", grant_id)
    async for _ in client.watch_run(run_started.run_id):
        pass


async def _first_event_ms(client: AsyncClient, grant_id: str) -> float:
    """From StartRun's call to the first event that the graph itself caused."""
    started = time.perf_counter()
    begun = await client.start_run("noop", grant_id)
    events = client.watch_run(begun.run_id)
    async for event in events:
        if event.WhichOneof("event") in ("node_started", "state_updated"):
            elapsed = (time.perf_counter() - started) * 1000
            break
    async for _ in client.watch_run(begun.run_id, after_seq=event.seq):
        pass
    return elapsed


async def _throughput(client: AsyncClient, grant_id: str, runs: int) -> float:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one() -> None:
        async with slots:
            begun = await client.start_run("noop", grant_id)
            async for _ in client.watch_run(begun.run_id):
                pass

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(runs)))
    return runs / (time.perf_counter() - started)


def _beside_langgraph_dev(report: Report, ours: Ours, repeats: int, runs: int) -> None:
    with langgraph_dev(GRAPHS.parent) as url:
        rates = [asyncio.run(_peer_throughput(url, runs)) for _ in range(repeats)]
        firsts = [asyncio.run(_peer_first_event_ms(url)) for _ in range(10)]
    peer = "langgraph dev (in memory)"
    report.add(
        AREA,
        "first event of a run",
        "ms",
        ours.first_event_ms,
        peer=peer,
        peer_values=[statistics.median(firsts)],
    )
    report.add(
        AREA,
        f"no-op graph, {CONCURRENCY} at once",
        "runs/s",
        ours.runs_per_second,
        peer=peer,
        peer_values=rates,
    )


PEER_RUN = {"assistant_id": "noop", "input": {"count": 0}}


async def _peer_throughput(url: str, runs: int) -> float:
    slots = asyncio.Semaphore(CONCURRENCY)
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:

        async def one() -> None:
            async with slots:
                (await client.post("/runs/wait", json=PEER_RUN)).raise_for_status()

        await one()
        started = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(runs)))
        return runs / (time.perf_counter() - started)


async def _peer_first_event_ms(url: str) -> float:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        started = time.perf_counter()
        body = {**PEER_RUN, "stream_mode": ["updates"]}
        async with client.stream("POST", "/runs/stream", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("event: updates"):
                    return (time.perf_counter() - started) * 1000
    raise RuntimeError("the peer sent no event")


def _beside_dbos(report: Report, ours: Ours, repeats: int, runs: int) -> None:
    python = python_environment("dbos", *DBOS_REQUIREMENTS)
    rates = []
    with database() as url:
        for _ in range(repeats):
            script = Path(__file__).parent / "peers" / "dbos_noop.py"
            environment = {"PYTHONPATH": str(GRAPHS.parent)}
            printed = run([python, script, url, str(runs), str(CONCURRENCY)], env=environment)
            rates.append(json.loads(printed.splitlines()[-1])["runs_per_second"])
    report.add(
        AREA,
        f"no-op graph, {CONCURRENCY} at once",
        "runs/s",
        ours.runs_per_second,
        peer="DBOS (PostgreSQL)",
        peer_values=rates,
    )
