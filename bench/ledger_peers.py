"""What the Ledger's figures stand beside on the same PostgreSQL: bare inserts, naive charges."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import asyncpg

from services.runtime.ids import new_id
from services.standalone.wheels import postgres_home

NAIVE_CONNECTIONS = 16
BARE = "bare asyncpg unnest of the same rows"
_CENTS = "0.000123"
_NAIVE_TABLES = """
CREATE SCHEMA IF NOT EXISTS naive;
DROP TABLE IF EXISTS naive.balances, naive.charges;
CREATE TABLE naive.balances (id int PRIMARY KEY, balance numeric);
CREATE TABLE naive.charges (reference uuid PRIMARY KEY, cost numeric);
INSERT INTO naive.balances VALUES (1, 0);
"""
_PGBENCH_SCRIPT = f"""
BEGIN;
SELECT balance FROM naive.balances WHERE id = 1 FOR UPDATE;
INSERT INTO naive.charges VALUES (gen_random_uuid(), {_CENTS});
UPDATE naive.balances SET balance = balance - {_CENTS} WHERE id = 1;
END;
"""
_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


async def bare_inserts(url: str, batches: int, batch_rows: int, leaf_bytes: int) -> list[float]:
    """Rows/s of inserts of the same shape, keys and entries with their indexes, nothing else."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "bench,ledger"})
    try:
        await connection.execute("CREATE SCHEMA IF NOT EXISTS bench")
        for table in ("entries", "keys"):
            await connection.execute(
                f"CREATE TABLE IF NOT EXISTS bench.{table} (LIKE ledger.{table} INCLUDING ALL)"
            )
            await connection.execute(f"TRUNCATE bench.{table}")
        rates = []
        for number in range(batches):
            rows = _Rows(number * batch_rows, batch_rows, leaf_bytes)
            started = time.perf_counter()
            async with connection.transaction():
                await rows.insert(connection)
            rates.append(batch_rows / (time.perf_counter() - started))
        return rates
    finally:
        await connection.close()


class _Rows:
    """A batch of rows, made before the clock runs."""

    def __init__(self, first: int, count: int, leaf_bytes: int) -> None:
        self.references = [new_id() for _ in range(count)]
        self.runs = [new_id() for _ in range(count)]
        self.sequences = list(range(first + 1, first + count + 1))
        self.leaves = [secrets.token_bytes(leaf_bytes) for _ in range(count)]
        self.hashes = [secrets.token_bytes(32) for _ in range(count)]

    async def insert(self, connection: asyncpg.Connection) -> None:
        await connection.execute(
            """INSERT INTO bench.keys SELECT 'bench', 'bench', r, h, s, NULL, NULL
               FROM unnest($1::text[], $2::bytea[], $3::bigint[]) AS u (r, h, s)""",
            self.references,
            self.hashes,
            self.sequences,
        )
        await connection.execute(
            """INSERT INTO bench.entries
               SELECT 'bench', s, 2, 0, $3, $4, 'USD', 123000000, 5, NULL, now(), now(), 'bench',
                      r, run, 1, NULL, NULL, '', leaf, h
               FROM unnest($1::text[], $2::bigint[], $5::uuid[], $6::bytea[], $7::bytea[])
                    AS u (r, s, run, leaf, h)""",
            self.references,
            self.sequences,
            new_id(),
            new_id(),
            self.runs,
            self.leaves,
            self.hashes,
        )


async def naive_charges(url: str, charges: int) -> float:
    """Charges/s of one account in a transaction per charge, as a program without a writer does."""
    pool = await asyncpg.create_pool(url, min_size=NAIVE_CONNECTIONS, max_size=NAIVE_CONNECTIONS)
    try:
        await pool.execute(_NAIVE_TABLES)

        async def charge(count: int) -> None:
            for _ in range(count):
                async with pool.acquire() as connection, connection.transaction():
                    await connection.fetchval(
                        "SELECT balance FROM naive.balances WHERE id = 1 FOR UPDATE"
                    )
                    await connection.execute(
                        f"INSERT INTO naive.charges VALUES ($1, {_CENTS})", new_id()
                    )
                    await connection.execute(
                        f"UPDATE naive.balances SET balance = balance - {_CENTS} WHERE id = 1"
                    )

        started = time.perf_counter()
        share = charges // NAIVE_CONNECTIONS
        await asyncio.gather(*(charge(share) for _ in range(NAIVE_CONNECTIONS)))
        return share * NAIVE_CONNECTIONS / (time.perf_counter() - started)
    finally:
        await pool.close()


def pgbench(url: str, seconds: int) -> float:
    """Transactions/s of real pgbench charging one account the same way.

    After `naive_charges`, which makes the tables. Raises RuntimeError when there is no pgbench.
    """
    shipped = postgres_home() / "bin" / "pgbench"
    program = str(shipped) if shipped.exists() else shutil.which("pgbench")
    if program is None:
        raise RuntimeError("there is no pgbench beside PostgreSQL's programs or on the PATH")
    with tempfile.TemporaryDirectory(prefix="cogni-bench-") as folder:
        script = Path(folder) / "charge.sql"
        script.write_text(_PGBENCH_SCRIPT)
        printed = subprocess.run(
            [
                *(program, "--no-vacuum", "--protocol=prepared", f"--file={script}"),
                *(f"--client={NAIVE_CONNECTIONS}", "--jobs=2", f"--time={seconds}", url),
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = _TPS.search(printed)
    if found is None:
        raise RuntimeError(f"pgbench printed no rate: {printed[-500:]}")
    return float(found.group(1))
