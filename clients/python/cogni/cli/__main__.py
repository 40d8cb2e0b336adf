"""`cogni`: composes the command groups and turns every failure into a sentence."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from cogni.cli import authorizing, grants, graphs, ledger, runs, schedules
from cogni.client import CogniError, SettingsError

app = typer.Typer(
    name="cogni",
    help=(
        "Run, schedule and watch unattended agents.\n\n"
        "Addresses come from COGNI_{EXECUTOR,SCHEDULER,CONNECTIONS,LEDGER}_ADDRESS and the token "
        "from COGNI_TOKEN or COGNI_TOKEN_FILE; `make up` prints both."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(runs.app, name="runs")
app.add_typer(grants.app, name="grants")
app.add_typer(graphs.app, name="graphs")
app.add_typer(schedules.app, name="schedules")
app.add_typer(authorizing.app, name="connections")
app.add_typer(ledger.app, name="ledger")

EXIT_REFUSED = 1
#: Refusals that another token would end; the server cannot know where this side takes it from.
TOKEN_REASONS = {"TOKEN_MISSING", "TOKEN_INVALID", "TOKEN_EXPIRED"}
ADVICE = (
    "  set COGNI_TOKEN or COGNI_TOKEN_FILE; for the stack of `make up`: "
    'eval "$(python -m services.standalone env)"'
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cogni {version('cogni')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """What goes before a command. Its help is the app's own."""


def explain(error: CogniError) -> str:
    """A refusal as a person reads it: what, why, every violated field."""
    reason = f" [{error.reason}]" if error.reason else ""
    lines = [f"{error.message}{reason}"]
    lines += [f"  {violation.field}: {violation.description}" for violation in error.violations]
    if error.retry_after is not None:
        lines.append(f"  try again in {error.retry_after.total_seconds():g} s")
    if error.reason in TOKEN_REASONS:
        lines.append(ADVICE)
    return "\n".join(lines)


def main() -> None:
    """The console script. Exits 1 when the server refuses, 2 when the command line is wrong."""
    complaints = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    try:
        app()
    except CogniError as error:
        complaints.print(explain(error), style="red")
        sys.exit(EXIT_REFUSED)
    except SettingsError as error:
        complaints.print(str(error), style="red")
        sys.exit(EXIT_REFUSED)
    except BrokenPipeError:
        # The reader of our output went away, as in `cogni runs list | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_REFUSED)
    except UnicodeEncodeError:
        complaints.print("An argument holds bytes that are not UTF-8; write it again.", style="red")
        sys.exit(EXIT_REFUSED)
    except OSError as error:
        # What is left here is our own output: commands answer for the files they are given.
        complaints.print(f"The output cannot be written: {error.strerror or error}.", style="red")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_REFUSED)


if __name__ == "__main__":
    main()
