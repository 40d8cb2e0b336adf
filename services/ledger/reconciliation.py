"""Compares what the Ledger has with an outside account of the same usage, unit by unit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from typing import Any

from services.ledger.entries import Entry
from services.ledger.money import EXACT


class DifferenceKind(IntEnum):
    """How the sources disagree on a unit; the values are those of the contract."""

    NOT_IN_LEDGER = 1
    NOT_IN_SOURCE = 2
    COST = 3
    DUPLICATE_IN_SOURCE = 4


@dataclass(frozen=True, slots=True)
class Cost:
    """An exact sum of an asset."""

    asset: str
    value: Decimal


@dataclass(frozen=True, slots=True)
class OutsideRow:
    """One row of the outside account; absent texts are empty."""

    external_reference: str
    source_reference: str
    response_id: str
    cost: Cost


@dataclass(frozen=True, slots=True)
class InsideUnit:
    """One model call as the Ledger has it; `cost` is before markup, None when unknown."""

    source_reference: str
    response_id: str
    run_id: str
    provider: str
    cost: Cost | None


@dataclass(frozen=True, slots=True)
class Difference:
    """One disagreement."""

    kind: DifferenceKind
    source_reference: str = ""
    external_reference: str = ""
    run_id: str = ""
    inside: Cost | None = None
    outside: Cost | None = None


@dataclass(slots=True)
class Reconciled:
    """How two accounts compare."""

    differences: list[Difference] = field(default_factory=list)
    matched_count: int = 0
    inside_totals: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))
    outside_totals: dict[str, Decimal] = field(default_factory=lambda: defaultdict(Decimal))


def reconcile(
    units: Iterable[InsideUnit], rows: Iterable[OutsideRow], tolerance: Decimal
) -> Reconciled:
    """Match rows to units by their reference, else by the provider's response id, and compare.

    Providers repeat response ids, so one names a unit only while it names a single one.
    """
    result = Reconciled()
    by_reference = {unit.source_reference: unit for unit in units}
    by_response: dict[str, list[InsideUnit]] = defaultdict(list)
    for unit in by_reference.values():
        by_response[unit.response_id].append(unit)
        if unit.cost is not None:
            _sum_up(result.inside_totals, unit.cost)
    matched: set[str] = set()
    for row in rows:
        _sum_up(result.outside_totals, row.cost)
        found = _match(row, by_reference, by_response)
        if found is None:
            _add(result, DifferenceKind.NOT_IN_LEDGER, None, row)
        elif found.source_reference in matched:
            _add(result, DifferenceKind.DUPLICATE_IN_SOURCE, found, row)
        else:
            matched.add(found.source_reference)
            if _agree(found.cost, row.cost, tolerance):
                result.matched_count += 1
            else:
                _add(result, DifferenceKind.COST, found, row)
    for reference, unit in by_reference.items():
        if reference not in matched:
            _add(result, DifferenceKind.NOT_IN_SOURCE, unit, None)
    return result


def inside_units(charges: Sequence[Entry], provider: str) -> list[InsideUnit]:
    """Return the model calls among charges, of one provider or of any."""
    found: list[InsideUnit] = []
    for entry in charges:
        facts = entry.facts()
        call = facts["unit"].get("llm_call")
        if call is None or (provider and call.get("provider") != provider):
            continue
        found.append(
            InsideUnit(
                entry.source_reference,
                call.get("response_id", ""),
                entry.run_id,
                call.get("provider", ""),
                base_cost(facts),
            )
        )
    return found


def base_cost(facts: Mapping[str, Any]) -> Cost | None:
    """Return what a model call cost before markup.

    The caller's own figure where it gave one, since that is what gateways log; else what the
    provider reported, else the card's prices.
    """
    unit = facts["unit"]
    call = unit["llm_call"]
    for said in (unit.get("cost"), call.get("provider_cost")):
        if said is not None:
            return Cost(said["asset"], Decimal(said["value"]))
    rates = facts["price"].get("rates")
    if rates is None:
        return None
    total = Decimal(rates.get("call", "0"))
    for kind, count in call["tokens"].items():
        if kind in rates:
            total = EXACT.add(total, EXACT.multiply(Decimal(rates[kind]), Decimal(count)))
    return Cost(facts["asset"], total)


def _match(
    row: OutsideRow,
    by_reference: Mapping[str, InsideUnit],
    by_response: Mapping[str, list[InsideUnit]],
) -> InsideUnit | None:
    if row.source_reference:
        return by_reference.get(row.source_reference)
    candidates = by_response.get(row.response_id, []) if row.response_id else []
    return candidates[0] if len(candidates) == 1 else None


def _sum_up(totals: dict[str, Decimal], cost: Cost) -> None:
    totals[cost.asset] = EXACT.add(totals[cost.asset], cost.value)


def _agree(inside: Cost | None, outside: Cost, tolerance: Decimal) -> bool:
    if inside is None or inside.asset != outside.asset:
        return False
    return abs(EXACT.subtract(inside.value, outside.value)) <= tolerance


def _add(
    result: Reconciled, kind: DifferenceKind, unit: InsideUnit | None, row: OutsideRow | None
) -> None:
    result.differences.append(
        Difference(
            kind,
            unit.source_reference if unit else row.source_reference if row else "",
            row.external_reference if row else "",
            unit.run_id if unit else "",
            unit.cost if unit else None,
            row.cost if row else None,
        )
    )
