"""The life of a run, walked at random against a model of it in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cogni.executor.v1.run_event_pb2 import CustomEvent, RunFinished, RunInterrupted, RunQueued
from services.executor.events import Draft
from services.executor.grants import GrantRequest
from services.executor.graphs import EVERY_TENANT, Graph
from services.executor.runs import (
    FINAL,
    TRANSITIONS,
    CancelReason,
    Interrupt,
    Options,
    Origin,
    RunRequest,
    RunState,
    WaitingReason,
    ending_of,
)
from services.executor.store import events, graphs, leases, runs
from services.executor.use_cases.backing import Backing
from services.executor.use_cases.grant import create_grant
from services.executor.use_cases.resume_run import Answer, resume_run
from services.executor.use_cases.start_run import start_run
from services.executor.use_cases.stop_run import cancel_run
from services.runtime.caller import Caller, CallerKind
from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from tests.databases import Databases
from tests.executor.conftest import LEASE, OwnedResources

ALICE = Caller(CallerKind.USER, "alice", "acme")
TIMES = leases.LeaseTimes(LEASE, LEASE, LEASE, 3)
Result = TypeVar("Result")


@dataclass
class Model:
    """What must be true of the one run under test."""

    state: RunState = RunState.QUEUED
    attempt: int = 0
    cancelled: bool = False
    questions: int = 0
    types: list[str] = field(default_factory=lambda: ["queued"])


class Lifecycle(RuleBasedStateMachine):
    """Starts a run and does everything to it that servers and runners do, in any order."""

    database_url: str
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.epochs: list[int] = []

    def _do(self, work: Coroutine[Any, Any, Result] | Awaitable[Result]) -> Result:
        return self.loop.run_until_complete(work)

    @initialize()
    def start(self) -> None:
        self.database = Database.open(self.database_url, "executor", application_name="tests")
        self.on = Backing(self.database, lambda: None)
        self._do(self._start())

    async def _start(self) -> None:
        async with self.database.raw_jobs() as tx:
            await graphs.publish(tx, EVERY_TENANT, [Graph("digest", "r1")])
        wish = GrantRequest("", ("digest",), (), (), None, None, None, {})
        grant = await create_grant(self.on, OwnedResources(), ALICE, new_id(), wish)
        request = RunRequest("digest", grant.grant_id, {}, {}, None, None, Options(), {}, Origin())
        self.run_id = (await start_run(self.on, ALICE, new_id(), request)).run_id

    def teardown(self) -> None:
        if hasattr(self, "database"):
            self._do(self.database.close())

    @precondition(lambda self: self.model.state is RunState.QUEUED)
    @rule()
    def claim(self) -> None:
        async def work() -> None:
            async with self.database.raw_jobs() as tx:
                claims = await leases.claim_ready(tx, "tests", 1000, TIMES)
            [claim] = [each for each in claims if each.run.run_id == self.run_id]
            self.epochs.append(claim.epoch)

        self._do(work())
        self.model.state = RunState.RUNNING
        self.model.attempt += 1

    @rule(count=st.integers(1, 3), old=st.booleans())
    def append(self, count: int, old: bool) -> None:
        drafts = [Draft(CustomEvent(name=str(n))) for n in range(count)]
        if self._act(drafts, old):
            self.model.types += ["custom"] * count

    @rule(old=st.booleans())
    def succeed(self, old: bool) -> None:
        if self._act([Draft(RunFinished())], old, RunState.SUCCEEDED):
            self.model.state = RunState.SUCCEEDED
            self.model.types.append("finished")

    @rule(old=st.booleans())
    def ask(self, old: bool) -> None:
        if self._act([Draft(RunInterrupted())], old, RunState.WAITING):
            self.model.state = RunState.WAITING
            self.model.types.append("interrupted")

    @rule(old=st.booleans())
    def hand_over(self, old: bool) -> None:
        if self._act([Draft(RunQueued())], old, RunState.QUEUED):
            self.model.state = RunState.QUEUED
            self.model.types.append("queued")

    @rule()
    def cancel(self) -> None:
        self._do(cancel_run(self.on, ALICE, self.run_id, CancelReason.USER_REQUEST, ""))
        if self.model.state in FINAL:
            return
        if not self.model.cancelled:
            self.model.types.append("cancel_requested")
            self.model.cancelled = True
        if self.model.state is not RunState.RUNNING:
            self.model.state, _ = ending_of(CancelReason.USER_REQUEST)
            self.model.types.append("finished")

    @precondition(lambda self: self.model.questions > 0)
    @rule()
    def answer(self) -> None:
        question = f"q{self.model.questions}"
        answer = Answer("yes", WaitingReason.INTERRUPT)
        if self.model.state is not RunState.WAITING:
            # Answered before, or cancelled before anybody could.
            with suppress(ServiceError):
                self._do(resume_run(self.on, ALICE, self.run_id, question, answer))
            return
        self._do(resume_run(self.on, ALICE, self.run_id, question, answer))
        self.model.state = RunState.QUEUED
        self.model.types += ["resumed", "queued"]

    @invariant()
    def the_run_is_as_the_model_says(self) -> None:
        if not hasattr(self, "run_id"):
            return
        run, log = self._do(self._read())
        assert (run.state, run.attempt) == (self.model.state, self.model.attempt)
        assert [event.type for event in log] == self.model.types
        assert [event.seq for event in log] == list(range(1, run.last_seq + 1))
        assert (self.model.types.count("finished") == 1) == run.final
        assert not run.final or self.model.types[-1] == "finished"

    async def _read(self) -> tuple[Any, list[events.StoredEvent]]:
        async with self.database.raw_tenant("acme") as tx:
            run = await runs.get(tx, self.run_id)
            return run, await events.read(tx, self.run_id, 0, 10_000)

    def _act(self, drafts: list[Draft], old: bool, to: RunState | None = None) -> bool:
        """Do as the newest attempt, or as one that lost its lease; whether it took effect."""
        epoch = (self.epochs or [0])[-1] - old
        acted = self._do(self._try(epoch, drafts, to))
        assert acted == (self.model.state is RunState.RUNNING and not old)
        return acted

    async def _try(self, epoch: int, drafts: list[Draft], to: RunState | None) -> bool:
        async with self.database.raw_tenant("acme") as tx:
            newest = await events.append_fenced(
                tx, self.run_id, "acme", epoch, self.model.attempt, drafts
            )
            if newest is None:
                return False
            match to:
                case RunState.SUCCEEDED:
                    assert await runs.finish(tx, self.run_id, to, output_json="1")
                case RunState.QUEUED:
                    assert await runs.queue(tx, self.run_id, "HANDED_OVER")
                case RunState.WAITING:
                    self.model.questions += 1
                    question = Interrupt(
                        f"q{self.model.questions}",
                        WaitingReason.INTERRUPT,
                        "node",
                        None,
                        datetime.now(UTC),
                    )
                    reason = WaitingReason.INTERRUPT
                    assert await runs.wait(tx, self.run_id, "acme", reason, [question])
                case _:
                    pass
            return True


def test_no_walk_of_any_kind_breaks_a_run(databases: Databases) -> None:
    loop = asyncio.new_event_loop()
    Lifecycle.loop = loop
    Lifecycle.database_url = loop.run_until_complete(
        databases.clone("executor", "services.executor")
    )
    try:
        Lifecycle.TestCase.settings = settings(
            max_examples=15,
            stateful_step_count=25,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        Lifecycle.TestCase().runTest()
    finally:
        loop.run_until_complete(databases.drop(Lifecycle.database_url))
        loop.close()


@pytest.mark.parametrize("state", list(RunState))
def test_final_states_lead_nowhere(state: RunState) -> None:
    assert (TRANSITIONS[state] == frozenset()) == (state in FINAL)
