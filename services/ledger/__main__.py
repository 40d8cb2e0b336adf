"""`python -m services.ledger`: serve the Ledger, or `migrate` its schema."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Annotated

import typer

from services.ledger.checkpoint import LogSigner
from services.ledger.composition import compose
from services.ledger.settings import LedgerSettings, MigrationSettings
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.errors import StartError
from services.runtime.failures import DatabaseUnusableError
from services.runtime.logs import start_logs
from services.runtime.migrations import check_migrated, migrate
from services.runtime.pools import DatabaseLimits
from services.runtime.port import Listen
from services.runtime.process import EXIT_START, run_server
from services.runtime.server import serve
from services.runtime.settings import SettingsError, load_or_exit, settings_table
from services.runtime.telemetry import start_telemetry
from services.runtime.tokens import TokenVerifier

_PACKAGE = "services.ledger"
_SCHEMA = "ledger"

app = typer.Typer(add_completion=False, help=__doc__, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Serve until told to stop."""
    if context.invoked_subcommand is not None:
        return
    settings = load_or_exit(LedgerSettings)
    start_logs(settings, _SCHEMA)
    raise SystemExit(
        run_server(
            run,
            listen=settings.listen,
            processes=settings.processes,
            drain_seconds=settings.drain_seconds,
        )
    )


@app.command("migrate")
def migrate_schema(
    wait_seconds: Annotated[
        float, typer.Option(help="How long to wait for another process that migrates.")
    ] = 120.0,
) -> None:
    """Bring the schema to what this release needs; safe to run from many processes at once."""
    settings = load_or_exit(MigrationSettings)
    url = settings.database_url.get_secret_value()
    try:
        head = migrate(url, _SCHEMA, _PACKAGE, wait_for_others=timedelta(seconds=wait_seconds))
    except DatabaseUnusableError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(EXIT_START) from None
    sys.stdout.write(f"The schema {_SCHEMA!r} is at revision {head}.\n")


@app.command("settings")
def print_settings() -> None:
    """Print every variable this process reads, as a Markdown table."""
    sys.stdout.write(settings_table(LedgerSettings))


async def run(listen: Listen) -> None:
    """One server process; imported anew in every spawned one."""
    settings = load_or_exit(LedgerSettings)
    start_logs(settings, _SCHEMA)
    try:
        verifier = TokenVerifier.from_settings(settings, _SCHEMA)
    except SettingsError as error:
        raise StartError(str(error)) from error
    telemetry = start_telemetry(settings, _SCHEMA)
    url = settings.database_url.get_secret_value()
    database = Database.open(
        url, _SCHEMA, application_name=f"cogni-{_SCHEMA}", limits=_limits(settings)
    )
    try:
        await _check(database)
        drain = Drain()
        await serve(
            compose(database, drain=drain, signer=_signer(settings), telemetry=telemetry),
            settings,
            listen,
            verifier=verifier,
            telemetry=telemetry,
            drain=drain,
        )
    finally:
        await database.close()
        telemetry.shutdown()


async def _check(database: Database) -> None:
    try:
        await database.check()
        await check_migrated(database.url, _SCHEMA, _PACKAGE)
    except DatabaseUnusableError as error:
        raise StartError(str(error)) from error


def _signer(settings: LedgerSettings) -> LogSigner | None:
    if settings.log_key is None:
        return None
    try:
        return LogSigner.from_pem(settings.log_key.get_secret_value(), settings.log_origin)
    except ValueError as error:
        raise StartError(f"COGNI_LEDGER_LOG_KEY_FILE holds no usable key: {error}.") from error


def _limits(settings: LedgerSettings) -> DatabaseLimits:
    return DatabaseLimits(
        raw_connections_max=settings.database_pool_size,
        statement=timedelta(seconds=settings.database_statement_timeout_seconds),
        lock=timedelta(seconds=settings.database_lock_timeout_seconds),
        idle_in_transaction=timedelta(seconds=settings.database_idle_timeout_seconds),
    )


if __name__ == "__main__":
    app()
