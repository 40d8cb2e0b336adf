"""Translates gaps, outside rows and differences."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from decimal import Decimal

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import reconciliation_pb2
from cogni.type.v1.amount_pb2 import Amount
from services.ledger.convert.scalars import moment_of, timestamp
from services.ledger.money import MoneyError, format_decimal, parse_decimal
from services.ledger.reconciliation import Cost, Difference, OutsideRow, Reconciled
from services.ledger.reconciling import Scope
from services.ledger.run_close import Gap
from services.runtime.errors import ServiceError, Violation, invalid

ROWS_MAX = 10_000
_COLUMNS = frozenset({"asset", "cost"})


def gap(gap: Gap) -> reconciliation_pb2.Gap:
    """Return the message of a gap."""
    return reconciliation_pb2.Gap(
        run_id=gap.run_id,
        kind=reconciliation_pb2.GapKind.ValueType(gap.kind),
        committed_unit_count=gap.committed,
        recorded_unit_count=gap.recorded,
        detect_time=timestamp(gap.detect_time),
    )


def scope(request: pb.ReconcileUsageRequest) -> Scope:
    """Return which units a request compares."""
    return Scope(
        request.run_id,
        moment_of(request.start_time) if request.HasField("start_time") else None,
        moment_of(request.end_time) if request.HasField("end_time") else None,
        request.provider,
    )


def tolerance(request: pb.ReconcileUsageRequest) -> Decimal:
    """Return how much costs may differ unreported."""
    return parse_decimal(request.tolerance.value) if request.HasField("tolerance") else Decimal(0)


def outside_rows(request: pb.ReconcileUsageRequest) -> list[OutsideRow]:
    """Return the rows of a request; raises INVALID_ARGUMENT that names the wrong ones."""
    if request.csv:
        return list(_csv_rows(request.csv))
    rows: list[OutsideRow] = []
    violations: list[Violation] = []
    for index, each in enumerate(request.rows):
        try:
            cost = Cost(each.cost.asset, parse_decimal(each.cost.value))
        except MoneyError as error:
            violations.append(Violation(f"rows[{index}].cost.value", str(error)))
            continue
        rows.append(
            OutsideRow(
                each.external_reference, each.source_reference, each.provider_response_id, cost
            )
        )
    if violations:
        raise invalid(*violations)
    return rows


def reconciled(
    result: Reconciled, source: reconciliation_pb2.ExternalSource.ValueType
) -> pb.ReconcileUsageResponse:
    """Return the answer of ReconcileUsage."""
    return pb.ReconcileUsageResponse(
        differences=[_difference(each, source) for each in result.differences],
        matched_count=result.matched_count,
        ledger_totals=_totals(result.inside_totals),
        external_totals=_totals(result.outside_totals),
    )


def _csv_rows(data: bytes) -> Iterator[OutsideRow]:
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), strict=True)
        missing = _COLUMNS - set(reader.fieldnames or ())
        if missing:
            raise _bad_csv(1, f"has no column {' and '.join(sorted(missing))}")
        for number, row in enumerate(reader, 2):
            if number > ROWS_MAX + 1:
                raise _bad_csv(number, f"is more than {ROWS_MAX} rows")
            yield _csv_row(number, row)
    except UnicodeDecodeError:
        raise invalid(Violation("csv", "must be UTF-8 text")) from None
    except csv.Error as error:
        raise invalid(Violation("csv", f"is no CSV: {error}")) from None


def _csv_row(number: int, row: Mapping[str, str | None]) -> OutsideRow:
    try:
        cost = Cost(row.get("asset") or "", parse_decimal(row.get("cost") or ""))
    except MoneyError as error:
        raise _bad_csv(number, f"cost {error}") from None
    return OutsideRow(
        row.get("external_reference") or "",
        row.get("source_reference") or "",
        row.get("provider_response_id") or "",
        cost,
    )


def _bad_csv(number: int, what: str) -> ServiceError:
    return invalid(Violation("csv", f"line {number} {what}"))


def _difference(
    difference: Difference, source: reconciliation_pb2.ExternalSource.ValueType
) -> reconciliation_pb2.Difference:
    message = reconciliation_pb2.Difference(
        kind=reconciliation_pb2.DifferenceKind.ValueType(difference.kind),
        source=source,
        source_reference=difference.source_reference,
        external_reference=difference.external_reference,
        run_id=difference.run_id,
    )
    if difference.inside is not None:
        message.ledger_cost.CopyFrom(_amount(difference.inside))
    if difference.outside is not None:
        message.external_cost.CopyFrom(_amount(difference.outside))
    return message


def _totals(totals: Mapping[str, Decimal]) -> list[Amount]:
    return [_amount(Cost(asset, value)) for asset, value in sorted(totals.items())]


def _amount(cost: Cost) -> Amount:
    return Amount(asset=cost.asset, value=format_decimal(cost.value))
