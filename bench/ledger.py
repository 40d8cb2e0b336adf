"""Ledger: charges beside the echo limit, bulk beside bare inserts, a hot account beside naive.

Before the last figures a million units are stored, ten million with LONG=1, which takes half an
hour; BENCH_STORED_UNITS says another number.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import jwt

from bench.commits import bare_commit_ms
from bench.echo import echo_rate, echo_server
from bench.embedded import database
from bench.ledger_peers import BARE, bare_inserts, naive_charges, pgbench
from bench.report import Report
from cogni.ledger.v1 import account_pb2, ledger_service_pb2_grpc, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.runtime.ids import new_id
from services.runtime.migrations import migrate

AREA = "ledger"
CALLERS = (1, 16, 64, 256)
BULK_UNITS = 1_000
BULK_CALLERS = 4
FLAT_FROM_UNITS = 10_000
READY_SECONDS_MAX = 60
#: What a RecordUsage of one unit is answered with, headers of gRPC apart.
RESPONSE_BYTES = 55
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Running:
    """A Ledger process on a PostgreSQL of its own."""

    address: str
    token: str
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """What the process has used so far, its threads included."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def measure(report: Report, long: bool) -> None:
    """Add the Ledger's rows."""
    with database() as url:
        migrate(url, "ledger", "services.ledger")
        with echo_server(RESPONSE_BYTES) as echo, _server(url) as running:
            asyncio.run(_measure(report, running, echo, long))


@contextmanager
def _server(url: str) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(prefix="cogni-bench-") as folder:
        secret = Path(folder) / "secret"
        secret.write_text(secrets.token_urlsafe(48))
        log = Path(folder) / "log"
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("COGNI_")},
            "COGNI_LEDGER_DATABASE_URL": url,
            "COGNI_LEDGER_LISTEN": "127.0.0.1:0",
            "COGNI_AUTH_HS256_SECRET_FILE": str(secret),
        }
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.ledger"], env=environ, stderr=sink
            )
        try:
            address = _address(process, log)
            yield Running(address, _token(secret.read_text()), url, process.pid)
        finally:
            process.terminate()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())
        if found and not found.group(1).endswith(":0"):
            return found.group(1)
        time.sleep(0.05)
    raise RuntimeError(f"the Ledger did not start: {log.read_text()[-2000:]}")


def _token(secret: str) -> str:
    claims = {
        "sub": "bench",
        "tenant": "bench",
        "scope": "ledger:read ledger:write ledger:admin",
        "aud": "cogni",
        "exp": datetime.now(UTC) + timedelta(hours=2),
    }
    return jwt.encode(claims, secret, algorithm="HS256")


class _Ledger:
    """Calls of one client process."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._stub: Any = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    async def account(self) -> str:
        request = pb.CreateAccountRequest(
            request_id=new_id(),
            display_name="bench",
            asset="USD",
            kind=account_pb2.ACCOUNT_KIND_FUNDING,
        )
        answer = await self._stub.CreateAccount(request, metadata=self._metadata)
        account_id: str = answer.account.account_id
        return account_id

    async def record(self, units: Sequence[usage_pb2.UsageUnit]) -> None:
        request = pb.RecordUsageRequest(units=units)
        await self._stub.RecordUsage(request, metadata=self._metadata, timeout=60)


def _units(account_id: str, count: int) -> list[usage_pb2.UsageUnit]:
    counts = [usage_pb2.TokenCount(kind=kind, count=1000) for kind in (1, 4)]
    call = usage_pb2.LlmCall(model="m", provider="p", token_counts=counts)
    made = []
    for _ in range(count):
        unit = usage_pb2.UsageUnit(
            source_system="bench",
            source_reference=new_id(),
            run_id=new_id(),
            attempt=1,
            account_id=account_id,
            llm_call=call,
            cost={"asset": "USD", "value": "0.000123"},
        )
        unit.occur_time.GetCurrentTime()
        made.append(unit)
    return made


async def _measure(report: Report, running: Running, echo: str, long: bool) -> None:
    async with grpc.aio.insecure_channel(running.address) as channel:
        ledger = _Ledger(channel, running.token)
        account_id = await ledger.account()
        for _ in range(300):
            await ledger.record(_units(account_id, 1))
        for _ in range(FLAT_FROM_UNITS // BULK_UNITS):
            await ledger.record(_units(account_id, BULK_UNITS))
        rates = _Rates(
            naive=[await naive_charges(running.url, 3_000 if long else 1_000) for _ in range(3)],
            pgbench=[await asyncio.to_thread(pgbench, running.url, 10 if long else 4)],
            bare=await bare_inserts(running.url, 8, BULK_UNITS, await _leaf_bytes(running.url)),
        )
        for callers in CALLERS:
            await _singles(report, running, ledger, account_id, callers, echo, rates, long)
        await _bulk(report, running, ledger, account_id, rates, long)
        await _stored(report, ledger, account_id, long)


@dataclass(frozen=True)
class _Rates:
    """What others charge or insert a second on the same PostgreSQL.

    Each of these, and of ours, is of one hot account.
    """

    naive: list[float]
    pgbench: list[float]
    bare: list[float]

    def beside(self, report: Report, name: str, unit: str, values: Sequence[float]) -> None:
        """Add a row beside each of them."""
        for peer, peer_values in (
            ("one transaction per charge", self.naive),
            ("pgbench, the same transaction", self.pgbench),
            (BARE, self.bare),
        ):
            report.add(AREA, name, unit, values, peer=peer, peer_values=peer_values)


async def _leaf_bytes(url: str) -> int:
    """How long a leaf is, so that the peer's rows are as large."""
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT avg(length(leaf)) FROM ledger.entries"))
    finally:
        await connection.close()


