"""Composes the runner of one process, and runs it in a thread beside the broker's workers."""

import asyncio
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc

from cogni.egress_rules import EgressRules
from cogni.graph.egress import egress_allowed_by
from cogni.graph.guarding import guard_every_tool
from services.executor.graphs import EVERY_TENANT
from services.executor.runner.attempt import Workshop
from services.executor.runner.catalogue import Catalogue
from services.executor.runner.credentials import LeasedCredentials
from services.executor.runner.holds import LedgerHolds
from services.executor.runner.journal import Journal
from services.executor.runner.lease_keeper import KeeperTimes, LeaseKeeper
from services.executor.runner.loop import Loop, LoopSettings
from services.executor.runner.project import ProjectError
from services.executor.runner.settings import RunnerSettings
from services.executor.runner.tokens import RunTokens
from services.executor.store import graphs
from services.executor.store.leases import LeaseTimes
from services.runtime.channels import sync_service_channel
from services.runtime.database import Database
from services.runtime.errors import ServiceError, StartError
from services.runtime.listen import Listener
from services.runtime.logs import start_logs
from services.runtime.migrations import check_migrated
from services.runtime.pools import DatabaseLimits
from services.runtime.settings import SettingsError
from services.runtime.telemetry import start_telemetry
from services.runtime.tls import channel_credentials
from services.runtime.tokens import ServiceTokens, load_service_key

_log = logging.getLogger(__name__)

#: Renewals per lease: two may fail before a lease is lost.
_RENEWALS_PER_LEASE = 3
#: After so many suspicions a run is carried by an otherwise idle process or not at all.
_COMPANY_SUSPICIONS_MAX = 3
#: How often the catalogue says that its graphs are still here.
_PUBLISH_SECONDS = 60.0
#: What a stopping process still waits for, beyond the drain, before it ends anyway.
_END_SECONDS = 30.0
EXIT_FAILED = 1


class RunnerStartError(Exception):
    """Raised when the runner cannot begin; the text says what to do."""


class Runner:
    """The runner as the worker's process sees it: started, woken, stopped."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self._loop: Loop | None = None
        self._stopping = threading.Event()
        self._began = threading.Event()
        self._failure: RunnerStartError | None = None
        self._thread = threading.Thread(target=self._run, name="runner", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own; returns when runs are carried and graphs published.

        Raises RunnerStartError with a sentence when that cannot be. Later failures end the
        process: a worker that takes messages and carries no run would look alive.
        """
        self._thread.start()
        self._began.wait()
        if self._failure is not None:
            raise self._failure

    def wake(self) -> None:
        """Look for runs now."""
        if self._loop is not None:
            self._loop.wake()

    def stop(self) -> None:
        """Let runs end or hand them over, and return when that is done."""
        self._stopping.set()
        if self._loop is not None:
            self._loop.drain()
        self._thread.join(self._settings.runner_drain_seconds + _END_SECONDS)

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except (StartError, SettingsError, ProjectError, ServiceError) as error:
            self._fail(str(error))
        except BaseException:
            _log.exception("the runner failed; its process ends")
            self._fail("The runner failed; its log says why.")

    def _fail(self, sentence: str) -> None:
        if self._began.is_set():
            sys.stderr.write(f"{sentence}\n")
            sys.stderr.flush()
            os._exit(EXIT_FAILED)
        self._failure = RunnerStartError(sentence)
        self._began.set()

    async def _main(self) -> None:
        settings = self._settings
        start_logs(settings, "runner")
        telemetry = start_telemetry(settings, "runner")
        telemetry.install()
        catalogue = Catalogue.load(settings.graphs_file)
        url = settings.database_url.get_secret_value()
        await check_migrated(url, "executor", "services.executor")
        database = _database(settings)
        try:
            rules = EgressRules.parse(settings.runner_egress_allow)
            with guard_every_tool(), egress_allowed_by(rules):
                await self._carry(database, catalogue)
        finally:
            await database.close()
            telemetry.shutdown()

    async def _carry(self, database: Database, catalogue: Catalogue) -> None:
        settings = self._settings
        pumps: set[asyncio.Task[Any]] = set()
        journal = Journal(database)
        peers = _Peers.of(settings)
        workshop = Workshop(
            database, journal, catalogue, peers.credentials, peers.holds, _adopter(pumps)
        )
        listener = Listener(settings.database_url.get_secret_value(), application_name="runner")
        background = [
            asyncio.create_task(each)
            for each in (journal.run(), listener.run(), _keep_published(database, catalogue))
        ]
        self._loop = Loop(workshop, _loop_settings(settings), self._keeper, listener)
        if self._stopping.is_set():
            self._loop.drain()
        await _publish(database, catalogue)
        # The embedded stack waits for this line: from now on runs can be started.
        _log.info("the graphs are published")
        self._began.set()
        try:
            await self._loop.run()
            await _drain_pumps(pumps, settings.runner_drain_seconds)
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await journal.drain()
            peers.close()

    def _keeper(self, lost: Callable[[str, int], None]) -> LeaseKeeper:
        settings = self._settings
        lease = timedelta(seconds=settings.runner_lease_seconds)
        times = KeeperTimes(
            lease=lease,
            renewal=lease / _RENEWALS_PER_LEASE,
            loop_stall=timedelta(seconds=settings.runner_loop_stall_seconds),
        )
        return LeaseKeeper(lambda: _database(settings), _holder(), times, lost)


