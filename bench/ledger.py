"""Ledger: charges beside the echo limit, bulk beside bare inserts, a hot account beside naive."""

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
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import grpc.aio
import jwt

from bench.echo import echo_rate, echo_server
from bench.embedded import database
from bench.report import Report
from cogni.ledger.v1 import account_pb2, ledger_service_pb2_grpc, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.runtime.ids import new_id
from services.runtime.migrations import migrate

AREA = "ledger"
CALLERS = (1, 16, 64, 256)
BULK_UNITS = 1_000
NAIVE_CONNECTIONS = 16
READY_SECONDS_MAX = 60


@dataclass(frozen=True)
class Running:
    """A Ledger process on a PostgreSQL of its own."""

    address: str
    token: str
    url: str


def measure(report: Report, long: bool) -> None:
    """Add the Ledger's rows."""
    with database() as url:
        migrate(url, "ledger", "services.ledger")
        with echo_server() as echo, _server(url) as running:
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
            yield Running(_address(process, log), _token(secret.read_text()), url)
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
        await ledger.record(_units(account_id, 500))
        hot: list[float] = []
        for callers in CALLERS:
            hot = await _singles(report, ledger, account_id, callers, echo, long)
        naive = await _naive(running.url, 2_000 if long else 300)
        report.add(
            AREA,
            f"one hot account, {CALLERS[-1]} callers",
            "units/s",
            hot,
            peer="one transaction per charge",
            peer_values=[naive],
        )
        await _bulk(report, ledger, running.url, account_id, long)


async def _singles(
    report: Report, ledger: _Ledger, account_id: str, callers: int, echo: str, long: bool
) -> list[float]:
    calls = max(callers * 4, (4_000 if long else 600) if callers > 1 else 100)
    limit = await echo_rate(echo, calls, callers)
    latencies_ms: list[float] = []

    async def caller(units: Sequence[usage_pb2.UsageUnit]) -> None:
        for unit in units:
            started = time.perf_counter()
            await ledger.record([unit])
            latencies_ms.append((time.perf_counter() - started) * 1000)

    share = calls // callers
    work = [_units(account_id, share) for _ in range(callers)]
    started = time.perf_counter()
    await asyncio.gather(*(caller(units) for units in work))
    rate = share * callers / (time.perf_counter() - started)
    name = f"RecordUsage, one unit, {callers} callers"
    report.add(AREA, name, "calls/s", [rate], peer="grpc.aio echo", peer_values=[limit])
    latencies_ms.sort()
    for percent in (50, 99):
        value = latencies_ms[min(len(latencies_ms) - 1, len(latencies_ms) * percent // 100)]
        report.add(AREA, f"{name}, p{percent}", "ms", [value])
    return [rate]


async def _bulk(report: Report, ledger: _Ledger, url: str, account_id: str, long: bool) -> None:
    requests = 50 if long else 5
    work = [_units(account_id, BULK_UNITS) for _ in range(requests)]
    fresh = await _timed(ledger, work)
    bare = await _bare(url, requests)
    report.add(
        AREA, "bulk of 1,000", "units/s", fresh, peer="bare asyncpg unnest", peer_values=bare
    )
    again = await _timed(ledger, work)
    report.add(
        AREA, "the same 1,000 again", "units/s", again, peer="recorded first", peer_values=fresh
    )
    stored = 1_000_000 if long else 20_000
    for _ in range(stored // BULK_UNITS):
        await ledger.record(_units(account_id, BULK_UNITS))
    later = await _timed(ledger, [_units(account_id, BULK_UNITS) for _ in range(requests)])
    report.add(
        AREA,
        f"bulk with {stored:,} more stored",
        "units/s",
        later,
        peer="before them",
        peer_values=fresh,
    )


async def _timed(ledger: _Ledger, work: Sequence[Sequence[usage_pb2.UsageUnit]]) -> list[float]:
    rates = []
    for units in work:
        started = time.perf_counter()
        await ledger.record(units)
        rates.append(len(units) / (time.perf_counter() - started))
    return rates


async def _bare(url: str, requests: int) -> list[float]:
    """Insert rows of the same shape, keys and entries with their indexes, and nothing else."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "bench,ledger"})
    try:
        await connection.execute("CREATE SCHEMA IF NOT EXISTS bench")
        for table in ("entries", "keys"):
            await connection.execute(
                f"CREATE TABLE bench.{table} (LIKE ledger.{table} INCLUDING ALL)"
            )
        rates = []
        for number in range(requests):
            started = time.perf_counter()
            async with connection.transaction():
                await _insert(connection, number * BULK_UNITS)
            rates.append(BULK_UNITS / (time.perf_counter() - started))
        return rates
    finally:
        await connection.close()


async def _insert(connection: asyncpg.Connection, first: int) -> None:
    references = [new_id() for _ in range(BULK_UNITS)]
    await connection.execute(
        """INSERT INTO bench.keys SELECT 'bench', 'bench', r, $2, s, NULL, NULL
           FROM unnest($1::text[], $3::bigint[]) AS u (r, s)""",
        references,
        b"h" * 32,
        list(range(first + 1, first + BULK_UNITS + 1)),
    )
    await connection.execute(
        """INSERT INTO bench.entries
           SELECT 'bench', s, 2, 0, $3, $4, 'USD', 123000000, 5, NULL, now(), now(), 'bench', r,
                  run, 1, NULL, NULL, '', leaf, $5
           FROM unnest($1::text[], $2::bigint[], $6::uuid[], $7::bytea[]) AS u (r, s, run, leaf)""",
        references,
        list(range(first + 1, first + BULK_UNITS + 1)),
        new_id(),
        new_id(),
        b"h" * 32,
        references,
        [secrets.token_bytes(900) for _ in references],
    )


async def _naive(url: str, charges: int) -> float:
    """Charge one account in a transaction per charge, as a program without a writer does."""
    pool = await asyncpg.create_pool(url, min_size=NAIVE_CONNECTIONS, max_size=NAIVE_CONNECTIONS)
    try:
        await pool.execute("CREATE SCHEMA IF NOT EXISTS naive")
        await pool.execute("CREATE TABLE naive.balances (id int PRIMARY KEY, balance numeric)")
        await pool.execute("CREATE TABLE naive.charges (reference uuid PRIMARY KEY, cost numeric)")
        await pool.execute("INSERT INTO naive.balances VALUES (1, 0)")

        async def charge(count: int) -> None:
            for _ in range(count):
                async with pool.acquire() as connection, connection.transaction():
                    await connection.fetchval("SELECT balance FROM naive.balances FOR UPDATE")
                    await connection.execute(
                        "INSERT INTO naive.charges VALUES ($1, 0.000123)", new_id()
                    )
                    await connection.execute(
                        "UPDATE naive.balances SET balance = balance - 0.000123"
                    )

        started = time.perf_counter()
        share = charges // NAIVE_CONNECTIONS
        await asyncio.gather(*(charge(share) for _ in range(NAIVE_CONNECTIONS)))
        return share * NAIVE_CONNECTIONS / (time.perf_counter() - started)
    finally:
        await pool.close()
