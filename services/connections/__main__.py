"""python -m services.connections: serve, or migrate the database."""

from __future__ import annotations

import sys
from datetime import timedelta

import typer

from services.connections.composition import compose
from services.connections.egress_rules import EgressRules
from services.connections.settings import (
    ConnectionsSettings,
    MigrateSettings,
    database_limits,
    key_ring,
)
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.failures import DatabaseUnusableError
from services.runtime.logs import start_logs
from services.runtime.migrations import check_migrated, migrate
from services.runtime.port import Listen
from services.runtime.process import run_server
from services.runtime.server import serve
from services.runtime.settings import load, load_or_exit
from services.runtime.telemetry import start_telemetry
from services.runtime.tokens import TokenVerifier

NAME, SCHEMA, PACKAGE = "connections", "connections", "services.connections"

app = typer.Typer(add_completion=False, help="The Connections service.")


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Serve, unless a command is given."""
    if context.invoked_subcommand is not None:
        return
    settings = load_or_exit(ConnectionsSettings)
    start_logs(settings, NAME)
    raise SystemExit(
        run_server(
            serve_connections,
            listen=settings.listen,
            processes=settings.processes,
            drain_seconds=settings.drain_seconds,
        )
    )


@app.command("migrate")
def migrate_database() -> None:
    """Bring the database schema up to this release."""
    settings = load_or_exit(MigrateSettings)
    try:
        revision = migrate(settings.database_url.get_secret_value(), SCHEMA, PACKAGE)
    except DatabaseUnusableError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
    sys.stdout.write(f"The schema {SCHEMA!r} is at revision {revision}.\n")


async def serve_connections(listen: Listen) -> None:
    """One server process; runs until it is told to stop."""
    settings = load(ConnectionsSettings)
    start_logs(settings, NAME)
    telemetry = start_telemetry(settings, NAME)
    url = settings.database_url.get_secret_value()
    database = Database.open(
        url, SCHEMA, application_name="cogni-connections", limits=database_limits(settings)
    )
    parts = compose(
        database,
        key_ring(settings),
        EgressRules.parse(settings.egress_allow),
        provider_timeout=timedelta(seconds=settings.provider_timeout_seconds),
    )
    try:
        await check_migrated(url, SCHEMA, PACKAGE)
        await serve(
            parts.application,
            settings,
            listen,
            verifier=TokenVerifier.from_settings(settings, NAME),
            telemetry=telemetry,
            drain=Drain(),
        )
    finally:
        await parts.close()
        await database.close()
        telemetry.shutdown()


if __name__ == "__main__":
    app()
