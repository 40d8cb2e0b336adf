"""What every request to the Ledger must satisfy before a handler sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from cogni.ledger.v1 import budget_pb2, price_card_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.money import DECIMAL_PLACES_MAX, MoneyError, parse_decimal
from services.ledger.units import REFERENCE_LENGTH_MAX, UNITS_PER_REQUEST_MAX
from services.runtime.errors import Violation
from services.runtime.validation import (
    Rule,
    RuleTable,
    amount,
    blob,
    custom,
    each,
    enum_known,
    enum_set,
    integer,
    items,
    mask,
    nested,
    page,
    required,
    text,
    timestamp,
    uuid,
)

_NAME_LENGTH_MAX = 200
_DESCRIPTION_LENGTH_MAX = 500
_PRICES_MAX = 10_000
_SYSTEM = r"[a-z0-9][a-z0-9._-]{0,63}"
_ASSET_LENGTH_MAX = 32
_ROWS_MAX = 10_000
_CSV_BYTES_MAX = 4 * 1024 * 1024
_BUDGET_TERMS = frozenset({"period", "limit", "threshold_percents"})

_request_id = (required("request_id"), uuid("request_id"))
_name = text("name", max_length=_NAME_LENGTH_MAX)


def _price(message: price_card_pb2.UnitPrice | price_card_pb2.TokenPrice) -> Iterator[Violation]:
    yield from _decimal("price", message.price)


def _decimal(field: str, value: str) -> Iterator[Violation]:
    try:
        parse_decimal(value)
    except MoneyError as error:
        yield Violation(field, str(error))


def _fine_amount(field: str) -> tuple[Rule, Rule]:
    """An amount that need not be a sum of an asset: finer than its scale, within our digits."""

    def check(message: Any) -> Iterator[Violation]:
        if len(getattr(message, field).value.partition(".")[2]) > DECIMAL_PLACES_MAX:
            yield Violation(
                f"{field}.value", f"must have at most {DECIMAL_PLACES_MAX} fractional digits"
            )

    return amount(field, nonnegative=True), custom(check)


def _card(card: price_card_pb2.PriceCard) -> Iterator[Violation]:
    if card.markup:
        yield from _decimal("markup", card.markup)
    for index, model in enumerate(card.model_prices):
        if model.HasField("call_price") and model.call_price.asset != card.asset:
            yield Violation(f"model_prices[{index}].call_price.asset", "must be the card's asset")
        yield from _unique(
            f"model_prices[{index}].token_prices", (each.kind for each in model.token_prices)
        )
    yield from _unique("model_prices", ((m.model, m.provider) for m in card.model_prices))
    for field in ("tool_prices", "compute_prices", "custom_prices"):
        yield from _unique(field, (each.name for each in getattr(card, field)))
    if sum(len(getattr(card, field)) for field in _PRICE_LISTS) > _PRICES_MAX:
        yield Violation("model_prices", f"a card has at most {_PRICES_MAX} prices")


_PRICE_LISTS = ("model_prices", "tool_prices", "compute_prices", "custom_prices")


def _unique(field: str, names: Iterable[object]) -> Iterator[Violation]:
    seen: set[object] = set()
    for name in names:
        if name in seen:
            yield Violation(field, f"{name} is listed twice")
        seen.add(name)


def _transfer_key(request: pb.TransferRequest) -> Iterator[Violation]:
    has_source = bool(request.source_system or request.source_reference)
    if bool(request.request_id) == has_source:
        yield Violation(
            "request_id", "give either request_id, or source_system and source_reference"
        )
    elif has_source and not (request.source_system and request.source_reference):
        yield Violation("source_reference", "source_system and source_reference go together")
    if request.debit_account_id and request.debit_account_id == request.credit_account_id:
        yield Violation("credit_account_id", "must be another account than debit_account_id")


def _ascending(budget: budget_pb2.Budget) -> Iterator[Violation]:
    percents = list(budget.threshold_percents)
    if percents != sorted(set(percents)):
        yield Violation("threshold_percents", "must ascend without repeats")


def _reconciliation(request: pb.ReconcileUsageRequest) -> Iterator[Violation]:
    if not request.run_id and not (request.HasField("start_time") and request.HasField("end_time")):
        yield Violation("run_id", "give a run_id, or start_time and end_time")
    if request.rows and request.csv:
        yield Violation("csv", "give rows or csv, not both")
    yield from _period(request)


def _period(
    request: pb.GetStatementRequest | pb.ExportEntriesRequest | pb.ReconcileUsageRequest,
) -> Iterator[Violation]:
    if request.HasField("start_time") and request.HasField("end_time"):
        start, end = request.start_time, request.end_time
        if (start.seconds, start.nanos) >= (end.seconds, end.nanos):
            yield Violation("end_time", "must be after start_time")


RULES: RuleTable = {
    pb.CreateAccountRequest: (
        *_request_id,
        required("display_name"),
        text("display_name", max_length=_NAME_LENGTH_MAX),
        required("asset"),
        text("asset", max_length=_ASSET_LENGTH_MAX),
        enum_known("kind"),
        custom(
            lambda request: (
                [Violation("kind", "only SPENDING and FUNDING accounts can be created")]
                if request.kind > 2
                else []
            )
        ),
        text("owner", max_length=_NAME_LENGTH_MAX),
        amount("credit_limit", nonnegative=True),
    ),
    pb.GetAccountRequest: (
        required("account_id"),
        uuid("account_id"),
        timestamp("balance_time", stored=False),
    ),
    pb.ListAccountsRequest: (
        *page(),
        text("asset", max_length=_ASSET_LENGTH_MAX),
        enum_known("kind"),
        text("owner", max_length=_NAME_LENGTH_MAX),
    ),
    pb.TransferRequest: (
        custom(_transfer_key),
        uuid("request_id"),
        text("source_system", max_length=64, pattern=_SYSTEM),
        text("source_reference", max_length=REFERENCE_LENGTH_MAX),
        required("debit_account_id"),
        uuid("debit_account_id"),
        required("credit_account_id"),
        uuid("credit_account_id"),
        required("amount"),
        amount("amount", positive=True),
        text("description", max_length=_DESCRIPTION_LENGTH_MAX),
        timestamp("occur_time"),
    ),
    # Units are judged one by one, so that a bad one does not refuse the others.
    pb.RecordUsageRequest: (items("units", min_items=1, max_items=UNITS_PER_REQUEST_MAX),),
    pb.CorrectEntryRequest: (
        *_request_id,
        integer("sequence", min=1),
        required("sequence"),
        amount("amount", positive=True),
        required("description"),
        text("description", max_length=_DESCRIPTION_LENGTH_MAX),
    ),
    pb.PlaceHoldRequest: (
        *_request_id,
        required("account_id"),
        uuid("account_id"),
        required("amount"),
        amount("amount", nonnegative=True),
        uuid("run_id"),
        integer("epoch", min=0),
        required("expire_time"),
        timestamp("expire_time"),
        amount("unsettled", nonnegative=True),
    ),
    pb.TopUpHoldRequest: (
        *_request_id,
        required("hold_id"),
        uuid("hold_id"),
        required("amount"),
        amount("amount", nonnegative=True),
        timestamp("expire_time"),
        amount("unsettled", nonnegative=True),
        integer("epoch", min=0),
    ),
    pb.SettleHoldRequest: (
        *_request_id,
        required("hold_id"),
        uuid("hold_id"),
        required("credit_account_id"),
        uuid("credit_account_id"),
        required("amount"),
        amount("amount", positive=True),
        text("description", max_length=_DESCRIPTION_LENGTH_MAX),
    ),
    pb.ReleaseHoldRequest: (
        *_request_id,
        required("hold_id"),
        uuid("hold_id"),
        amount("unsettled", nonnegative=True),
        integer("epoch", min=0),
    ),
    pb.CloseRunRequest: (
        required("run_id"),
        uuid("run_id"),
        integer("unit_count", min=0),
        required("units_digest"),
        blob("units_digest", min_bytes=32, max_bytes=32),
    ),
    pb.GetRunStatementRequest: (required("run_id"), uuid("run_id"), *page()),
    pb.ListEntriesRequest: (*page(), uuid("account_id"), uuid("run_id"), enum_known("kind")),
    pb.GetStatementRequest: (
        required("account_id"),
        uuid("account_id"),
        required("start_time"),
        timestamp("start_time", stored=False),
        timestamp("end_time", stored=False),
        custom(_period),
        *page(),
    ),
    pb.ExportEntriesRequest: (
        enum_known("format"),
        integer("after_sequence", min=0),
        integer("last_sequence", min=0),
        uuid("account_id"),
        uuid("run_id"),
        timestamp("start_time", stored=False),
        timestamp("end_time", stored=False),
        custom(_period),
    ),
    pb.WatchEntriesRequest: (
        integer("after_sequence", min=0),
        uuid("account_id"),
        uuid("run_id"),
    ),
    pb.GetReceiptRequest: (
        required("source_system"),
        text("source_system", max_length=64, pattern=_SYSTEM),
        required("source_reference"),
        text("source_reference", max_length=REFERENCE_LENGTH_MAX),
    ),
    pb.GetInclusionProofRequest: (
        required("sequence"),
        integer("sequence", min=1),
        integer("tree_size", min=0),
    ),
    pb.GetConsistencyProofRequest: (
        required("first_tree_size"),
        integer("first_tree_size", min=1),
        integer("second_tree_size", min=0),
    ),
    pb.SetBudgetRequest: (
        *_request_id,
        required("budget"),
        nested(
            "budget",
            required("account_id"),
            uuid("account_id"),
            enum_known("period"),
            amount("limit", nonnegative=True),
            items("threshold_percents", max_items=10),
            each("threshold_percents", integer(min=1, max=100)),
            custom(_ascending),
            text("etag", max_length=64),
        ),
        mask("update_mask", _BUDGET_TERMS),
    ),
    pb.GetBudgetRequest: (required("account_id"), uuid("account_id")),
    pb.ListBudgetsRequest: (*page(), enum_known("state")),
    pb.WatchBudgetsRequest: (text("cursor", max_length=4096),),
    pb.ListGapsRequest: (*page(), enum_known("kind")),
    pb.ReconcileUsageRequest: (
        enum_set("source"),
        uuid("run_id"),
        timestamp("start_time", stored=False),
        timestamp("end_time", stored=False),
        text("provider", max_length=_NAME_LENGTH_MAX),
        items("rows", max_items=_ROWS_MAX),
        blob("csv", max_bytes=_CSV_BYTES_MAX),
        *_fine_amount("tolerance"),
        custom(_reconciliation),
    ),
    pb.CreatePriceCardRequest: (
        *_request_id,
        required("price_card"),
        nested(
            "price_card",
            text("display_name", max_length=_NAME_LENGTH_MAX),
            required("asset"),
            text("asset", max_length=_ASSET_LENGTH_MAX),
            timestamp("effective_time"),
            items("model_prices", max_items=_PRICES_MAX),
            each(
                "model_prices",
                required("model"),
                text("model", max_length=_NAME_LENGTH_MAX),
                text("provider", max_length=_NAME_LENGTH_MAX),
                each("token_prices", enum_set("kind"), custom(_price)),
                *_fine_amount("call_price"),
            ),
            each("tool_prices", required("name"), _name, custom(_price)),
            each("compute_prices", required("name"), _name, custom(_price)),
            each("custom_prices", required("name"), _name, custom(_price)),
            custom(_card),
        ),
    ),
    pb.GetPriceCardRequest: (required("price_card_id"), uuid("price_card_id")),
    pb.ListPriceCardsRequest: (*page(), text("asset", max_length=_ASSET_LENGTH_MAX)),
}
