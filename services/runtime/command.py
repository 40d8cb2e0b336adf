"""The command line of a service: serve by default, `migrate`, and `settings` to print the table."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import typer

from services.runtime.drain import Drain
from services.runtime.errors import StartError
from services.runtime.logs import start_logs
from services.runtime.migrations import check_migrated, migrate
from services.runtime.port import Listen
from services.runtime.process import (
    EXIT_INTERRUPTED,
    EXIT_START,
    Name,
    find,
    name_of,
    run_server,
)
from services.runtime.server import Application, serve
from services.runtime.settings import (
    DatabaseSettings,
    ServerSettings,
    ServiceSettings,
    load_or_exit,
    settings_table,
)
from services.runtime.telemetry import Telemetry, start_telemetry
from services.runtime.tokens import TokenVerifier


class ServiceProcessSettings(ServerSettings, DatabaseSettings, ServiceSettings):
    """What every gRPC server of ours reads; a service's settings class extends it."""


Settings = TypeVar("Settings", bound=ServiceProcessSettings)
AnySettings = TypeVar("AnySettings", bound=ServiceSettings)


@dataclass(frozen=True, slots=True)
class Process(Generic[AnySettings]):
    """What a process is given: its settings, what it measures with, and when it shall end."""

    settings: AnySettings
    telemetry: Telemetry
    drain: Drain


#: Opens what the service stands on, yields what it serves, closes again. A module-level function:
#: each spawned process imports it by its name.
Compose = Callable[[Process[Settings]], AbstractAsyncContextManager[Application]]


def service_command(
    settings_class: type[Settings], compose: Compose[Settings], *, package: str
) -> typer.Typer:
    """The service's Typer app; more commands can be added to it.

    `package` ("services.ledger") is where the migrations of the schema named like the service
    are. Settings are read, and told wrong, before anything else happens.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    service = settings_class.service
    main = _Main(settings_class, compose, package)

    @app.callback(invoke_without_command=True)
    def serve_by_default(context: typer.Context) -> None:
        """Serves until SIGTERM or Ctrl-C, unless another command is named."""
        if context.invoked_subcommand is not None:
            return
        settings = load_or_exit(settings_class)
        start_logs(settings, service)
        raise typer.Exit(
            run_server(
                main,
                listen=settings.listen,
                processes=settings.processes,
                drain_seconds=settings.drain_seconds,
            )
        )

    @app.command("migrate")
    def migrate_schema() -> None:
        """Brings the service's schema up to date; safe to run by many processes at once."""
        settings = load_or_exit(settings_class)
        try:
            head = migrate(settings.database_url.get_secret_value(), service, package)
        except StartError as error:
            sys.stderr.write(f"{error}\n")
            raise typer.Exit(EXIT_START) from None
        typer.echo(f"The schema {service!r} is at revision {head}.")

    @app.command("settings")
    def print_settings() -> None:
        """Prints every variable this process reads, as a Markdown table."""
        typer.echo(settings_table(settings_class), nl=False)

    return app


class _Main:
    """The server's main: what each process runs, whichever module its parts were defined in."""

    def __init__(
        self, settings_class: type[Any], compose: Callable[..., Any], package: str
    ) -> None:
        self._settings_class = settings_class
        self._compose = compose
        self._package = package

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (name_of(self._settings_class), name_of(self._compose), self._package)
        return _load_main, parts

    async def __call__(self, listen: Listen) -> None:
        """Serves at `listen` until the process is told to stop."""
        settings = load_or_exit(self._settings_class)
        service, url = settings.service, settings.database_url.get_secret_value()
        async with _process(settings) as process:
            verifier = TokenVerifier.from_settings(settings, service)
            await check_migrated(url, service, self._package)
            async with self._compose(process) as application:
                await serve(
                    application,
                    settings,
                    listen,
                    verifier=verifier,
                    telemetry=process.telemetry,
                    drain=process.drain,
                )


def _load_main(settings_class: Name, compose: Name, package: str) -> _Main:
    return _Main(find(settings_class), find(compose), package)


def run_process(
    settings_class: type[AnySettings], work: Callable[[Process[AnySettings]], Awaitable[Any]]
) -> int:
    """Runs a process that serves no gRPC (a clock, say) until `work` returns; the exit code.

    SIGTERM and SIGINT set `drain.draining`, upon which `work` must end.
    """
    settings = load_or_exit(settings_class)

    async def main() -> None:
        async with _process(settings) as process:
            process.drain.begin_on((signal.SIGTERM, signal.SIGINT))
            await work(process)

    try:
        asyncio.run(main())
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_START
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


@asynccontextmanager
async def _process(settings: AnySettings) -> AsyncIterator[Process[AnySettings]]:
    start_logs(settings, settings.service)
    telemetry = start_telemetry(settings, settings.service)
    telemetry.install()
    try:
        yield Process(settings, telemetry, Drain())
    finally:
        # Blocks for as long as the collector takes, which is bounded; nothing else runs by now.
        telemetry.shutdown()