async def _singles(
    report: Report,
    running: Running,
    ledger: _Ledger,
    account_id: str,
    callers: int,
    echo: str,
    others: _Rates,
    long: bool,
) -> None:
    """Calls of one unit each; beside them, in turns, the echo of a message as large."""
    calls = 200 if callers == 1 else 1_500
    share, size = calls // callers, pb.RecordUsageRequest(units=_units(account_id, 1)).ByteSize()
    limits, rates, latencies_ms, cpu_us, commits_ms = [], [], [], [], []

    async def caller(units: Sequence[usage_pb2.UsageUnit]) -> None:
        for unit in units:
            started = time.perf_counter()
            await ledger.record([unit])
            latencies_ms.append((time.perf_counter() - started) * 1000)

    for _ in range(12 if long else 6):
        limits.append(await echo_rate(echo, calls, callers, request_bytes=size))
        work = [_units(account_id, share) for _ in range(callers)]
        started, used = time.perf_counter(), running.cpu_seconds()
        await asyncio.gather(*(caller(units) for units in work))
        rates.append(share * callers / (time.perf_counter() - started))
        cpu_us.append((running.cpu_seconds() - used) / (share * callers) * 1e6)
        if callers == 1:
            commits_ms.append(await bare_commit_ms(running.url, calls))
    name = f"RecordUsage, one unit, {callers} callers"
    report.add(AREA, name, "calls/s", rates, peer="grpc.aio echo", peer_values=limits)
    others.beside(report, name, "calls/s", rates)
    latencies_ms.sort()
    for percent in (50, 99):
        value = latencies_ms[min(len(latencies_ms) - 1, len(latencies_ms) * percent // 100)]
        peer = "the median bare commit of a row" if commits_ms else None
        report.add(AREA, f"{name}, p{percent}", "ms", [value], peer=peer, peer_values=commits_ms)
    report.add(AREA, f"{name}, CPU of the server", "µs/call", cpu_us)


async def _bulk(
    report: Report,
    running: Running,
    ledger: _Ledger,
    account_id: str,
    others: _Rates,
    long: bool,
) -> None:
    """Requests of a thousand units, one caller and several; then the same units again."""
    rounds, requests = (10 if long else 4), 8
    leaf_bytes = await _leaf_bytes(running.url)
    bare, fresh, side_by_side, cpu_us = [], [], [], []
    recorded: list[list[usage_pb2.UsageUnit]] = []
    # In turns: the machine's own speed drifts by more than what is looked for.
    for _ in range(rounds):
        bare += await bare_inserts(running.url, requests, BULK_UNITS, leaf_bytes)
        work = [_units(account_id, BULK_UNITS) for _ in range(requests)]
        used = running.cpu_seconds()
        fresh += await _timed(ledger, work)
        cpu_us.append((running.cpu_seconds() - used) / (requests * BULK_UNITS) * 1e6)
        recorded += work
        side_by_side.append(await _side_by_side(ledger, account_id, requests))
    others = replace(others, bare=bare)
    others.beside(report, "bulk of 1,000, one caller", "units/s", fresh)
    report.add(AREA, "bulk of 1,000, CPU of the server", "µs/unit", cpu_us)
    others.beside(report, f"bulk of 1,000, {BULK_CALLERS} callers", "units/s", side_by_side)
    again = await _timed(ledger, recorded)
    name = "the same 1,000 again"
    report.add(AREA, name, "units/s", again, peer="recorded first", peer_values=fresh)
    others.beside(report, name, "units/s", again)


async def _side_by_side(ledger: _Ledger, account_id: str, requests: int) -> float:
    """Record so many bulks by several callers; return units/s."""
    work = iter([_units(account_id, BULK_UNITS) for _ in range(requests)])

    async def caller() -> None:
        for units in work:
            await ledger.record(units)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(BULK_CALLERS)))
    return requests * BULK_UNITS / (time.perf_counter() - started)


async def _stored(report: Report, ledger: _Ledger, account_id: str, long: bool) -> None:
    """What a unit costs where many are stored; in turns with a Ledger that has stored few."""
    wanted = int(os.environ.get("BENCH_STORED_UNITS", 10_000_000 if long else 1_000_000))
    for _ in range(0, wanted, BULK_UNITS * BULK_CALLERS):
        await _side_by_side(ledger, account_id, BULK_CALLERS)
    few: list[float] = []
    many: list[float] = []
    with database() as url:
        await asyncio.to_thread(migrate, url, "ledger", "services.ledger")
        with _server(url) as young:
            async with grpc.aio.insecure_channel(young.address) as channel:
                beginner = _Ledger(channel, young.token)
                beginners_account = await beginner.account()
                for _ in range(FLAT_FROM_UNITS // BULK_UNITS):
                    await beginner.record(_units(beginners_account, BULK_UNITS))
                for _ in range(10):
                    few += await _cost_us(beginner, beginners_account)
                    many += await _cost_us(ledger, account_id)
    report.add(
        AREA,
        f"a unit of a bulk, {wanted:,} stored",
        "µs",
        many,
        peer=f"{FLAT_FROM_UNITS:,} to {FLAT_FROM_UNITS * 3:,} stored",
        peer_values=few,
    )


async def _cost_us(ledger: _Ledger, account_id: str) -> list[float]:
    work = [_units(account_id, BULK_UNITS) for _ in range(2)]
    return [1e6 / rate for rate in await _timed(ledger, work)]


async def _timed(ledger: _Ledger, work: Sequence[Sequence[usage_pb2.UsageUnit]]) -> list[float]:
    rates = []
    for units in work:
        started = time.perf_counter()
        await ledger.record(units)
        rates.append(len(units) / (time.perf_counter() - started))
    return rates
