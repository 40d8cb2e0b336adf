"""Puts the Scheduler's processes together: server, clock, starters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from cogni.scheduler.v1 import scheduler_service_pb2_grpc, trigger_service_pb2_grpc
from services.runtime.broker import make_broker
from services.runtime.channels import service_channel
from services.runtime.command import Process
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.health import Health
from services.runtime.hints import HintSender
from services.runtime.listen import Listener
from services.runtime.loops import BackgroundLoop, Loops
from services.runtime.migrations import check_migrated
from services.runtime.pools import DatabaseLimits
from services.runtime.relay import Relay
from services.runtime.server import Application, Registration
from services.runtime.tls import channel_credentials
from services.runtime.tokens import ServiceTokens, load_service_key
from services.scheduler.access import ACCESS
from services.scheduler.adapters.executor import SAFE_METHODS, ExecutorClient
from services.scheduler.rules import RULES
from services.scheduler.runs import Executor
from services.scheduler.server import SchedulerServicer, TriggerServicer, UseCases
from services.scheduler.settings import JobSettings, ServerProcessSettings
from services.scheduler.store import changes
from services.scheduler.use_cases import dispatch
from services.scheduler.use_cases.backfilling import STEPS_AT_ONCE, Backfills, BackfillStepper
from services.scheduler.use_cases.firing import BATCH_SCHEDULES, Clock
from services.scheduler.use_cases.following import followers
from services.scheduler.use_cases.foretelling import Foretelling
from services.scheduler.use_cases.schedules import Schedules
from services.scheduler.use_cases.slot_reading import SlotReading
from services.scheduler.use_cases.triggering import ManualTriggers
from services.scheduler.use_cases.upkeep import SWEEP_SLOTS, Canceller, Sweeper

NAME = "scheduler"
POLL = timedelta(seconds=1)
PAUSE = timedelta(milliseconds=20)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """What every process of the Scheduler stands on."""

    database: Database
    executor: Executor


@asynccontextmanager
async def standing(
    settings: JobSettings | ServerProcessSettings, role: str
) -> AsyncIterator[Standing]:
    """Opens database and Executor lazily and closes them."""
    tokens = ServiceTokens(load_service_key(settings.service_key), NAME)
    database = Database.open(
        settings.database_url.get_secret_value(),
        NAME,
        application_name=f"cogni-scheduler-{role}",
        limits=DatabaseLimits.of(settings),
    )
    channel = service_channel(
        settings.executor_address,
        "executor",
        tokens,
        channel_credentials(settings),
        safe_methods=SAFE_METHODS,
    )
    try:
        yield Standing(database, ExecutorClient(channel))
    finally:
        await channel.close()
        await database.close()


@asynccontextmanager
async def relaying(
    on: Standing, settings: JobSettings | ServerProcessSettings
) -> AsyncIterator[Relay]:
    """The relay that carries what slots owe: messages to starters, cancellations of runs."""
    sender = HintSender(make_broker(settings.broker_url.get_secret_value()))
    start = sender.handler(
        dispatch.START_QUEUE,
        dispatch.START_ACTOR,
        lambda entry: [entry.payload["schedule_id"], entry.payload["scheduled_for"]],
    )
    cancel = Canceller(on.database, on.executor).cancel
    try:
        yield Relay(on.database, {dispatch.START_TOPIC: start, dispatch.CANCEL_TOPIC: cancel})
    finally:
        await asyncio.to_thread(sender.close)


@asynccontextmanager
async def compose(process: Process[ServerProcessSettings]) -> AsyncIterator[Application]:
    """The gRPC server."""
    async with AsyncExitStack() as stack:
        on = await stack.enter_async_context(standing(process.settings, "server"))
        relay = await stack.enter_async_context(relaying(on, process.settings))
        listener = Listener(on.database.url, application_name="cogni-scheduler-server")
        loops: dict[str, BackgroundLoop] = {"relay": relay.run, "listener": listener.run}
        yield application(on, relay.kick, listener, process.drain, loops)


def application(
    on: Standing,
    kick: Callable[[], None],
    listener: Listener,
    drain: Drain,
    loops: Mapping[str, BackgroundLoop],
) -> Application:
    """What the gRPC server serves."""
    servicer = SchedulerServicer(
        UseCases(
            Schedules(on.database, on.executor),
            ManualTriggers(on.database, kick),
            Foretelling(on.database),
            SlotReading(on.database, listener, drain),
            Backfills(on.database),
        )
    )
    return Application(
        registrations=(
            Registration(
                scheduler_service_pb2_grpc.add_SchedulerServiceServicer_to_server,
                servicer,
                "cogni.scheduler.v1.SchedulerService",
            ),
            Registration(
                trigger_service_pb2_grpc.add_TriggerServiceServicer_to_server,
                TriggerServicer(),  # type: ignore[abstract]
                "cogni.scheduler.v1.TriggerService",
            ),
        ),
        access=ACCESS,
        rules=RULES,
        loops=loops,
    )


def clock_loops(on: Standing, relay: Relay, listener: Listener) -> dict[str, BackgroundLoop]:
    """What the clock process does, by name."""
    clock = Clock(on.database, relay.kick)
    sweeper = Sweeper(on.database, relay.kick)
    stepper = BackfillStepper(on.database, on.executor, relay.kick)
    following = followers(on.database, on.executor, relay.kick)
    return {
        "fire": lambda: _fire(clock, listener),
        "sweep": lambda: _sweep(sweeper),
        "backfill": lambda: _backfill(stepper),
        "relay": relay.run,
        "listener": listener.run,
        **{f"follow-{name}": follower.run for name, follower in following.items()},
    }


async def _fire(clock: Clock, listener: Listener) -> None:
    while await clock.recompute_outdated() == BATCH_SCHEDULES:
        pass
    wakeups = listener.wakeups(changes.DUE_CHANNEL, poll_seconds=POLL.total_seconds())
    async with aclosing(wakeups) as woken:
        async for _ in woken:
            await _fire_until_quiet(clock)


async def _fire_until_quiet(clock: Clock) -> None:
    while True:
        if await clock.fire_due() == BATCH_SCHEDULES:
            continue
        wait = await clock.next_due_in()
        if wait is None or wait >= POLL:
            return
        # Another clock may hold what is due: asking again at once would only disturb it.
        await asyncio.sleep(max(wait, PAUSE).total_seconds())


async def _sweep(sweeper: Sweeper) -> None:
    while True:
        if await sweeper.redispatch() < SWEEP_SLOTS:
            await asyncio.sleep(POLL.total_seconds())


async def _backfill(stepper: BackfillStepper) -> None:
    while True:
        if await stepper.step_due() < STEPS_AT_ONCE:
            await asyncio.sleep(POLL.total_seconds())


async def run_clock(process: Process[JobSettings]) -> None:
    """The clock process, until it is told to stop."""
    url = process.settings.database_url.get_secret_value()
    await check_migrated(url, NAME, "services.scheduler")
    async with AsyncExitStack() as stack:
        on = await stack.enter_async_context(standing(process.settings, "clock"))
        relay = await stack.enter_async_context(relaying(on, process.settings))
        listener = Listener(on.database.url, application_name="cogni-scheduler-clock")
        loops = Loops(clock_loops(on, relay, listener), Health(process.drain), process.telemetry)
        loops.start()
        _log.info("the clock runs")
        try:
            await process.drain.draining.wait()
        finally:
            await loops.stop()
