"""python -m services.scheduler: serve, migrate the database, or run the clock."""

from __future__ import annotations

import typer

from services.runtime.command import run_process, service_command
from services.scheduler.composition import compose, run_clock
from services.scheduler.settings import JobSettings, ServerProcessSettings

app = service_command(ServerProcessSettings, compose, package="services.scheduler")


@app.command("clock")
def clock() -> None:
    """Fires due schedules until SIGTERM or Ctrl-C. Any number may run side by side."""
    raise typer.Exit(run_process(JobSettings, run_clock))


if __name__ == "__main__":
    app()
