"""Meters model calls of LangChain models that are not ours, so that projects run unchanged.

Their usage is what the model reports when it ends. A stream that is cut off, and a model that
reports nothing, is settled from its estimate and flagged; `cogni.graph.chat_model` is exact in
both cases, and meters each retry.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from cogni.graph import portal, provider
from cogni.graph.metering import CallStart, Meter, Usage

#: How the chat model of `cogni.graph` names itself to callbacks: it meters itself.
_OURS = "cogni"
#: No tokenizer makes more tokens of a text than this.
_CHARACTERS_PER_TOKEN_MIN = 2
_PER_MESSAGE_TOKENS = 16


class ForeignCalls(BaseCallbackHandler):
    """Announces and settles what models of other libraries do, through LangChain's callbacks.

    LangChain calls it in a thread and waits: the call is durable before it is sent, and is not
    sent when it may not be made.
    """

    raise_error = True
    run_inline = False

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._open: dict[UUID, tuple[str, CallStart]] = {}

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """Store the call as pending."""
        parameters = kwargs.get("invocation_params") or {}
        if parameters.get("_type") != _OURS:
            said = "".join(str(each.content) for batch in messages for each in batch)
            self._announce(run_id, parameters, kwargs, len(said), len(messages[0]))

    def on_llm_start(
        self, serialized: dict[str, Any], prompts: list[str], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """Store the call as pending."""
        parameters = kwargs.get("invocation_params") or {}
        self._announce(run_id, parameters, kwargs, sum(map(len, prompts)), len(prompts))

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Settle with what the model reports, or from the estimate."""
        self._settle(run_id, _usage(response))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Settle from the estimate, unless the provider refused the call."""
        self._settle(run_id, None, error)

    def _announce(
        self,
        run_id: UUID,
        parameters: dict[str, Any],
        kwargs: dict[str, Any],
        characters: int,
        messages: int,
    ) -> None:
        metadata = kwargs.get("metadata") or {}
        model = parameters.get("model") or parameters.get("model_name")
        most = parameters.get("max_tokens") or parameters.get("max_completion_tokens")
        bound = Usage(
            input_tokens=characters // _CHARACTERS_PER_TOKEN_MIN + messages * _PER_MESSAGE_TOKENS,
            output_tokens=int(most or provider.DEFAULT_OUTPUT_TOKENS_MAX),
        )
        start = CallStart(
            str(model or metadata.get("ls_model_name") or "unknown"),
            str(metadata.get("ls_provider") or ""),
            bound,
        )
        self._open[run_id] = (portal.call(self._meter.open(start), self._meter.loop), start)

    def _settle(
        self, run_id: UUID, usage: Usage | None, failure: BaseException | None = None
    ) -> None:
        known = self._open.pop(run_id, None)
        if known is None:
            return
        call_id, start = known
        portal.call(self._settled(call_id, start, usage, failure), self._meter.loop)

    async def _settled(
        self, call_id: str, start: CallStart, usage: Usage | None, failure: BaseException | None
    ) -> None:
        # A task of its own: whoever waits for it may be cancelled.
        settling = asyncio.create_task(self._price_and_settle(call_id, start, usage, failure))
        self._meter.adopt(settling)
        await asyncio.shield(settling)

    async def _price_and_settle(
        self, call_id: str, start: CallStart, usage: Usage | None, failure: BaseException | None
    ) -> None:
        await provider.load()
        if failure is not None:
            spent = provider.usage_after_failure(start, failure, tried_once=False)
        elif usage is None:
            spent = provider.estimated(start)
        else:
            spent = provider.priced(start, usage)
        await self._meter.settle(call_id, spent)


def _usage(response: LLMResult) -> Usage | None:
    """The usage that LangChain's messages carry; None when the model reported none."""
    found: Usage | None = None
    for generation in (each for batch in response.generations for each in batch):
        reported = getattr(getattr(generation, "message", None), "usage_metadata", None)
        if isinstance(generation, ChatGeneration) and reported:
            details = reported.get("input_token_details") or {}
            found = Usage(
                input_tokens=(found.input_tokens if found else 0) + reported["input_tokens"],
                output_tokens=(found.output_tokens if found else 0) + reported["output_tokens"],
                cached_input_tokens=int(details.get("cache_read") or 0),
                cache_write_tokens=int(details.get("cache_creation") or 0),
            )
    return found
