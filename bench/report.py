"""The rows a benchmark run collects, as a table for people and JSON for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure. `ratio` is `value / peer_value`; both None where the row has no peer."""

    area: str
    name: str
    unit: str
    value: float
    peer: str | None
    peer_value: float | None
    ratio: float | None
    runs: int


class Report:
    """Collects rows of one area after another, in the order they were measured."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(
        self,
        area: str,
        name: str,
        unit: str,
        values: Sequence[float],
        *,
        peer: str | None = None,
        peer_values: Sequence[float] = (),
    ) -> Row:
        """Adds the median of `values`, as a ratio to the median of `peer_values` if there are any.

        Raises ValueError when nothing was measured: an empty row would read as a result.
        """
        if not values:
            raise ValueError(f"{area}/{name} measured nothing")
        value = statistics.median(values)
        peer_value = statistics.median(peer_values) if peer_values else None
        ratio = value / peer_value if peer_value else None
        row = Row(area, name, unit, value, peer, peer_value, ratio, len(values))
        self.rows.append(row)
        return row

    def print(self, console: Console) -> None:
        table = Table("area", "name", "unit", "value", "peer", "peer value", "ratio", "runs")
        for row in self.rows:
            table.add_row(
                row.area,
                row.name,
                row.unit,
                _figure(row.value),
                row.peer or "",
                _figure(row.peer_value),
                "" if row.ratio is None else f"{row.ratio:.2f}",
                str(row.runs),
            )
        console.print(table)

    def write_json(self, path: Path) -> None:
        path.write_text(json.dumps([asdict(row) for row in self.rows], indent=2) + "\n")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
