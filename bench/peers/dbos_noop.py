"""Runs inside the peer's own environment: the no-op graph as DBOS workflows, and its figures.

Usage: dbos_noop.py DATABASE_URL RUNS CONCURRENCY; prints one JSON object.
"""

import asyncio
import json
import sys
import time

from dbos import DBOS, DBOSConfig
from noop import graph


@DBOS.step()
async def run_graph(number: int) -> dict:
    return await graph.ainvoke({"count": number})


@DBOS.workflow()
async def workflow(number: int) -> dict:
    return await run_graph(number)


async def measure(runs: int, concurrency: int) -> dict:
    slots = asyncio.Semaphore(concurrency)
    latencies = []

    async def one(number: int) -> None:
        async with slots:
            started = time.perf_counter()
            handle = await DBOS.start_workflow_async(workflow, number)
            await handle.get_result()
            latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(one(number) for number in range(concurrency)))
    latencies.clear()
    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(runs)))
    seconds = time.perf_counter() - started
    latencies.sort()
    return {
        "runs_per_second": runs / seconds,
        "latency_ms_p50": latencies[len(latencies) // 2] * 1000,
    }


def main() -> None:
    url, runs, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config: DBOSConfig = {"name": "bench", "system_database_url": url, "run_admin_server": False}
    DBOS(config=config)
    DBOS.launch()
    result = asyncio.run(measure(runs, concurrency))
    DBOS.destroy()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
