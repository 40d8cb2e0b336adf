"""`python -m bench`: runs the parts' benchmarks one after another and prints one table.

Each part is a module `bench/<part>.py` with `measure(report, long)`. A part that fails is named,
the others still run, and the command exits 1.
"""

from __future__ import annotations

import importlib
import tempfile
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench.report import Report

PARTS = ("executor", "scheduler", "connections", "ledger", "stack")


def main(
    only: Annotated[str | None, typer.Option(help=f"One of {', '.join(PARTS)}.")] = None,
    long: Annotated[bool, typer.Option("--long", help="More runs, larger sizes.")] = False,
    json: Annotated[Path | None, typer.Option(help="Where the rows go as JSON.")] = None,
) -> None:
    """Measure our figures beside the peers'."""
    if only is not None and only not in PARTS:
        raise typer.BadParameter(f"ONLY must be one of {', '.join(PARTS)}")
    console = Console(width=140)
    report = Report()
    failed = []
    for part in [only] if only else PARTS:
        console.print(f"[bold]{part}[/bold]")
        started = time.monotonic()
        try:
            importlib.import_module(f"bench.{part}").measure(report, long)
        except Exception:
            # One part's failure must not hide the figures of the others.
            traceback.print_exc()
            failed.append(part)
        console.print(f"  {time.monotonic() - started:.0f} s")
    report.print(console)
    target = json or Path(tempfile.mkdtemp(prefix="cogni-bench-")) / "bench.json"
    report.write_json(target)
    console.print(f"The same rows as JSON: {target}")
    if failed:
        console.print(f"[red]failed: {', '.join(failed)}[/red]")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
