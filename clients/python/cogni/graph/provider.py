"""LiteLLM, imported at the first call and never before: its import takes seconds."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from typing import Any

from cogni.graph.metering import NOTHING, CallStart, Usage

#: Assumed when neither the author nor LiteLLM's map says how much a model may write.
DEFAULT_OUTPUT_TOKENS_MAX = 8192

#: A millionth of a micro-dollar: far below any price per token.
_COST_STEP = Decimal("1e-12")

#: Statuses with which a provider says that it did not run the model, so nothing is owed.
_REFUSED = frozenset({400, 401, 403, 404, 405, 409, 413, 415, 422, 429})

#: OpenAI's SDK, which LiteLLM uses for many providers, raises it when it has no credentials.
_NO_CLIENT = "openai.OpenAIError"
_NO_CONNECTION = frozenset({"aiohttp.ClientConnectorError", "httpcore.ConnectError"})
#: Wrappers that are looked through for what a failure really was.
_CAUSES_MAX = 10


@functools.cache
def _litellm() -> Any:
    # Without this LiteLLM fetches its price map over the network while it is imported.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm: Any = importlib.import_module("litellm")
    # It prints an invitation to file bugs with every failed call.
    litellm.suppress_debug_info = True
    return litellm


async def load() -> None:
    """Import LiteLLM off the loop, so that other runs of the process go on.

    In a thread of its own: the loop's may all be taken by what waits for this.
    """
    if _litellm.cache_info().currsize == 0:
        thread = ThreadPoolExecutor(1)
        try:
            await asyncio.get_running_loop().run_in_executor(thread, _litellm)
        finally:
            thread.shutdown(wait=False)


async def complete(request: Mapping[str, Any]) -> Any:
    """Send one request and return LiteLLM's response or stream. Never retries.

    A retry or fallback inside LiteLLM or a provider's SDK would be a second paid
    call that nobody metered. Its MCP handler would invoke tools that no guard
    saw, and needs a package that LiteLLM does not install.
    """
    ours = {"num_retries": 0, "max_retries": 0, "fallbacks": None, "_skip_mcp_handler": True}
    return await _litellm().acompletion(**{**request, **ours})


def describe(request: Mapping[str, Any]) -> CallStart:
    """Name the call and bound from above what it can use and, if it has a price, cost."""
    model = str(request["model"])
    output = _output_tokens_max(model, request) * int(request.get("n") or 1)
    bound = Usage(input_tokens=_input_tokens_max(model, request), output_tokens=output)
    start = CallStart(model=model, provider=_provider_of(model, request), upper_bound=bound)
    return replace(start, upper_bound=priced(start, bound))


def priced(start: CallStart, usage: Usage) -> Usage:
    """Add the cost by LiteLLM's price map; unchanged when the map lacks the model."""
    litellm = _litellm()
    try:
        prompt, completion = litellm.cost_per_token(
            model=start.model,
            custom_llm_provider=start.provider or None,
            prompt_tokens=usage.input_tokens,
            completion_tokens=usage.output_tokens,
            cache_read_input_tokens=usage.cached_input_tokens,
            cache_creation_input_tokens=usage.cache_write_tokens,
        )
    except Exception:  # LiteLLM raises bare Exception for a model it cannot price.
        return usage
    # LiteLLM computes in floats; rounding takes their noise away (3.4499999e-06).
    cost = (Decimal(repr(prompt)) + Decimal(repr(completion))).quantize(_COST_STEP)
    return replace(usage, cost_usd=cost.normalize())


def usage_of(reported: Any) -> Usage:
    """Read LiteLLM's usage object. An explicit zero is a value, an absent field is zero too."""
    prompt = getattr(reported, "prompt_tokens_details", None)
    completion = getattr(reported, "completion_tokens_details", None)
    return Usage(
        input_tokens=int(reported.prompt_tokens or 0),
        output_tokens=int(reported.completion_tokens or 0),
        cached_input_tokens=_count(prompt, "cached_tokens"),
        cache_write_tokens=_count(prompt, "cache_creation_tokens"),
        reasoning_tokens=_count(completion, "reasoning_tokens"),
    )


def is_blank(reported: Any) -> bool:
    """Whether LiteLLM has filled in a usage that the provider left out: no prompt is no tokens."""
    return not (reported.prompt_tokens or reported.completion_tokens)


def reported_usage(request: Mapping[str, Any], stream: Any) -> bool:
    """Whether a stream that was read to its end had its usage from the provider.

    LiteLLM counts the tokens of what it saw itself when the provider tells nothing, or when the
    connection ends before it does. It keeps the parts as they came.
    """
    came = getattr(stream, "chunks", None)
    if not came or "mock_response" in request:
        return True
    return any(getattr(each, "usage", None) is not None for each in came)


def usage_after_failure(start: CallStart, failure: BaseException, *, tried_once: bool) -> Usage:
    """What a failed call is settled with: nothing when refused or never sent, else its bound.

    Of a call that was tried more than once, as SDKs do, the last failure says nothing about
    whether an earlier try was sent.
    """
    refused = getattr(failure, "status_code", None) in _REFUSED
    if refused or (tried_once and _never_sent(failure)):
        return NOTHING
    return estimated(start)


def _never_sent(failure: BaseException) -> bool:
    """Whether the call ended before its first byte: no key was there, or no connection.

    LiteLLM gives such failures the status 500, as if a provider had failed at its work.
    """
    error: BaseException | None = failure
    for _ in range(_CAUSES_MAX):
        if error is None:
            return False
        kinds = [
            f"{each.__module__.partition('.')[0]}.{each.__name__}" for each in type(error).mro()
        ]
        # The type itself: what comes of a call are its subclasses.
        if kinds[0] == _NO_CLIENT or not _NO_CONNECTION.isdisjoint(kinds):
            return True
        if "httpx.HTTPError" in kinds and "httpx.ConnectError" not in kinds:
            # It broke later than that; what lies below may be from an earlier try.
            return False
        error = error.__cause__ or error.__context__
    return False


def estimated(start: CallStart) -> Usage:
    """The call's upper bound, marked as an estimate."""
    return replace(start.upper_bound, estimated=True)


def _count(details: Any, name: str) -> int:
    return int(getattr(details, name, None) or 0)


def _input_tokens_max(model: str, request: Mapping[str, Any]) -> int:
    messages: Sequence[Any] = request["messages"]
    counted = _litellm().token_counter(model=model, messages=messages, tools=request.get("tools"))
    # Tokenizers of other providers differ from the one LiteLLM counts with.
    return int(counted * 1.25) + 16


def _output_tokens_max(model: str, request: Mapping[str, Any]) -> int:
    asked = request.get("max_completion_tokens") or request.get("max_tokens")
    if asked:
        return int(asked)
    try:
        known = _litellm().get_model_info(model).get("max_output_tokens")
    except Exception:  # LiteLLM raises bare Exception for a model it does not know.
        known = None
    return int(known or DEFAULT_OUTPUT_TOKENS_MAX)


def _provider_of(model: str, request: Mapping[str, Any]) -> str:
    try:
        return str(
            _litellm().get_llm_provider(
                model=model,
                custom_llm_provider=request.get("custom_llm_provider"),
                api_base=request.get("api_base"),
            )[1]
        )
    except Exception:  # An unknown model is the provider's to refuse, not ours to crash on.
        return ""
