"""The demo's five acts, each shown as it happens."""

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from cogni.client import AsyncClient
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import RunState
from cogni.scheduler.v1.scheduler_service_pb2 import ListSlotsRequest
from services.standalone.console import Screen
from services.standalone.demo import bill, tenant
from services.standalone.demo.outside import Bluesky, model_sentence
from services.standalone.demo.telling import Teller
from services.standalone.demo.tenant import Tenant
from services.standalone.errors import StandaloneError
from services.standalone.stack import Stack

WAIT_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1
RUN_SECONDS: Final = 120.0
#: Long enough to kill the runner in, short enough to watch.
COOL_OFF_SECONDS: Final = 2.0
CHANGES_READ: Final = 5


@dataclass(frozen=True)
class Story:
    """One telling of the demo."""

    screen: Screen
    stack: Stack
    client: AsyncClient
    bluesky: Bluesky
    source: Path

    async def tell(self) -> str:
        """Plays every act; returns the id of the last run."""
        await self._wait_for("the runner's graphs", self._graphs_are_there)
        team = await self._who_pays_and_who_posts()
        await self._denied(team)
        grant_id = await self._scheduled(team)
        return await self._killed(team, grant_id)

    async def _graphs_are_there(self) -> bool:
        return await tenant.graphs_are_published(self.client)

    async def _who_pays_and_who_posts(self) -> Tenant:
        self._act("Who pays, who writes, who posts")
        team = await tenant.found(self.client, self.bluesky)
        self._say(f"An account with {tenant.FUNDS} {tenant.ASSET}. {team.price_card}")
        self._say(model_sentence(os.environ))
        self._say(self.bluesky.sentence())
        self._say("Connections holds the password; no graph, runner or log ever sees it.")
        return team

    async def _denied(self, team: Tenant) -> None:
        self._act(f"A grant without {tenant.POST_TOOL}: the run may read and write, not post")
        grant_id = await tenant.grant(self.client, team, str(self.source), may_post=False)
        run = await self.client.start_run(tenant.GRAPH, grant_id, self._input())
        events = await self._watch(run.run_id)
        denied = next((e.tool_denied for e in events if e.HasField("tool_denied")), None)
        if denied is None:
            raise StandaloneError("The tool was not denied, although the grant does not name it.")
        self._say(
            f"Denied when it was called: audit record {denied.audit_record_id}. Nothing was posted."
        )

    async def _scheduled(self, team: Tenant) -> str:
        self._act("A grant with it, and a schedule that fires within two seconds")
        grant_id = await tenant.grant(self.client, team, str(self.source), may_post=True)
        schedule_id = await tenant.schedule(self.client, grant_id, self._input())
        began = time.monotonic()
        run_id = ""

        async def fired() -> bool:
            nonlocal run_id
            answer = await self.client.scheduler.ListSlots(
                ListSlotsRequest(schedule_id=schedule_id)
            )
            run_id = next((slot.run_id for slot in answer.slots if slot.run_id), "")
            return bool(run_id)

        await self._wait_for("the schedule to fire", fired)
        self._say(f"Fired after {time.monotonic() - began:.1f} s: run {run_id}")
        events = await self._watch(run_id)
        self._say(f"On the server: {await self._posted(run_id, events)}")
        await self._show_bill(run_id, events)
        return grant_id

    async def _killed(self, team: Tenant, grant_id: str) -> str:
        self._act("kill -9 of the runner in the middle of a run")
        run_input = self._input(cool_off_seconds=COOL_OFF_SECONDS)
        run = await self.client.start_run(tenant.GRAPH, grant_id, run_input)
        events = await self._watch(run.run_id, at=_is_cooling_off, then=self._kill_the_runner)
        attempts = max(event.attempt for event in events)
        if attempts < 2:
            raise StandaloneError("The run was over before its runner could be killed.")
        self._say(
            f"Attempt {attempts} went on from the last checkpoint: nothing was written twice."
        )
        await self._posted(run.run_id, events)
        self._say("Posts of this run on the server: 1.")
        await self._show_bill(run.run_id, events)
        await self._read_again(run.run_id, events)
        return run.run_id

    async def _posted(self, run_id: str, events: list[RunEvent]) -> str:
        """The uri of the run's one post; StandaloneError unless the server has it."""
        claimed = _post_of(events)
        posts = await self.bluesky.posts(_digest_of(events))
        if [post["uri"] for post in posts].count(claimed) != 1:
            raise StandaloneError(
                f"Run {run_id} succeeded and says of its post {claimed!r}, which is not once at "
                f"{self.bluesky.service_url}; {self._more()}"
            )
        return claimed

    async def _kill_the_runner(self) -> None:
        group = self.stack.supervisor.pid("runner")
        self.screen.say(f"\n       kill -9 {group}")
        os.killpg(group, signal.SIGKILL)

    async def _show_bill(self, run_id: str, events: list[RunEvent]) -> None:
        used = [event.usage for event in events if event.HasField("usage")]
        calls = {usage.call_id for usage in used}
        found = await bill.statement(self.client, run_id, units=len(calls))
        self.screen.say()
        bill.show(self.screen, found)
        charged = {charge.unit.source_reference for charge in found.charges}
        if len(charged) != len(found.charges) or not calls <= charged:
            raise StandaloneError("The statement does not match the run's calls one to one.")
        tools = sum(1 for usage in used if usage.tool)
        self._say(
            f"Model calls: {len(used) - tools}, tool calls: {tools}; each is charged exactly once. "
            "A tool costs what the price card says, else nothing."
        )
        if found.charges:
            costliest = max(found.charges, key=lambda charge: Decimal(charge.amount.value))
            self._say(await bill.receipt(self.client, costliest))

    async def _read_again(self, run_id: str, seen: list[RunEvent]) -> None:
        again = [event async for event in self.client.watch_run(run_id)]
        first, second = _fingerprint(seen), _fingerprint(again)
        if first != second:
            raise StandaloneError(f"Read again, run {run_id} gave other bytes.")
        size = sum(event.ByteSize() for event in again)
        self._say(
            f"Read again from the beginning: {len(again)} events, {size:,} bytes, the same "
            f"(SHA-256 {second[:16]}…)."
        )

    async def _watch(
        self,
        run_id: str,
        *,
        at: Callable[[RunEvent], bool] | None = None,
        then: Callable[[], Awaitable[None]] | None = None,
    ) -> list[RunEvent]:
        teller = Teller(self.screen.console)
        events: list[RunEvent] = []
        self.screen.say()
        try:
            async with asyncio.timeout(RUN_SECONDS):
                async for event in self.client.watch_run(run_id):
                    events.append(event)
                    teller.tell(event)
                    if then is not None and at is not None and at(event):
                        await then()
                        then = None
        except TimeoutError:
            raise StandaloneError(
                f"Run {run_id} was not finished after {RUN_SECONDS:.0f} s; {self._more()}"
            ) from None
        finished = events[-1].finished
        if finished.state != RunState.RUN_STATE_SUCCEEDED:
            raise StandaloneError(f"Run {run_id} did not succeed: {finished.error.message}")
        self.screen.say()
        return events

    async def _wait_for(self, what: str, there: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not await there():
            if time.monotonic() > deadline:
                raise StandaloneError(
                    f"Waited {WAIT_SECONDS:.0f} s in vain for {what}; {self._more()}"
                )
            await asyncio.sleep(POLL_SECONDS)

    def _more(self) -> str:
        return f"the logs in {self.stack.directory.logs} say more."

    def _input(self, **more: object) -> dict[str, object]:
        return {"source": str(self.source), "limit": CHANGES_READ, **more}

    def _act(self, title: str) -> None:
        self.screen.say()
        self.screen.title(title)

    def _say(self, text: str) -> None:
        self.screen.say(f"  {text}")


def _is_cooling_off(event: RunEvent) -> bool:
    return event.HasField("node_started") and event.node_started.node == "cool_off"


def _output_of(events: list[RunEvent]) -> dict[str, str]:
    fields = events[-1].finished.output.struct_value.fields
    return {name: value.string_value for name, value in fields.items()}


def _digest_of(events: list[RunEvent]) -> str:
    return _output_of(events).get("digest", "")


def _post_of(events: list[RunEvent]) -> str:
    return _output_of(events).get("post", "")


def _fingerprint(events: list[RunEvent]) -> str:
    digest = hashlib.sha256()
    for event in events:
        digest.update(event.SerializeToString(deterministic=True))
    return digest.hexdigest()
