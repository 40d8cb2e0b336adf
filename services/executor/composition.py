"""Puts the Executor's server together: the one place where its parts meet."""

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cogni.executor.v1.grant_service_pb2_grpc import add_GrantServiceServicer_to_server
from cogni.executor.v1.runner_service_pb2_grpc import add_RunnerServiceServicer_to_server
from services.executor.access import ACCESS
from services.executor.adapters import connections as connections_adapter
from services.executor.adapters import ledger as ledger_adapter
from services.executor.adapters.connections import ConnectionsClient
from services.executor.adapters.ledger import GrantableResources, LedgerClient
from services.executor.hinting import ACTOR, QUEUE
from services.executor.rules import RULES
from services.executor.server import (
    EXECUTOR_SERVICE,
    ExecutorServicer,
    GrantServicer,
    RunnerServicer,
    Watching,
    add_executor_to_server,
)
from services.executor.settings import ExecutorSettings
from services.executor.store import owed
from services.executor.use_cases.backing import Backing
from services.executor.use_cases.deliver_usage import Ledger, UsageDelivery
from services.executor.use_cases.grant import Grantable, Leases
from services.executor.use_cases.mint_run_token import Sign
from services.executor.use_cases.reap import Reaper, WakeUp
from services.executor.use_cases.tail import Tail
from services.executor.use_cases.watch_changes import ChangeWatch
from services.runtime.broker import make_broker
from services.runtime.channels import service_channel
from services.runtime.command import Process
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.hints import Hint, HintSender
from services.runtime.listen import Listener
from services.runtime.pools import DatabaseLimits
from services.runtime.relay import Handler, Relay
from services.runtime.server import Application, Registration
from services.runtime.telemetry import Telemetry
from services.runtime.tls import channel_credentials
from services.runtime.tokens import ServiceTokens, load_service_key, mint_run_token


@dataclass(frozen=True)
class Surroundings:
    """What the Executor's server stands on and talks to."""

    database: Database
    listener: Listener
    drain: Drain
    ledger: Ledger
    resources: Grantable
    leases: Leases
    #: What the relay does with each topic of the outbox.
    handlers: Mapping[str, Handler]
    wake_up: WakeUp
    sign: Sign
    trace_url_template: str = ""
    watch_streams_max: int = 1000
    change_streams_max: int = 100


def application(around: Surroundings, telemetry: Telemetry) -> Application:
    """Return what the server serves, and the loops that run beside it."""
    relay = Relay(around.database, around.handlers)
    on = Backing(around.database, relay.kick)
    tail = Tail(around.database, around.listener, followers_max=around.watch_streams_max)
    changes = ChangeWatch(around.database, around.drain, streams_max=around.change_streams_max)
    watching = Watching(tail, changes, around.drain)
    delivery = UsageDelivery(around.database, around.ledger)
    _measure(delivery, telemetry)
    return Application(
        registrations=(
            Registration(
                add_executor_to_server,
                # What is not overridden answers UNIMPLEMENTED.
                ExecutorServicer(on, watching, around.trace_url_template),  # type: ignore[abstract]
                EXECUTOR_SERVICE,
            ),
            Registration(
                add_GrantServiceServicer_to_server,
                GrantServicer(on, watching, around.resources, around.leases),
                "cogni.executor.v1.GrantService",
            ),
            Registration(
                add_RunnerServiceServicer_to_server,
                RunnerServicer(on, around.sign),
                "cogni.executor.v1.RunnerService",
            ),
        ),
        access=ACCESS,
        rules=RULES,
        loops={
            "listener": around.listener.run,
            "tail": tail.run,
            "relay": relay.run,
            "reaper": Reaper(on, around.wake_up).run,
            "usage": delivery.run,
        },
    )


@asynccontextmanager
async def compose(process: Process[ExecutorSettings]) -> AsyncIterator[Application]:
    """Open what the server stands on, yield what it serves, close it again."""
    settings = process.settings
    key = load_service_key(settings.service_key)
    database = open_database(settings)
    hints = HintSender(make_broker(settings.broker_url.get_secret_value()))
    tokens = ServiceTokens(key, "executor")
    to_peer = partial(service_channel, tokens=tokens, tls=channel_credentials(settings))
    ledger = to_peer(settings.ledger_address, "ledger", safe_methods=ledger_adapter.SAFE_METHODS)
    connections = to_peer(
        settings.connections_address,
        "connections",
        safe_methods=connections_adapter.SAFE_METHODS,
    )
    ledger_client, connections_client = LedgerClient(ledger), ConnectionsClient(connections)
    around = Surroundings(
        database=database,
        listener=Listener(database.url, application_name="cogni-executor"),
        drain=process.drain,
        ledger=ledger_client,
        resources=GrantableResources(connections_client, ledger_client),
        leases=connections_client,
        handlers={
            owed.WAKE_UP: hints.handler(QUEUE, ACTOR, lambda entry: [entry.payload["run_id"]]),
            owed.REVOKE_LEASES: connections_client.revoke_owed,
        },
        wake_up=_wake_up(hints),
        sign=signer(key),
        trace_url_template=settings.trace_url_template or "",
        watch_streams_max=settings.watch_streams_max,
        change_streams_max=settings.change_streams_max,
    )
    try:
        await database.check()
        yield application(around, process.telemetry)
    finally:
        await ledger.close()
        await connections.close()
        hints.close()
        await database.close()


def open_database(settings: ExecutorSettings) -> Database:
    """Return the Executor's database as the settings describe it."""
    return Database.open(
        settings.database_url.get_secret_value(),
        "executor",
        application_name="cogni-executor",
        limits=DatabaseLimits.of(settings),
    )


def signer(key: Ed25519PrivateKey) -> Sign:
    """Return what signs run tokens with the Executor's key."""
    return lambda claims, now: mint_run_token(key, claims, now)


def _wake_up(hints: HintSender) -> WakeUp:
    async def send(run_ids: Iterable[str]) -> None:
        await hints.send_all(Hint(QUEUE, ACTOR, [run_id]) for run_id in run_ids)

    return send


def _measure(delivery: UsageDelivery, telemetry: Telemetry) -> None:
    telemetry.gauge(
        "cogni.executor.usage.conflicts",
        "Usage units that the Ledger holds with other content. Anything but 0 is an alarm.",
        lambda: [(delivery.conflicts, {})],
    )
