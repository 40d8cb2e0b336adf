"""kill -9 of two Ledgers and of their PostgreSQL under load: what was acknowledged is stored, once.

After all kills: every acknowledged unit is recorded, each key is charged once, money was moved,
held and paid once for each request, balances equal the sum of postings, the exported log verifies
offline, and PostgreSQL never met a deadlock, although both Ledgers get the same keys in opposite
order all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogni.client.ledger_verify import verify_export
from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import ledger_service_pb2_grpc
from services.runtime.migrations import migrate
from services.standalone.postgres import EmbeddedPostgres
from tests.chaos.ledger_traffic import (
    BATCH,
    COST,
    EXISTS,
    FUNDS,
    Load,
    acknowledge,
    balance_of,
    found,
    move_money,
    pay_from_holds,
    run_runs,
    send_pairs,
    send_singles,
)
from tests.ledger.conftest import ALL_SCOPES
from tests.plugins.identities import Identities

LONG = bool(os.environ.get("LONG"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
KILLS = int(os.environ.get("KILLS") or (300 if LONG else 6))
LEDGERS = 2
CALLERS = 8
# Each sends one batch to both Ledgers at once, to one of them backwards.
PAIRS = 3
SETTLE_SECONDS_MAX = 120


@dataclass
class Stack:
    """One PostgreSQL and the Ledger processes on it, any of which may be killed."""

    postgres: EmbeddedPostgres
    environ: dict[str, str]
    addresses: list[str]
    log: Path
    ledgers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_ledger(self, which: int) -> None:
        environ = {**self.environ, "COGNI_LEDGER_LISTEN": self.addresses[which]}
        with self.log.open("ab") as sink:
            self.ledgers[which] = subprocess.Popen(
                [sys.executable, "-m", "services.ledger"], env=environ, stderr=sink
            )

    def kill_ledger(self, which: int) -> None:
        self.ledgers[which].kill()
        self.ledgers[which].wait()

    def supervise(self) -> None:
        """Start again what ended by itself: a Ledger that finds no database when it starts."""
        for which, process in self.ledgers.items():
            if process.poll() is not None:
                self.start_ledger(which)

    def kill_postgres(self) -> None:
        self.check_for_deadlocks()
        process = self.postgres.process
        assert process is not None
        # The postmaster alone: its children notice and end, as after an out-of-memory kill.
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.postgres.start()

    def check_for_deadlocks(self) -> None:
        """Its callers are told to retry; here even that must not happen."""
        written = (self.postgres.data_dir / "postgres.log").read_text(errors="replace")
        assert "deadlock detected" not in written, f"SEED={SEED}"


def quiet_port() -> int:
    """A free port that stays ours while its server is dead: who asks for any gets one above."""
    for port in random.sample(range(10_000, 30_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


@pytest.fixture
def stack(identities: Identities) -> Iterator[Stack]:
    """Both processes running, their files gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cogni-kills-"))
    postgres = EmbeddedPostgres(folder / "postgres", durable=False, port=quiet_port())
    url = postgres.start()
    migrate(url, "ledger", "services.ledger")
    addresses = [f"127.0.0.1:{quiet_port()}" for _ in range(LEDGERS)]
    environ = {
        **os.environ,
        **identities.environ(),
        "COGNI_LEDGER_DATABASE_URL": url,
        "COGNI_LEDGER_LOG_KEY_FILE": str(identities.folder / "ledger.pem"),
    }
    running = Stack(postgres, environ, addresses, folder / "ledger.log")
    for which in range(LEDGERS):
        running.start_ledger(which)
    try:
        yield running
    finally:
        for which in range(LEDGERS):
            running.kill_ledger(which)
        # Shown by pytest when the test failed.
        print(running.log.read_text()[-20_000:])
        postgres.destroy()
        shutil.rmtree(folder)


