"""Puts the Ledger's server together from its parts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cogni.ledger.v1 import ledger_service_pb2_grpc
from services.ledger.access import ACCESS
from services.ledger.budgeting import Budgeting
from services.ledger.checkpoint import LogSigner
from services.ledger.closing import Closing
from services.ledger.completeness import Completeness
from services.ledger.correcting import Correcting
from services.ledger.directory import Directory
from services.ledger.following import Following
from services.ledger.holding import Holding
from services.ledger.posting import Poster
from services.ledger.price_books import PriceBooks
from services.ledger.price_list import PriceList
from services.ledger.proving import Proving
from services.ledger.reconciling import Reconciling
from services.ledger.recording import Recording
from services.ledger.rules import RULES
from services.ledger.run_close import GapKind
from services.ledger.server import LedgerServicer, Parts
from services.ledger.statements import Statements
from services.ledger.transferring import Transferring
from services.ledger.writer import Writer
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from services.runtime.listen import Listener
from services.runtime.server import Application, Registration
from services.runtime.telemetry import Telemetry

SERVICE = "cogni.ledger.v1.LedgerService"
_Reading = Iterable[tuple[float, Mapping[str, str]]]


@dataclass(slots=True)
class Meters:
    """What one process counts for its operator."""

    conflicts: int = 0

    def add_conflicts(self, count: int) -> None:
        """Count usage units whose key was recorded before with other content."""
        self.conflicts += count


def compose(
    database: Database,
    *,
    drain: Drain,
    signer: LogSigner | None = None,
    telemetry: Telemetry | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    new_account_id: Callable[[], str] = new_id,
    nonces: Callable[[int], bytes] = secrets.token_bytes,
) -> Application:
    """Return the application that serves `database`, which must be migrated.

    Without a `signer` the log is kept and proofs are refused.
    """
    listener = Listener(database.url, application_name="cogni-ledger")
    proving = Proving(database, signer, clock)
    writer = Writer(Poster(database, PriceBooks(), nonces).post)
    directory = Directory(database, new_account_id)
    meters = Meters()
    holding = Holding(database, directory, writer, clock, new_id)
    budgeting = Budgeting(database, directory, listener, drain, time.monotonic)
    completeness = Completeness(database)
    parts = Parts(
        directory=directory,
        transferring=Transferring(directory, writer, clock),
        correcting=Correcting(database, directory, writer),
        recording=Recording(directory, writer, clock, meters.add_conflicts),
        holding=holding,
        closing=Closing(database, holding),
        statements=Statements(database, clock),
        price_list=PriceList(database, new_id),
        budgeting=budgeting,
        proving=proving,
        completeness=completeness,
        reconciling=Reconciling(database),
        following=Following(database, listener, proving, drain, time.monotonic),
    )
    servicer = LedgerServicer(parts)
    registration = Registration(
        ledger_service_pb2_grpc.add_LedgerServiceServicer_to_server, servicer, SERVICE
    )
    if telemetry is not None:
        _report(telemetry, writer, meters, completeness)
    loops = {
        "writer": writer.run,
        "expiry": holding.expire_forever,
        "listener": listener.run,
        "budgets": budgeting.roll_forever,
        "completeness": completeness.check_forever,
    }
    return Application((registration,), ACCESS, RULES, loops=loops)


def _report(
    telemetry: Telemetry, writer: Writer, meters: Meters, completeness: Completeness
) -> None:
    def found() -> _Reading:
        # A kind without gaps reports zero: a series that ends looks like a check that died.
        return [(completeness.totals.get(kind, 0), {"kind": kind.name}) for kind in GapKind]

    def waiting() -> _Reading:
        return [(writer.waiting_commands, {})]

    def conflicts() -> _Reading:
        return [(meters.conflicts, {})]

    telemetry.gauge(
        "cogni.ledger.gaps", "Runs whose units are not those the Executor committed to.", found
    )
    telemetry.gauge("cogni.ledger.writer.waiting", "Commands that wait to be posted.", waiting)
    telemetry.gauge(
        "cogni.ledger.usage.conflicts",
        "Usage units that came again with other content; any is an alarm.",
        conflicts,
    )
