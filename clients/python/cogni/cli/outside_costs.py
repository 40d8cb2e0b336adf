"""What others say usage cost: spend logs of the LiteLLM gateway, and invoices as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cogni.ledger.v1.reconciliation_pb2 import ExternalCost
from cogni.type.v1.amount_pb2 import Amount

#: The columns of an invoice, as the Ledger calls them.
COLUMNS = (
    "cost",
    "asset",
    "external_reference",
    "source_reference",
    "provider_response_id",
    "occur_time",
)


class OutsideFileError(ValueError):
    """Raised when a file is not what it should be; the message names the row."""


def spend_logs(path: Path) -> list[ExternalCost]:
    """Read rows of LiteLLM_SpendLogs: JSON as its API gives it, JSON lines, or the table as CSV.

    A row belongs to the model call whose id it has as litellm_call_id, in a column or in its
    metadata; rows of a gateway that kept none are matched by the provider's response id.
    """
    return [_spend(number, row) for number, row in enumerate(_spend_rows(path), 1)]


def invoice(path: Path, columns: Mapping[str, str], asset: str) -> list[ExternalCost]:
    """Read an invoice's CSV. `columns` says which of its columns is which of `COLUMNS`.

    `asset` is what rows without an asset are in.
    """
    return [
        _external(
            f"{path}: row {number}",
            _decimal(row.get(columns.get("cost", "cost"))),
            row.get(columns.get("asset", "asset")) or asset,
            row.get(columns.get("occur_time", "occur_time")),
            **{
                name: row.get(columns.get(name, name)) or ""
                for name in ("external_reference", "source_reference", "provider_response_id")
            },
        )
        for number, row in enumerate(_csv_rows(path, columns.get("cost", "cost")), 1)
    ]


def _spend(number: int, row: Mapping[str, Any]) -> ExternalCost:
    call_id = row.get("litellm_call_id") or _metadata(row).get("litellm_call_id") or ""
    request_id = str(row.get("request_id") or "")
    return _external(
        f"spend log {number}",
        _decimal(row.get("spend")),
        "USD",
        row.get("startTime"),
        external_reference=request_id,
        source_reference=str(call_id),
        # LiteLLM's request_id is the provider's response id where there was one.
        provider_response_id="" if call_id else request_id,
    )


def _metadata(row: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = row.get("metadata")
    if isinstance(metadata, str):
        try:
            metadata = json.loads(metadata)
        except ValueError:
            return {}
    return metadata if isinstance(metadata, dict) else {}


def _spend_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    if path.suffix == ".csv":
        return _csv_rows(path, "spend")
    text = _text(path)
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text, parse_float=Decimal)
        else:
            lines = filter(str.strip, text.splitlines())
            rows = [json.loads(line, parse_float=Decimal) for line in lines]
    except ValueError:
        raise OutsideFileError(f"{path} is neither JSON nor JSON lines") from None
    if not all(isinstance(row, dict) for row in rows):
        raise OutsideFileError(f"{path} is no list of spend logs")
    return rows  # type: ignore[no-any-return]


def _csv_rows(path: Path, needed: str) -> Iterator[Mapping[str, Any]]:
    try:
        reader = csv.DictReader(io.StringIO(_text(path)), strict=True)
        if needed not in (reader.fieldnames or ()):
            raise OutsideFileError(f"{path} has no column {needed!r}")
        yield from reader
    except csv.Error as error:
        raise OutsideFileError(f"{path} is no CSV: {error}") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise OutsideFileError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise OutsideFileError(f"{path} is not UTF-8 text") from None


def _decimal(value: object) -> Decimal | None:
    """A number of JSON or a text of CSV as the exact decimal it is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Decimal | int | str):
        return None
    try:
        exact = Decimal(value)
    except ArithmeticError:
        return None
    return exact if exact.is_finite() and exact >= 0 else None


def _external(
    where: str, cost: Decimal | None, asset: str, occurred: object, **references: str
) -> ExternalCost:
    if cost is None:
        raise OutsideFileError(f"{where} has no cost that is a number of zero or more")
    row = ExternalCost(cost=Amount(asset=asset, value=format(cost, "f")), **references)  # type: ignore[arg-type]
    if isinstance(occurred, str) and occurred:
        row.occur_time.CopyFrom(_moment(where, occurred))
    return row


def _moment(where: str, text: str) -> Timestamp:
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        raise OutsideFileError(f"{where} has the time {text!r}, which is none") from None
    stamp = Timestamp()
    # LiteLLM's table keeps UTC without saying so.
    stamp.FromDatetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return stamp
