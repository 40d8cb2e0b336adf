"""Meters one attempt's provider calls: durable before they are sent, settled when they end."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from langgraph.config import get_config
from opentelemetry import trace

from cogni.executor.v1.run_event_pb2 import UsageRecorded
from cogni.graph.metering import CallStart, Usage
from cogni.type.v1.amount_pb2 import Amount as AmountMessage
from services.executor.amounts import Amount
from services.executor.events import Draft
from services.executor.runner.journal import Holding, Journal, LeaseLostError
from services.executor.runner.purse import Purse
from services.executor.runner.rendering import storable
from services.executor.runner.run_hold import RunHold
from services.executor.runner.stopping import RunStoppedError
from services.executor.runs import RunError, RunState
from services.executor.store import usage as store
from services.executor.store.usage import PendingCall, Tokens
from services.runtime.ids import new_id

_tracer = trace.get_tracer("cogni.runner")

#: LiteLLM's price map is in dollars.
_ASSET = "USD"


class RunMeter:
    """The `cogni.graph.metering.Meter` of one attempt."""

    def __init__(
        self,
        journal: Journal,
        holding: Holding,
        *,
        grant_id: str,
        account_id: str | None,
        hold: RunHold | None,
        purse: Purse,
        repeated: Counter[str],
        adopt: Callable[[asyncio.Task[Any]], None],
    ) -> None:
        self._journal = journal
        self._holding = holding
        self._grant_id = grant_id
        self._account_id = account_id
        #: None where there is no account, and so nothing can be paid.
        self._hold = hold
        self._purse = purse
        #: Calls per node that an earlier attempt made and whose work was lost.
        self._repeated = repeated
        self._adopt = adopt
        self._open: dict[str, tuple[PendingCall, trace.Span]] = {}
        #: Set when the attempt ends: what graph code left behind makes no further call.
        self.closed = False
        self.loop = asyncio.get_running_loop()

    async def open(self, start: CallStart) -> str:
        """Store the call as PENDING and return its id.

        Raises LeaseLostError, or RunStoppedError when the run may not pay for a call.
        """
        if self.closed:
            raise RunStoppedError(RunState.FAILED, RunError("GRAPH_FAILED", "the run has ended"))
        if self._account_id is None or self._hold is None:
            raise RunStoppedError(
                RunState.FAILED,
                RunError("BUDGET_EXHAUSTED", "The grant names no account that pays for a model."),
            )
        call = self._pending(start, self._account_id)
        await self._hold.cover(call)
        try:
            if self._purse.limited:
                await self._purse.open(self._holding, call)
            else:
                await self._journal.write(self._holding, acts=[store.open_call(call)])
        except Exception:
            self._hold.forget(call.call_id)
            raise
        self._open[call.call_id] = (call, _span(call))
        return call.call_id

    async def settle(self, call_id: str, usage: Usage) -> None:
        """Store what the call used; also when the lease is lost, since it is a fact."""
        call, span = self._open.pop(call_id)
        cost = _amount(usage)
        if self._hold is not None:
            self._hold.settled(call_id, cost)
        tokens = _tokens(usage)
        fact = store.settle_call(
            call_id,
            tokens,
            cost,
            estimated=usage.estimated,
            provider_response_id=storable(usage.provider_response_id),
        )
        event = UsageRecorded(
            call_id=call_id,
            node=call.node,
            model=call.model,
            provider=call.provider,
            input_tokens=tokens.input_tokens,
            output_tokens=tokens.output_tokens,
            estimated=usage.estimated,
            rework=call.rework,
        )
        if cost is not None:
            event.cost.CopyFrom(AmountMessage(asset=cost.asset, value=cost.plain))
        span.set_attribute("gen_ai.usage.input_tokens", tokens.input_tokens)
        span.set_attribute("gen_ai.usage.output_tokens", tokens.output_tokens)
        if usage.provider_response_id:
            span.set_attribute("gen_ai.response.id", usage.provider_response_id)
        span.end()
        written = self._journal.write(self._holding, drafts=[Draft(event)], facts=[fact])
        try:
            await asyncio.shield(written)
        except LeaseLostError:
            # The event log belongs to the next attempt now; the fact is stored.
            return

    def adopt(self, pump: asyncio.Task[Any]) -> None:
        """Let the pump outlive the attempt, but not the process's drain."""
        self._adopt(pump)

    def _pending(self, start: CallStart, account_id: str) -> PendingCall:
        node = _node()
        rework = self._repeated[node] > 0
        if rework:
            self._repeated[node] -= 1
        return PendingCall(
            call_id=new_id(),
            tenant_id=self._holding.tenant_id,
            run_id=self._holding.run_id,
            attempt=self._holding.attempt,
            grant_id=self._grant_id,
            account_id=account_id,
            node=node,
            model=start.model,
            provider=start.provider,
            upper_bound=_tokens(start.upper_bound),
            upper_cost=_amount(start.upper_bound),
            rework=rework,
        )


def _node() -> str:
    try:
        return str(get_config().get("metadata", {}).get("langgraph_node", ""))
    except RuntimeError:
        # Called outside any node, for example in a graph's factory.
        return ""


def _span(call: PendingCall) -> trace.Span:
    """A span by OpenTelemetry's GenAI conventions; it holds no prompt and no answer."""
    return _tracer.start_span(
        f"chat {call.model}",
        kind=trace.SpanKind.CLIENT,
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": call.provider,
            "gen_ai.request.model": call.model,
            "cogni.call_id": call.call_id,
            "cogni.run_id": call.run_id,
        },
    )


def _tokens(usage: Usage) -> Tokens:
    return Tokens(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _amount(usage: Usage) -> Amount | None:
    return None if usage.cost_usd is None else Amount(_ASSET, usage.cost_usd)