@asynccontextmanager
async def stub_of(
    address: str, token: Callable[[], str]
) -> AsyncIterator[ledger_service_pb2_grpc.LedgerServiceStub]:
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]

    def bearing(details: Any, seconds: float) -> grpc.aio.ClientCallDetails:
        # A new token each time: the long form outlives any of them.
        metadata = grpc.aio.Metadata(("authorization", f"Bearer {token()}"))
        return grpc.aio.ClientCallDetails(details.method, seconds, metadata, None, True)

    class _Bearer(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
            return await continuation(bearing(details, 10.0), request)

    class _StreamBearer(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation, details, request):  # type: ignore[no-untyped-def]
            return await continuation(bearing(details, 60.0), request)

    async with grpc.aio.insecure_channel(
        address, options=options, interceptors=[_Bearer(), _StreamBearer()]
    ) as channel:
        yield ledger_service_pb2_grpc.LedgerServiceStub(channel)


async def grow(stack: Stack, load: Load, count: int) -> None:
    """Wait until that many more units are acknowledged: the load has passed the last kill."""
    target = len(load.acknowledged) + count
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        while len(load.acknowledged) < target:
            for failed in filter(asyncio.Task.done, load.callers):
                failed.result()
            stack.supervise()
            await asyncio.sleep(0.01)


@asynccontextmanager
async def callers(load: Load, *calls: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """The callers at work, and gone before their channels are closed."""
    load.callers = [asyncio.create_task(call) for call in calls]
    try:
        yield
        load.stopping = True
        await asyncio.gather(*load.callers)
    finally:
        for task in load.callers:
            task.cancel()
        await asyncio.wait(load.callers)


@pytest.mark.timeout(0 if LONG else 600)
async def test_acknowledged_units_survive_every_kill_and_are_charged_once(
    stack: Stack, identities: Identities
) -> None:
    print(f"SEED={SEED}")
    chance = random.Random(SEED)
    user = partial(identities.user_token, "acme", "alice", ALL_SCOPES)
    service = partial(identities.service_token, "executor", "ledger", "acme")
    async with AsyncExitStack() as channels:

        async def of_all(token: Callable[[], str]) -> list[Any]:
            return [
                await channels.enter_async_context(stub_of(address, token))
                for address in stack.addresses
            ]

        people, executors = await of_all(user), await of_all(service)
        load = await found(people[0])
        singles = [send_singles(executors[number % LEDGERS], load) for number in range(CALLERS)]
        pairs = [send_pairs(executors, load) for _ in range(PAIRS)]
        others = [move(people, load) for move in (move_money, pay_from_holds) for _ in range(PAIRS)]
        others += [run_runs(executors, load) for _ in range(PAIRS)]
        async with callers(load, *singles, *pairs, *others):
            for number in range(KILLS):
                await grow(stack, load, chance.randrange(1, 60))
                if number % 3 == 2:
                    await asyncio.to_thread(stack.kill_postgres)
                else:
                    stack.kill_ledger(number % LEDGERS)
                    stack.start_ledger(number % LEDGERS)
            await grow(stack, load, CALLERS + PAIRS * BATCH)
        stack.check_for_deadlocks()
        again = list(load.acknowledged.values())
        for start in range(0, len(again), 1000):
            assert set(await acknowledge(executors[1], again[start : start + 1000])) == {EXISTS}
        data = b""
        async for part in people[0].ExportEntries(pb.ExportEntriesRequest()):
            data += part.chunk
        balance = await balance_of(people[0], load.account_id)
        payee = await balance_of(people[0], load.payee_id)
    verified = verify_export(data.splitlines(True))
    # Nothing beyond what was acknowledged either: every request is sent until it is.
    assert verified.charge_count == len(load.acknowledged)
    spent = Decimal(COST) * verified.charge_count
    assert Decimal(balance.balance.value) == FUNDS + load.received - load.paid - spent
    assert balance.held.value == "0"
    assert Decimal(payee.balance.value) == load.paid
    assert load.received > 0 < load.paid
    print(
        f"{KILLS} kills, {len(load.acknowledged)} units acknowledged, each charged once; "
        f"{load.received} received and {load.paid} paid from holds"
    )
