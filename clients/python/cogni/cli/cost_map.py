"""LiteLLM's map of model costs, read as the prices of a card: exact, and whole or not at all.

LiteLLM itself is never imported, which would take seconds: its map is a file in its package.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cogni.ledger.v1.price_card_pb2 import ModelPrice, TokenPrice
from cogni.ledger.v1.usage_pb2 import TokenKind

_FILE = "model_prices_and_context_window_backup.json"
#: What is paid by the token. Pictures, speech and pages are counted in other units.
_MODES = frozenset({"chat", "completion", "responses", "embedding", "realtime"})
_DECIMAL_PLACES_MAX = 30
_NAME_LENGTH_MAX = 200

#: Which entry of the map prices which kind of token, the first that is there.
_RATES: Mapping[TokenKind.ValueType, tuple[str, ...]] = {
    TokenKind.TOKEN_KIND_INPUT: ("input_cost_per_token",),
    TokenKind.TOKEN_KIND_CACHE_READ: (
        "cache_read_input_token_cost",
        "input_cost_per_token_cache_hit",
    ),
    TokenKind.TOKEN_KIND_CACHE_WRITE: ("cache_creation_input_token_cost",),
    TokenKind.TOKEN_KIND_OUTPUT: ("output_cost_per_token",),
    # Providers that name no price of their own for it bill thinking as output.
    TokenKind.TOKEN_KIND_REASONING: ("output_cost_per_reasoning_token", "output_cost_per_token"),
    TokenKind.TOKEN_KIND_AUDIO_INPUT: ("input_cost_per_audio_token",),
    TokenKind.TOKEN_KIND_AUDIO_OUTPUT: ("output_cost_per_audio_token",),
}
#: A card has one price per kind. These models' depend on the length of the prompt too.
_TIER = "_above_"
_TIERED = ("input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost")


class CostMapError(ValueError):
    """Raised when there is no map, or what is there is none; the message says what to do."""


@dataclass(frozen=True, slots=True)
class CostMap:
    """A map as it was read. Its numbers are exact decimals."""

    name: str
    models: Mapping[str, Mapping[str, Any]]


@dataclass(slots=True)
class Prices:
    """The prices that a map gives, and how many of its models were left out, by reason."""

    models: list[ModelPrice] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def installed() -> CostMap:
    """Read the map of the installed LiteLLM; raises CostMapError without one."""
    found = find_spec("litellm")
    if found is None or found.origin is None:
        raise CostMapError("LiteLLM is not installed here; name its map with --file")
    return read(Path(found.origin).with_name(_FILE), f"LiteLLM {version('litellm')}")


def read(path: Path, name: str = "") -> CostMap:
    """Read a map from a file; raises CostMapError when it is none."""
    try:
        models = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise CostMapError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise CostMapError(f"{path} is no JSON") from None
    if not isinstance(models, dict) or not all(isinstance(each, dict) for each in models.values()):
        raise CostMapError(f"{path} is no map of models to their costs")
    return CostMap(name or path.name, models)


def prices(cost_map: CostMap, wanted: str = "*", *, flatten_tiers: bool = False) -> Prices:
    """Return the card's prices of the models whose name matches the glob `wanted`.

    A model that a card can't price rightly is left out and counted, since half a price is a wrong
    one: its calls are then charged what their reporter computed. `flatten_tiers` takes the first
    tier's price for models that cost more per token in long prompts.
    """
    result = Prices()
    for model, costs in sorted(cost_map.models.items()):
        names = _names(model, costs)
        if not any(fnmatchcase(name, wanted) for name in names):
            continue
        reason = _reason_against(model, costs, flatten_tiers)
        if reason:
            result.left_out[reason] += 1
            continue
        token_prices = [
            TokenPrice(kind=kind, price=format(Decimal(rate), "f")) for kind, rate in _rates(costs)
        ]
        # Reporters name a model with its provider or without; a name that the map has by itself
        # keeps its own price.
        result.models += [
            ModelPrice(model=name, token_prices=token_prices)
            for name in names
            if name == model or name not in cost_map.models
        ]
    return result


def _names(model: str, costs: Mapping[str, Any]) -> list[str]:
    provider = costs.get("litellm_provider")
    if not isinstance(provider, str) or not provider or model.startswith(f"{provider}/"):
        return [model]
    return [model, f"{provider}/{model}"]


def _reason_against(model: str, costs: Mapping[str, Any], flatten_tiers: bool) -> str:
    if costs.get("mode") not in _MODES:
        return "not paid by the token"
    rates = dict(_rates(costs))
    if TokenKind.TOKEN_KIND_INPUT not in rates and TokenKind.TOKEN_KIND_OUTPUT not in rates:
        return "no price per token"
    if not flatten_tiers and any(_is_tiered(name) for name in costs):
        return "price depends on the prompt's length"
    if len(model) > _NAME_LENGTH_MAX or not all(_can_be_kept(rate) for rate in rates.values()):
        return "not a name or price that a card can hold"
    return ""


def _is_tiered(name: str) -> bool:
    of, tier, _ = name.partition(_TIER)
    return bool(tier) and of in _TIERED


def _rates(costs: Mapping[str, Any]) -> Iterator[tuple[TokenKind.ValueType, Decimal | int]]:
    for kind, names in _RATES.items():
        found = [costs[name] for name in names if _is_number(costs.get(name))]
        if found:
            yield kind, found[0]


def _is_number(value: object) -> bool:
    return isinstance(value, Decimal | int) and not isinstance(value, bool)


def _can_be_kept(rate: Decimal | int) -> bool:
    exact = Decimal(rate)
    if not exact.is_finite() or exact < 0:
        return False
    exponent = exact.normalize().as_tuple().exponent
    return isinstance(exponent, int) and -exponent <= _DECIMAL_PLACES_MAX


def markup_of(text: str, refuse: Callable[[str], Exception]) -> str:
    """Return "20%" as the factor "1.2"; a plain factor as it is. Raises what `refuse` makes."""
    words, is_percent = text.strip(), text.strip().endswith("%")
    try:
        number = Decimal(words.removesuffix("%"))
    except ArithmeticError:
        raise refuse(f"{text!r} is no markup; write it like 20% or 1.2") from None
    factor = 1 + number / 100 if is_percent else number
    if not factor.is_finite() or factor < 0:
        raise refuse(f"{text!r} is no markup; write it like 20% or 1.2")
    return format(factor, "f")
