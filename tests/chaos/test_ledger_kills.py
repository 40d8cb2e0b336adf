"""kill -9 of the Ledger and of PostgreSQL under load: what was acknowledged is stored, once.

After all kills: every acknowledged unit is recorded, each key is charged once, balances equal
the sum of postings, and the exported log verifies offline.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import grpc
import pytest

from cogni.client.ledger_verify import verify_export
from cogni.ledger.v1 import account_pb2, ledger_service_pb2_grpc, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.runtime.ids import new_id
from services.runtime.migrations import migrate
from services.standalone.postgres import EmbeddedPostgres
from tests.ledger.conftest import unit, usd
from tests.plugins.identities import Identities

LONG = bool(os.environ.get("LONG"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
KILLS = 200 if LONG else 6
CALLERS = 8
COST = "0.001"
READY_SECONDS_MAX = 60
SETTLE_SECONDS_MAX = 120
#: What a caller may meet while something is dead; anything else is a defect.
EXPECTED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass
class Stack:
    """One PostgreSQL and one Ledger process, either of which may be killed."""

    postgres: EmbeddedPostgres
    environ: dict[str, str]
    address: str
    log: Path
    ledger: subprocess.Popen[bytes] | None = None

    def start_ledger(self) -> None:
        with self.log.open("ab") as sink:
            self.ledger = subprocess.Popen(
                [sys.executable, "-m", "services.ledger"], env=self.environ, stderr=sink
            )

    def kill_ledger(self) -> None:
        assert self.ledger is not None
        self.ledger.kill()
        self.ledger.wait()

    def kill_postgres(self) -> None:
        process = self.postgres.process
        assert process is not None
        # The postmaster alone: its children notice and end, as after an out-of-memory kill.
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.postgres.start()


@dataclass
class Load:
    """What callers sent, and what they were told."""

    account_id: str
    acknowledged: dict[str, usage_pb2.UsageUnit] = field(default_factory=dict)
    stopping: bool = False


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def stack(identities: Identities) -> Iterator[Stack]:
    """Both processes running, their files gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cogni-kills-"))
    postgres = EmbeddedPostgres(folder / "postgres", durable=False)
    url = postgres.start()
    migrate(url, "ledger", "services.ledger")
    address = f"127.0.0.1:{free_port()}"
    environ = {
        **os.environ,
        **identities.environ(),
        "COGNI_LEDGER_DATABASE_URL": url,
        "COGNI_LEDGER_LISTEN": address,
        "COGNI_LEDGER_LOG_KEY_FILE": str(identities.folder / "ledger.pem"),
    }
    running = Stack(postgres, environ, address, folder / "ledger.log")
    running.start_ledger()
    try:
        yield running
    finally:
        running.kill_ledger()
        # Shown by pytest when the test failed.
        print(running.log.read_text()[-20_000:])
        postgres.destroy()


@asynccontextmanager
async def stub_of(
    stack: Stack, token: str
) -> AsyncIterator[ledger_service_pb2_grpc.LedgerServiceStub]:
    options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
    metadata = (("authorization", f"Bearer {token}"),)

    class _Bearer(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
            named = grpc.aio.ClientCallDetails(
                details.method, 10.0, grpc.aio.Metadata(*metadata), None, True
            )
            return await continuation(named, request)

    class _StreamBearer(grpc.aio.UnaryStreamClientInterceptor):
        async def intercept_unary_stream(self, continuation, details, request):  # type: ignore[no-untyped-def]
            named = grpc.aio.ClientCallDetails(
                details.method, 60.0, grpc.aio.Metadata(*metadata), None, True
            )
            return await continuation(named, request)

    async with grpc.aio.insecure_channel(
        stack.address, options=options, interceptors=[_Bearer(), _StreamBearer()]
    ) as channel:
        yield ledger_service_pb2_grpc.LedgerServiceStub(channel)


async def send(executor: object, load: Load) -> None:
    """Send units one by one, each again and again until it is acknowledged."""
    while not load.stopping:
        sent = unit(load.account_id, COST)
        while True:
            try:
                answer = await executor.RecordUsage(  # type: ignore[attr-defined]
                    pb.RecordUsageRequest(units=[sent])
                )
            except grpc.aio.AioRpcError as error:
                if error.code() in EXPECTED:
                    continue
                raise
            result = answer.outcomes[0].result
            assert result in (usage_pb2.USAGE_RESULT_CREATED, usage_pb2.USAGE_RESULT_EXISTS)
            load.acknowledged[sent.source_reference] = sent
            break


async def grow(load: Load, count: int) -> None:
    """Wait until that many more units are acknowledged: the load has passed the last kill."""
    target = len(load.acknowledged) + count
    async with asyncio.timeout(SETTLE_SECONDS_MAX):
        while len(load.acknowledged) < target:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.timeout(0 if LONG else 600)
async def test_acknowledged_units_survive_every_kill_and_are_charged_once(
    stack: Stack, identities: Identities
) -> None:
    chance = random.Random(SEED)
    user = identities.user_token("acme", "alice", ("ledger:read", "ledger:write", "ledger:admin"))
    service = identities.service_token("executor", "ledger", "acme")
    async with stub_of(stack, user) as person, stub_of(stack, service) as executor:
        load = Load(await fund(person))
        callers = [asyncio.create_task(send(executor, load)) for _ in range(CALLERS)]
        for number in range(KILLS):
            await grow(load, chance.randrange(1, 60))
            if number % 3 == 2:
                await asyncio.to_thread(stack.kill_postgres)
            else:
                stack.kill_ledger()
                stack.start_ledger()
        await grow(load, CALLERS)
        load.stopping = True
        await asyncio.gather(*callers)
        again = [unit_ for _, unit_ in zip(range(500), load.acknowledged.values(), strict=False)]
        answer = await executor.RecordUsage(pb.RecordUsageRequest(units=again))
        assert {each.result for each in answer.outcomes} == {usage_pb2.USAGE_RESULT_EXISTS}
        data = b""
        async for part in person.ExportEntries(pb.ExportEntriesRequest()):
            data += part.chunk
        request = pb.GetAccountRequest(account_id=load.account_id)
        account = (await person.GetAccount(request)).account
    verified = verify_export(data.splitlines(True))
    # Nothing beyond what was acknowledged either: every unit is sent until it is.
    assert verified.charge_count == len(load.acknowledged), f"SEED={SEED}"
    spent = Decimal(COST) * verified.charge_count
    assert Decimal(account.balance.balance.value) == 1000 - spent, f"SEED={SEED}"


async def fund(person: object) -> str:
    """Create the account that pays, with 1000 USD in it."""
    made = []
    for kind in (account_pb2.ACCOUNT_KIND_FUNDING, account_pb2.ACCOUNT_KIND_SPENDING):
        request = pb.CreateAccountRequest(
            request_id=new_id(), display_name="a", asset="USD", kind=kind
        )
        made.append((await person.CreateAccount(request)).account.account_id)  # type: ignore[attr-defined]
    await person.Transfer(  # type: ignore[attr-defined]
        pb.TransferRequest(
            request_id=new_id(),
            debit_account_id=made[0],
            credit_account_id=made[1],
            amount=usd("1000"),
        )
    )
    account_id: str = made[1]
    return account_id
