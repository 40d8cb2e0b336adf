"""kill -9 of any process of the stack loses no run, no event and no charge, and doubles none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from bench.embedded import Embedded, embedded
from cogni.client import AsyncClient, CogniError, Unavailable
from cogni.executor.v1.executor_service_pb2 import WatchRunRequest
from cogni.executor.v1.grant_pb2 import ToolPermission
from cogni.executor.v1.grant_service_pb2 import CreateGrantRequest
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import RunState
from cogni.ledger.v1.account_pb2 import AccountKind
from cogni.ledger.v1.ledger_service_pb2 import (
    CreateAccountRequest,
    GetAccountRequest,
    GetRunStatementRequest,
    TransferRequest,
)
from cogni.ledger.v1.statement_pb2 import RunCloseState, RunStatement
from cogni.ledger.v1.usage_pb2 import TokenKind
from cogni.type.v1.amount_pb2 import Amount

LONG = bool(os.environ.get("LONG"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
RUNS = 400 if LONG else 30
CHAOS_SECONDS = 600 if LONG else 45
FUNDS = "1000"
# The stack gives up on a process that crashes more than five times a minute.
PAUSE_SECONDS = (1.5, 4.0)
SETTLE_SECONDS_MAX = 240
VICTIMS = (
    "services.executor.worker",
    "services.scheduler.worker",
    "services.scheduler clock",
    "services.executor",
    "services.ledger",
    "services.connections",
    "redis-server",
    "bin/postgres",
)


@dataclass(frozen=True)
class World:
    """What the stack acts on and what it must answer for."""

    stack: Embedded
    meter: Path
    effects: Path

    def metered(self) -> dict[str, tuple[int, int]]:
        lines = [json.loads(line) for line in self.meter.read_text().splitlines()]
        return {line["id"]: (line["input"], line["output"]) for line in lines}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("chaos")
    meter, effects = folder / "meter", folder / "effects"
    meter.touch()
    effects.mkdir()
    provider = subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.provider", str(meter)], stdout=subprocess.PIPE
    )
    try:
        assert provider.stdout is not None
        port = int(provider.stdout.readline())
        graphs = folder / "langgraph.json"
        graphs.write_text(
            json.dumps(
                {
                    "dependencies": ["."],
                    "graphs": {"working": f"{Path(__file__).parent / 'graphs'}/working.py:graph"},
                    "env": {
                        "CHAOS_PROVIDER": f"http://127.0.0.1:{port}",
                        "CHAOS_EFFECTS": str(effects),
                    },
                }
            )
        )
        with embedded(graphs) as stack:
            yield World(stack, meter, effects)
    finally:
        provider.kill()
        provider.wait()
        if provider.stdout is not None:
            provider.stdout.close()


async def test_no_run_event_effect_or_charge_is_lost_or_doubled(world: World) -> None:
    sys.stdout.write(f"seed {SEED}\n")
    async with AsyncClient(world.stack.settings()) as client:
        grant_id, account_id = await _grant(client)
        chaos = asyncio.create_task(_kill_at_random(world.stack, random.Random(SEED)))
        run_ids = await _start_all(client, grant_id)
        await chaos
        logs = await asyncio.wait_for(
            asyncio.gather(*(_whole_log(client, run_id) for run_id in run_ids)), SETTLE_SECONDS_MAX
        )
        for events in logs:
            _check_log(events)
        statements = [await _closed_statement(client, run_id) for run_id in run_ids]
        again = [await _whole_log(client, run_id) for run_id in run_ids]
        await _check_nothing_is_held(client, account_id, statements)

    # An operator's question: how did they end? All by themselves, whatever was killed.
    ends = Counter(RunState.Name(events[-1].finished.state) for events in logs)
    assert ends == {"RUN_STATE_SUCCEEDED": len(run_ids)}
    assert [[e.SerializeToString() for e in log] for log in again] == [
        [e.SerializeToString() for e in log] for log in logs
    ]
    _check_bill(world, statements)
    _check_tools(statements)
    assert len(list(world.effects.iterdir())) == len(run_ids)


async def _grant(client: AsyncClient) -> tuple[str, str]:
    accounts = {}
    for kind in (AccountKind.ACCOUNT_KIND_FUNDING, AccountKind.ACCOUNT_KIND_SPENDING):
        created = await client.ledger.CreateAccount(
            CreateAccountRequest(
                request_id=str(uuid.uuid4()), display_name="chaos", asset="USD", kind=kind
            )
        )
        accounts[kind] = created.account.account_id
    await client.ledger.Transfer(
        TransferRequest(
            request_id=str(uuid.uuid4()),
            debit_account_id=accounts[AccountKind.ACCOUNT_KIND_FUNDING],
            credit_account_id=accounts[AccountKind.ACCOUNT_KIND_SPENDING],
            amount=Amount(asset="USD", value=FUNDS),
        )
    )
    granted = await client.grants.CreateGrant(
        CreateGrantRequest(
            request_id=str(uuid.uuid4()),
            graphs=["graph:execute:working"],
            tools=[ToolPermission(tool="leave_mark")],
            account_id=accounts[AccountKind.ACCOUNT_KIND_SPENDING],
        )
    )
    return granted.grant.grant_id, accounts[AccountKind.ACCOUNT_KIND_SPENDING]


async def _start_all(client: AsyncClient, grant_id: str) -> list[str]:
    """Starts the runs over the time of the chaos, repeating what was not answered."""
    started = []
    for number in range(RUNS):
        request_id = str(uuid.uuid4())
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while True:
            try:
                run = await client.start_run(
                    "working", grant_id, {"number": number}, request_id=request_id
                )
                break
            except CogniError as error:
                if not isinstance(error, Unavailable) and error.reason != "DEADLINE_EXCEEDED":
                    raise
                assert time.monotonic() < deadline
                await asyncio.sleep(0.2)
        started.append(run.run_id)
        await asyncio.sleep(CHAOS_SECONDS / RUNS / 2)
    return started


async def _kill_at_random(stack: Embedded, dice: random.Random) -> None:
    deadline = time.monotonic() + CHAOS_SECONDS
    killed: Counter[str] = Counter()
    waiting: list[str] = []
    while time.monotonic() < deadline:
        await asyncio.sleep(dice.uniform(*PAUSE_SECONDS))
        # In rounds, so that each has its turn.
        waiting = waiting or dice.sample(VICTIMS, len(VICTIMS))
        victim = waiting.pop()
        killed[victim] += len(stack.kill(victim))
        sys.stdout.write(f"killed {victim}\n")
    assert [victim for victim in VICTIMS if not killed[victim]] == []


async def _whole_log(client: AsyncClient, run_id: str) -> list[RunEvent]:
    return [event async for event in client.watch_run(run_id)]


def _check_log(events: list[RunEvent]) -> None:
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [e.seq for e in events if e.HasField("finished")] == [events[-1].seq]


async def _closed_statement(client: AsyncClient, run_id: str) -> RunStatement:
    """The run's statement once the Executor has closed it: no call pending, none unrecorded.

    A call whose runner was killed is settled from its estimate after two minutes.
    """
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        with contextlib.suppress(Unavailable):
            request = GetRunStatementRequest(run_id=run_id, page_size=1000)
            found = (await client.ledger.GetRunStatement(request)).statement
            if found.close.state == RunCloseState.RUN_CLOSE_STATE_COMPLETE:
                return found
        assert time.monotonic() < deadline, f"{run_id} is not closed"
        await asyncio.sleep(0.5)


async def _check_nothing_is_held(
    client: AsyncClient, account_id: str, statements: list[RunStatement]
) -> None:
    """Whatever died between two steps: holds came to their end, and charges alone took money."""
    charges = [each for statement in statements for each in statement.charges]
    assert not [each for each in charges if Decimal(each.overrun.value)]
    spent = sum(Decimal(each.amount.value) for each in charges if not each.corrected_by_sequence)
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while True:
        # The last run's hold is released a moment after its close can be seen.
        found = await client.ledger.GetAccount(GetAccountRequest(account_id=account_id))
        balance = found.account.balance
        if Decimal(balance.held.value) == 0:
            assert Decimal(balance.available.value) == Decimal(FUNDS) - spent
            return
        assert time.monotonic() < deadline, f"{balance.held.value} is still held"
        await asyncio.sleep(0.5)


def _check_tools(statements: list[RunStatement]) -> None:
    """Each run invoked one tool: charged once, and once more as rework for each repetition."""
    for statement in statements:
        units = [charge.unit for charge in statement.charges if charge.unit.HasField("tool_call")]
        assert len({unit.tool_call.invocation_id for unit in units}) == 1
        assert [unit.rework for unit in units].count(False) == 1


def _check_bill(world: World, statements: list[RunStatement]) -> None:
    metered = world.metered()
    calls = [
        charge
        for statement in statements
        for charge in statement.charges
        if charge.unit.HasField("llm_call") and not charge.corrected_by_sequence
    ]
    references = [charge.unit.source_reference for charge in calls]
    assert len(references) == len(set(references))
    exact = [charge for charge in calls if not charge.unit.estimated]
    billed = {}
    for charge in exact:
        counts = {c.kind: c.count for c in charge.unit.llm_call.token_counts}
        pair = (counts[TokenKind.TOKEN_KIND_INPUT], counts[TokenKind.TOKEN_KIND_OUTPUT])
        billed[charge.unit.llm_call.provider_response_id] = pair
    # Every exact charge is a call the provider metered, token for token, and none is billed twice.
    assert len(billed) == len(exact)
    assert billed.items() <= metered.items()
    # What the provider metered and we have no figures of is there all the same, as an estimate.
    assert len(metered) - len(billed) <= len(calls) - len(exact)


async def test_a_client_that_was_cut_off_reads_on_where_it_was(world: World) -> None:
    async with AsyncClient(world.stack.settings()) as client:
        grant_id, _ = await _grant(client)
        run = await client.start_run("working", grant_id, {"number": -1})
        read: list[RunEvent] = []
        async for event in client.watch_run(run.run_id):
            read.append(event)
            if len(read) == 3:
                world.stack.kill("services.executor")
        request = WatchRunRequest(run_id=run.run_id)
        whole = [e async for batch in client.executor.WatchRun(request) for e in batch.events]

    assert [e.SerializeToString() for e in read] == [e.SerializeToString() for e in whole]