def _database(settings: RunnerSettings) -> Database:
    return Database.open(
        settings.database_url.get_secret_value(),
        "executor",
        application_name="runner",
        limits=DatabaseLimits.of(settings),
    )


@dataclass(frozen=True)
class _Peers:
    """What the runner asks of the other services, under run tokens."""

    tokens: RunTokens
    credentials: LeasedCredentials
    holds: LedgerHolds

    @classmethod
    def of(cls, settings: RunnerSettings) -> "_Peers":
        service_tokens = ServiceTokens(load_service_key(settings.service_key), "runner")
        encryption = channel_credentials(settings)

        def to(service: str, address: str, *methods: str) -> Callable[[], grpc.Channel]:
            safe = [f"/cogni.{service}.v1.{method}" for method in methods]
            return lambda: sync_service_channel(
                address, service, service_tokens, encryption, safe_methods=safe
            )

        tokens = RunTokens(to("executor", settings.address, "RunnerService/MintRunToken"))
        leasing = "ConnectionsService/LeaseCredential"
        holding = ("LedgerService/PlaceHold", "LedgerService/ReleaseHold")
        return cls(
            tokens,
            LeasedCredentials(to("connections", settings.connections_address, leasing), tokens),
            LedgerHolds(to("ledger", settings.ledger_address, *holding), tokens),
        )

    def close(self) -> None:
        self.tokens.close()
        self.credentials.close()
        self.holds.close()


def _loop_settings(settings: RunnerSettings) -> LoopSettings:
    return LoopSettings(
        holder=_holder(),
        slots=settings.runner_slots,
        times=LeaseTimes(
            lease=timedelta(seconds=settings.runner_lease_seconds),
            clock_skew=timedelta(seconds=settings.runner_clock_skew_seconds),
            patience=timedelta(seconds=settings.runner_patience_seconds),
            company_suspicions_max=_COMPANY_SUSPICIONS_MAX,
        ),
        probation=timedelta(seconds=settings.runner_probation_seconds),
        drain=timedelta(seconds=settings.runner_drain_seconds),
    )


def _holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _adopter(pumps: set[asyncio.Task[Any]]) -> Callable[[asyncio.Task[Any]], None]:
    def adopt(pump: asyncio.Task[Any]) -> None:
        pumps.add(pump)
        pump.add_done_callback(pumps.discard)

    return adopt


async def _publish(database: Database, catalogue: Catalogue) -> None:
    published = await catalogue.published()
    async with database.raw_jobs() as tx:
        await graphs.publish(tx, EVERY_TENANT, published)


async def _keep_published(database: Database, catalogue: Catalogue) -> None:
    """Say again and again that the graphs are here: the newest said is the newest revision."""
    while True:
        await asyncio.sleep(_PUBLISH_SECONDS)
        try:
            await _publish(database, catalogue)
        except (ServiceError, OSError) as error:
            _log.warning("graphs could not be published (%s)", error)


async def _drain_pumps(pumps: set[asyncio.Task[Any]], seconds: float) -> None:
    """Let calls to providers come to their end; what is left is settled from its estimate."""
    if pumps:
        await asyncio.wait(set(pumps), timeout=seconds)
    for pump in list(pumps):
        pump.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)
