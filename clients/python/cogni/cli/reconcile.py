"""`cogni ledger reconcile`: the Ledger beside the gateway's log and a provider's invoice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cogni.cli import outside_costs
from cogni.cli.arguments import JsonOption, amount, labels, moment
from cogni.cli.output import amount_of, console, name_of, print_json, show_all
from cogni.client import Client
from cogni.ledger.v1.ledger_service_pb2 import ReconcileUsageRequest, ReconcileUsageResponse
from cogni.ledger.v1.reconciliation_pb2 import (
    Difference,
    DifferenceKind,
    ExternalCost,
    ExternalSource,
)

EXIT_DIFFERENT = 5
ROWS_MAX = 10_000
_GATEWAY = ExternalSource.EXTERNAL_SOURCE_GATEWAY
_INVOICE = ExternalSource.EXTERNAL_SOURCE_INVOICE
# LiteLLM adds in floats: below this its digits are noise.
_GATEWAY_TOLERANCE = "0.000000000001 USD"


def reconcile(
    run: Annotated[str, typer.Option(help="Only this run; the files must be of it too.")] = "",
    start: Annotated[str, typer.Option("--from", help="Begin of the period.")] = "",
    end: Annotated[str, typer.Option("--to", help="End of the period.")] = "",
    provider: Annotated[str, typer.Option(help="Only model calls to this provider.")] = "",
    gateway: Annotated[
        Path | None,
        typer.Option(help="Spend logs of the LiteLLM gateway: JSON, JSON lines or .csv."),
    ] = None,
    invoice: Annotated[Path | None, typer.Option(help="A provider's invoice as CSV.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help=f"What the invoice calls one of: {', '.join(outside_costs.COLUMNS)}."),
    ] = None,
    asset: Annotated[str, typer.Option(help="What an invoice without asset is in.")] = "USD",
    tolerance: Annotated[
        str | None, typer.Option(help="Report no smaller difference per unit, like '0.01 USD'.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the Ledger with others' accounts and list every unit on which they disagree.

    Exits 5 when they do.
    """
    if gateway is None and invoice is None:
        raise typer.BadParameter("name a --gateway log, an --invoice, or both")
    given = labels(column)
    unknown = set(given) - set(outside_costs.COLUMNS)
    if unknown:
        raise typer.BadParameter(f"an invoice has no {', '.join(sorted(unknown))}")
    request = ReconcileUsageRequest(run_id=run, provider=provider)
    if start:
        request.start_time.CopyFrom(moment(start))
    if end:
        request.end_time.CopyFrom(moment(end))
    try:
        sources = [
            (_GATEWAY, tolerance or _GATEWAY_TOLERANCE, outside_costs.spend_logs(gateway))
            if gateway
            else None,
            (_INVOICE, tolerance, outside_costs.invoice(invoice, given, asset))
            if invoice
            else None,
        ]
    except outside_costs.OutsideFileError as error:
        raise typer.BadParameter(str(error)) from None
    with Client() as client:
        answers = [_compare(client, request, *source) for source in sources if source is not None]
    _print(answers, as_json)
    if any(answer.differences for _, answer in answers):
        raise typer.Exit(EXIT_DIFFERENT)


_Answer = tuple[ExternalSource.ValueType, ReconcileUsageResponse]


def _compare(
    client: Client,
    request: ReconcileUsageRequest,
    source: ExternalSource.ValueType,
    tolerance: str | None,
    rows: Sequence[ExternalCost],
) -> _Answer:
    of_source = ReconcileUsageRequest(source=source, rows=_within(request, rows))
    of_source.MergeFrom(request)
    if tolerance:
        of_source.tolerance.CopyFrom(amount(tolerance))
    if len(of_source.rows) > ROWS_MAX:
        raise typer.BadParameter(
            f"{len(of_source.rows)} rows are more than the {ROWS_MAX} that are compared at once; "
            "choose a shorter period"
        )
    return source, client.ledger.ReconcileUsage(of_source)


def _within(request: ReconcileUsageRequest, rows: Sequence[ExternalCost]) -> list[ExternalCost]:
    """Leave out what a file says of other times; rows without a time stay."""

    def is_within(row: ExternalCost) -> bool:
        if not row.HasField("occur_time"):
            return True
        at = row.occur_time.ToNanoseconds()
        begins, ends = request.start_time, request.end_time
        after = not request.HasField("start_time") or begins.ToNanoseconds() <= at
        return after and (not request.HasField("end_time") or at < ends.ToNanoseconds())

    return [row for row in rows if is_within(row)]


def _print(answers: Sequence[_Answer], as_json: bool) -> None:
    if as_json:
        for _, answer in answers:
            print_json(answer)
        return
    for source, answer in answers:
        ours = ", ".join(map(amount_of, answer.ledger_totals)) or "nothing"
        theirs = ", ".join(map(amount_of, answer.external_totals)) or "nothing"
        name = name_of(ExternalSource, "EXTERNAL_SOURCE", source)
        console().print(
            f"{name}: {answer.matched_count} units agree, {len(answer.differences)} differ; "
            f"ledger {ours}, {name} {theirs}"
        )
    found = [difference for _, answer in answers for difference in answer.differences]
    if found:
        columns = ("source", "difference", "unit", "ledger", "outside", "their reference", "run")
        show_all(found, columns, _row, False)


def _row(difference: Difference) -> tuple[str, ...]:
    return (
        name_of(ExternalSource, "EXTERNAL_SOURCE", difference.source),
        name_of(DifferenceKind, "DIFFERENCE_KIND", difference.kind).replace("_", " "),
        difference.source_reference,
        amount_of(difference.ledger_cost),
        amount_of(difference.external_cost),
        difference.external_reference,
        difference.run_id,
    )
