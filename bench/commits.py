"""The limit every durable write stands beside: one row committed on the same PostgreSQL."""

from __future__ import annotations

import statistics
import time

import asyncpg


async def bare_commit_ms(url: str, commits: int) -> float:
    """Median milliseconds of so many inserts, each a transaction of its own."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE IF NOT EXISTS public.bare (id bigint)")
        taken = []
        for number in range(commits):
            begun = time.perf_counter()
            await connection.execute("INSERT INTO public.bare VALUES ($1)", number)
            taken.append((time.perf_counter() - begun) * 1000)
        return statistics.median(taken)
    finally:
        await connection.close()
