"""The limit every RPC figure stands beside: a grpc.aio server that sends back what it got."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

METHOD = "/cogni.bench.Echo/Echo"
_WARM_UP_CALLS_MIN = 200


async def serve(response_bytes: int) -> None:
    """Serves on a free port, prints it, and runs until killed.

    Answers with so many bytes, or with what it got when that is 0.
    """
    answer = b"x" * response_bytes

    async def echo(request: bytes, context: object) -> bytes:
        return answer or request

    server = grpc.aio.server()
    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("cogni.bench.Echo", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


@contextmanager
def echo_server(response_bytes: int = 0) -> Iterator[str]:
    """An echo server in a process of its own, as the measured servers are; its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.echo", str(response_bytes)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def echo_rate(
    address: str, calls: int, concurrency: int, *, request_bytes: int = 200
) -> float:
    """Calls per second with this many callers on one channel."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        payload = b"x" * request_bytes

        async def caller(count: int) -> None:
            for _ in range(count):
                await call(payload)

        share = max(1, calls // concurrency)
        warm_up = max(1, _WARM_UP_CALLS_MIN // concurrency)
        await asyncio.gather(*(caller(warm_up) for _ in range(concurrency)))
        started = time.perf_counter()
        await asyncio.gather(*(caller(share) for _ in range(concurrency)))
        return share * concurrency / (time.perf_counter() - started)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
