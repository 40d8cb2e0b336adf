"""`cogni ledger price-cards`: what usage costs, also as LiteLLM's map has it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cogni.cli import cost_map
from cogni.cli.arguments import (
    IdOption,
    JsonOption,
    LimitOption,
    RequestIdOption,
    moment,
    request_id,
)
from cogni.cli.output import console, pages, print_json, show_all, show_created, time_of
from cogni.client import Client
from cogni.ledger.v1.ledger_service_pb2 import (
    CreatePriceCardRequest,
    GetPriceCardRequest,
    ListPriceCardsRequest,
)
from cogni.ledger.v1.price_card_pb2 import PriceCard

app = typer.Typer(help="Price cards: without a command, list them.")

#: What one card can have, as the Ledger refuses more.
PRICES_MAX = 10_000
# A card of the whole map is some hundred kilobytes of prices to check and store.
_CREATE_SECONDS_MAX = 60.0


@app.callback(invoke_without_command=True)
def price_cards(
    context: typer.Context, limit: LimitOption = 50, as_json: JsonOption = False
) -> None:
    """List price cards, the newest first."""
    if context.invoked_subcommand is not None:
        return

    def row(card: PriceCard) -> tuple[str, ...]:
        return (
            card.price_card_id,
            str(card.version),
            card.display_name,
            card.asset,
            card.markup,
            time_of(card.effective_time),
        )

    with Client() as client:
        show_all(
            pages(client.ledger.ListPriceCards, ListPriceCardsRequest(), "price_cards", limit),
            ("price_card_id", "version", "name", "asset", "markup", "effective"),
            row,
            as_json,
        )


@app.command()
def get(
    card: Annotated[str, typer.Argument(metavar="PRICE_CARD_ID")],
) -> None:
    """Print one version with all its prices as JSON."""
    with Client() as client:
        request = GetPriceCardRequest(price_card_id=card)
        print_json(client.ledger.GetPriceCard(request).price_card)


@app.command("import-litellm")
def import_litellm(
    file: Annotated[
        Path | None,
        typer.Option(help="A map of LiteLLM's. Default: the installed LiteLLM's own."),
    ] = None,
    model: Annotated[str, typer.Option(help="Only models that match, like 'openai/*'.")] = "*",
    markup: Annotated[str, typer.Option(help="What is added, like 20%; or a factor.")] = "0%",
    keep: Annotated[
        str,
        typer.Option(
            metavar="PRICE_CARD_ID",
            help="A version whose prices win over the map's, tools and the like included.",
        ),
    ] = "",
    name: Annotated[str, typer.Option(help="A name for people. Default: the map's.")] = "",
    effective: Annotated[
        str | None, typer.Option(help="From when it prices, like 2026-12-01T00:00:00Z. Now.")
    ] = None,
    flatten_tiers: Annotated[
        bool,
        typer.Option(
            "--flatten-tiers",
            help="Take models that cost more in long prompts too, at their first price.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what the card would have.")
    ] = False,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make LiteLLM's cost map the next version of the tenant's USD price card.

    It replaces the version in force. The map knows models alone: name a version with --keep to
    take over its prices of tools, time and custom units, and of models that cost you otherwise.
    """
    try:
        source = cost_map.installed() if file is None else cost_map.read(file)
    except cost_map.CostMapError as error:
        raise typer.BadParameter(str(error)) from None
    found = cost_map.prices(source, model, flatten_tiers=flatten_tiers)
    if not found.models:
        raise typer.BadParameter(f"no model that matches {model!r} can be priced by the token")
    card = PriceCard(
        display_name=name or source.name,
        asset="USD",
        markup=cost_map.markup_of(markup, typer.BadParameter),
        model_prices=found.models,
    )
    if keep:
        _keep(card, keep)
    if (count := _count(card)) > PRICES_MAX:
        raise typer.BadParameter(
            f"{count} prices are more than a card's {PRICES_MAX}; choose with --model"
        )
    if effective:
        card.effective_time.CopyFrom(moment(effective))
    if not only_id and not as_json:
        _say(found, card)
    if dry_run:
        if as_json:
            print_json(card)
        return
    request = CreatePriceCardRequest(request_id=request_id(given_request_id), price_card=card)
    with Client() as client:
        made = client.ledger.CreatePriceCard(request, timeout=_CREATE_SECONDS_MAX).price_card
        if as_json or only_id:
            show_created(made, "price_card_id", only_id, as_json)
        else:
            console().print(f"version {made.version}: {made.price_card_id}")


def _keep(card: PriceCard, price_card_id: str) -> None:
    """Put another version's prices over the card's."""
    with Client() as client:
        request = GetPriceCardRequest(price_card_id=price_card_id)
        kept = client.ledger.GetPriceCard(request).price_card
    models = {(each.model, each.provider): each for each in card.model_prices}
    models |= {(each.model, each.provider): each for each in kept.model_prices}
    del card.model_prices[:]
    card.model_prices.extend(models.values())
    card.tool_prices.extend(kept.tool_prices)
    card.compute_prices.extend(kept.compute_prices)
    card.custom_prices.extend(kept.custom_prices)


def _count(card: PriceCard) -> int:
    others = len(card.tool_prices) + len(card.compute_prices) + len(card.custom_prices)
    return len(card.model_prices) + others


def _say(found: cost_map.Prices, card: PriceCard) -> None:
    out = console()
    out.print(f"{card.display_name}: {_count(card)} prices, times {card.markup}")
    for reason, count in sorted(found.left_out.items()):
        out.print(f"left out {count}: {reason}")
