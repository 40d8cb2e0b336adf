"""kill -9 of two Ledgers and of their PostgreSQL under load: what was acknowledged is stored, once.

After all kills: every acknowledged unit is recorded, each key is charged once, balances equal
the sum of postings, the exported log verifies offline, and PostgreSQL never met a deadlock,
although both Ledgers get the same keys in opposite order all the time.
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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogni.client.ledger_verify import verify_export
from cogni.ledger.v1 import account_pb2, ledger_service_pb2_grpc, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.runtime.ids import new_id
from services.runtime.migrations import migrate
from services.standalone.postgres import EmbeddedPostgres
from tests.ledger.conftest import ALL_SCOPES, unit, usd
from tests.plugins.identities import Identities

LONG = bool(os.environ.get("LONG"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
KILLS = int(os.environ.get("KILLS") or (300 if LONG else 6))
LEDGERS = 2
CALLERS = 8
# Each sends one batch to both Ledgers at once, to one of them backwards.
PAIRS = 3
BATCH = 20
COST = "0.001"
FUNDS = 1_000_000
SETTLE_SECONDS_MAX = 120
CREATED, EXISTS = usage_pb2.USAGE_RESULT_CREATED, usage_pb2.USAGE_RESULT_EXISTS
#: What a caller may meet while something is dead; anything else is a defect.
EXPECTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


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


@dataclass
class Load:
    """What callers sent, and what they were told."""

    account_id: str
    acknowledged: dict[str, usage_pb2.UsageUnit] = field(default_factory=dict)
    callers: list[asyncio.Task[None]] = field(default_factory=list)
    stopping: bool = False


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


async def persist(method: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
    """Call again and again until there is an answer, as every caller may."""
    while True:
        try:
            return await method(request)
        except grpc.aio.AioRpcError as error:
            if error.code() not in EXPECTED:
                raise


async def acknowledge(executor: Any, units: list[usage_pb2.UsageUnit]) -> list[int]:
    """Send units until they are acknowledged; return what the answer said."""
    answer = await persist(executor.RecordUsage, pb.RecordUsageRequest(units=units))
    results = [outcome.result for outcome in answer.outcomes]
    assert set(results) <= {CREATED, EXISTS}, f"SEED={SEED}"
    return results


async def send_singles(executor: Any, load: Load) -> None:
    """Send units one by one to one Ledger."""
    while not load.stopping:
        sent = unit(load.account_id, COST)
        await acknowledge(executor, [sent])
        load.acknowledged[sent.source_reference] = sent


async def send_pairs(executors: Sequence[Any], load: Load) -> None:
    """Send the same keys to all Ledgers at once, every other time in the opposite order."""
    while not load.stopping:
        batch = [unit(load.account_id, COST) for _ in range(BATCH)]
        orders = [batch if number % 2 else batch[::-1] for number in range(len(executors))]
        told = await asyncio.gather(
            *(acknowledge(each, order) for each, order in zip(executors, orders, strict=True))
        )
        # A Ledger that died after its commit told nobody, so CREATED may be missing: not doubled.
        created = [
            sent.source_reference
            for order, results in zip(orders, told, strict=True)
            for sent, result in zip(order, results, strict=True)
            if result == CREATED
        ]
        assert len(created) == len(set(created)), f"SEED={SEED}"
        load.acknowledged.update((sent.source_reference, sent) for sent in batch)


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
    chance = random.Random(SEED)
    user = partial(identities.user_token, "acme", "alice", ALL_SCOPES)
    service = partial(identities.service_token, "executor", "ledger", "acme")
    async with AsyncExitStack() as channels:
        person = await channels.enter_async_context(stub_of(stack.addresses[0], user))
        executors = [
            await channels.enter_async_context(stub_of(address, service))
            for address in stack.addresses
        ]
        load = Load(await fund(person))
        singles = [send_singles(executors[number % LEDGERS], load) for number in range(CALLERS)]
        pairs = [send_pairs(executors, load) for _ in range(PAIRS)]
        async with callers(load, *singles, *pairs):
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
        async for part in person.ExportEntries(pb.ExportEntriesRequest()):
            data += part.chunk
        request = pb.GetAccountRequest(account_id=load.account_id)
        account = (await persist(person.GetAccount, request)).account
    verified = verify_export(data.splitlines(True))
    # Nothing beyond what was acknowledged either: every unit is sent until it is.
    assert verified.charge_count == len(load.acknowledged), f"SEED={SEED}"
    spent = Decimal(COST) * verified.charge_count
    assert Decimal(account.balance.balance.value) == FUNDS - spent, f"SEED={SEED}"
    print(f"{KILLS} kills, {len(load.acknowledged)} units acknowledged, each charged once")


async def fund(person: Any) -> str:
    """Create the account that pays, with money for all of it."""
    made = []
    for kind in (account_pb2.ACCOUNT_KIND_FUNDING, account_pb2.ACCOUNT_KIND_SPENDING):
        request = pb.CreateAccountRequest(
            request_id=new_id(), display_name="a", asset="USD", kind=kind
        )
        made.append((await persist(person.CreateAccount, request)).account.account_id)
    moving = pb.TransferRequest(
        request_id=new_id(),
        debit_account_id=made[0],
        credit_account_id=made[1],
        amount=usd(str(FUNDS)),
    )
    await persist(person.Transfer, moving)
    account_id: str = made[1]
    return account_id
