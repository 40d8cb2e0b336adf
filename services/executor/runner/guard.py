"""Stands around each tool invocation of an attempt: decides, records, leases, scrubs."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langgraph.errors import GraphBubbleUp
from opentelemetry import trace

from cogni.executor.v1.run_event_pb2 import ToolFinished
from cogni.executor.v1.run_pb2 import RunError as RunErrorMessage
from cogni.graph.guarding import Question, Recorded, ToolDenied, ToolRequest
from cogni.graph.invocation import Credential, Invocation
from cogni.graph.mcp import McpTool, OpenedTool
from cogni.graph.policy import ToolPolicy, policy_of
from cogni.graph.untrusted import marked
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.audit import AuditOutcome
from services.executor.events import Draft
from services.executor.graphs import ToolEffect
from services.executor.runner import charging, invoking, tool_span
from services.executor.runner.describing import effect_of
from services.executor.runner.doubt import leaves_doubt
from services.executor.runner.invoking import Admitted, Asked, Dealt, Denied, Reused
from services.executor.runner.journal import Holding, Journal
from services.executor.runner.needs import Need, need_of
from services.executor.runner.opening import NotOpenedError, Opening, opened
from services.executor.runner.outcomes import Outcomes
from services.executor.runner.redacting import REDACTED, shown_arguments, shown_result
from services.executor.runner.rendering import json_of, storable, value_of
from services.executor.runner.scrub import Scrubber
from services.executor.runner.task import TaskPlace, place_of
from services.executor.store import invocations as store
from services.executor.store.budgets import NO_LIMITS
from services.executor.store.invocations import Requested, ToolUnit
from services.runtime.database import Database
from services.runtime.ids import derive_id
from services.runtime.jsonvalues import canonical_json


@dataclass(frozen=True)
class Lease:
    """A credential for one invocation, and the values in it that must not leave."""

    connection_id: str
    credential: Credential = field(repr=False)
    secrets: tuple[str, ...] = field(repr=False)


class Credentials(Protocol):
    """Where credentials come from."""

    async def lease(
        self,
        holding: Holding,
        connection_ids: Sequence[str],
        need: Need,
        tool: str,
        invocation_id: str,
    ) -> Lease:
        """Lease the credential of the one among the connections that serves the need.

        Raises ToolDenied when there is none, or the lease is refused.
        """


@dataclass(frozen=True)
class _UnderWay:
    """An invocation that was sent and has no outcome yet."""

    tool: BaseTool
    requested: Requested
    admission: Admitted
    span: trace.Span
    policy: ToolPolicy
    #: What is charged for it; None when nobody pays.
    unit: ToolUnit | None


@dataclass(frozen=True, kw_only=True)
class _Raised(Question):
    """A question, and the request that cannot go on without the answer."""

    requested: Requested
    #: The answers that this request had before: LangGraph gives them again, in their order.
    heard: int


class RunGuard:
    """The `cogni.graph.guarding.Guard` of one attempt."""

    def __init__(
        self,
        database: Database,
        journal: Journal,
        credentials: Credentials,
        holding: Holding,
        grant_id: str,
        scrubber: Scrubber,
    ) -> None:
        self._database = database
        self._journal = journal
        self._credentials = credentials
        self._holding = holding
        self._grant_id = grant_id
        self._scrubber = scrubber
        self._ordinals: Counter[tuple[str, int, str]] = Counter()
        #: Which execution of which task has dealt with an invocation.
        self._dealt_with: dict[str, tuple[str, int]] = {}
        self._under_way: dict[str, _UnderWay] = {}
        self._outcomes = Outcomes()
        #: What the grant says that tools of MCP servers do; set before the graph begins.
        self.pinned_effects: Mapping[str, ToolEffect] = {}
        #: Who pays for tools that have a price, and how much at most; set before the graph begins.
        self.account_id: str | None = None
        self.limits = NO_LIMITS
        self.closed = False
        self.loop = asyncio.get_running_loop()

    async def admit(self, request: ToolRequest) -> Invocation | Recorded | Question:
        """Decide under the grant, durably. Raises ToolDenied and LeaseLostError."""
        return await self._admit(request, self._requested(request), heard=0)

    async def answered(
        self, request: ToolRequest, question: Question, answer: Any
    ) -> Invocation | Recorded | Question:
        """Go on by what people have said, or with the next question.

        `answer` itself counts for nothing: LangGraph tells answers apart by their place, and the
        same place may be an older question's. Whose each is, the database knows.
        """
        assert isinstance(question, _Raised), "it is one of ours"
        return await self._admit(request, question.requested, heard=question.heard + 1)

    async def finished(self, invocation: Invocation, outcome: Any) -> Any:
        """Record what the tool returned, without credentials, and return that."""
        under_way = self._under_way.pop(invocation.invocation_id)
        requested, admission = under_way.requested, under_way.admission
        policy = under_way.policy
        under_way.span.end()
        scrubbed = self._scrubber.value(outcome)
        clean = marked(scrubbed) if policy.untrusted else scrubbed
        keep = requested.effect is not ToolEffect.NONE
        result = self._outcomes.stored(clean) if keep else None
        act = store.finish(requested.invocation_id, requested.attempt, result)
        event = ToolFinished(
            invocation_id=requested.invocation_id, tool=requested.tool, untrusted=policy.untrusted
        )
        event.output.CopyFrom(value_of(shown_result(policy, json_of(_content(scrubbed)))))
        failed = isinstance(clean, ToolMessage) and clean.status == "error"
        came_of_it = AuditOutcome.FAILED if failed else AuditOutcome.SUCCEEDED
        audit = invoking.outcome(requested, admission, self._grant_id, came_of_it)
        drafts = [Draft(event), *charging.told(requested, under_way.unit)]
        await self._journal.write(self._holding, drafts=drafts, acts=[act, audit])
        return clean

    async def failed(self, invocation: Invocation, failure: BaseException) -> BaseException:
        """Record how the tool failed, and return what to raise, without credentials."""
        under_way = self._under_way.pop(invocation.invocation_id)
        requested, admission = under_way.requested, under_way.admission
        tool_span.end_failed(under_way.span, failure)
        clean = self._scrubber.failure(failure)
        if isinstance(clean, asyncio.CancelledError | GraphBubbleUp) or not isinstance(
            clean, Exception
        ):
            # Cut off in the middle: what it did outside stays unknown, and the row says SENT.
            return clean
        kind, text = type(failure).__name__, self._scrubber.text(storable(str(failure)))[:2000]
        if under_way.policy.redact_result:
            text = REDACTED
        event = ToolFinished(
            invocation_id=requested.invocation_id,
            tool=requested.tool,
            untrusted=under_way.policy.untrusted,
        )
        event.error.CopyFrom(
            RunErrorMessage(
                reason=ErrorReason.ERROR_REASON_TOOL_FAILED,
                message=text,
                node=requested.node,
                type=kind,
            )
        )
        in_doubt = requested.effect is ToolEffect.OUTWARD and leaves_doubt(under_way.tool, failure)
        act = store.fail(requested.invocation_id, requested.attempt, kind, text, in_doubt=in_doubt)
        came_of_it = AuditOutcome.UNKNOWN if in_doubt else AuditOutcome.FAILED
        audit = invoking.outcome(requested, admission, self._grant_id, came_of_it)
        drafts = [Draft(event), *charging.told(requested, under_way.unit)]
        await self._journal.write(self._holding, drafts=drafts, acts=[act, audit])
        return clean

    async def _admit(
        self, request: ToolRequest, requested: Requested, *, heard: int
    ) -> Invocation | Recorded | Question:
        if self.closed:
            raise ToolDenied("The run has ended.")
        # What the model said before it asked for the tool stands before the decision in the log.
        await self._journal.flush(self._holding)
        arguments = {str(name): json_of(each) for name, each in request.arguments.items()}
        clean = self._scrubber.value(arguments)
        async with self._database.raw_tenant(self._holding.tenant_id) as tx:
            admission = await invoking.admit(
                tx,
                self._holding,
                self._grant_id,
                requested,
                clean,
                self._dealt(requested),
                limits=self.limits,
                shown=shown_arguments(policy_of(request.tool), clean),
                heard=heard,
                stored=self._outcomes.said,
            )
        match admission:
            case Asked():
                return _Raised(
                    asked=admission.question,
                    answered=admission.answered,
                    requested=requested,
                    heard=heard,
                )
            case Reused():
                self._deal_with(requested, admission.invocation_id)
                return Recorded(self._outcomes.reused(request, admission.result))
            case Denied():
                raise ToolDenied(f"Denied: {admission.decision.message}")
        self._deal_with(requested, requested.invocation_id)
        return await self._send(request, requested, admission)

    async def _send(
        self, request: ToolRequest, requested: Requested, admission: Admitted
    ) -> Invocation:
        connection_id, credential, prepared = None, None, None
        span = tool_span.begun(requested)
        if requested.provider is not None:
            try:
                with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                    lease = await self._lease(request, requested, admission)
                    if admission.pinned is not None:
                        prepared = await self._open(requested, admission, lease)
            except BaseException as failure:
                tool_span.end_failed(span, failure)
                raise
            connection_id, credential = lease.connection_id, lease.credential
        unit = charging.unit_of(self._grant_id, self.account_id, rework=admission.rework)
        # Durable before the tool runs: whoever finds the row SENT without an outcome knows that
        # the effect may have happened, and its price is on the bill.
        await self._journal.write(
            self._holding,
            acts=[store.send(requested.invocation_id, requested.attempt, connection_id, unit)],
        )
        self._under_way[requested.invocation_id] = _UnderWay(
            request.tool, requested, admission, span, policy_of(request.tool), unit
        )
        return Invocation(requested.invocation_id, credential, prepared)

    async def _lease(
        self, request: ToolRequest, requested: Requested, admission: Admitted
    ) -> Lease:
        try:
            lease = await self._credentials.lease(
                self._holding,
                admission.connection_ids,
                _need(request, requested),
                requested.tool,
                requested.invocation_id,
            )
        except ToolDenied as denial:
            reason = ErrorReason.ERROR_REASON_CONNECTION_NOT_GRANTED
            await self._not_sent(requested, admission, reason, str(denial))
            raise
        self._scrubber.learn(lease.secrets)
        return lease

    async def _open(self, requested: Requested, admission: Admitted, lease: Lease) -> OpenedTool:
        assert admission.pinned is not None
        opening = Opening(
            self._holding,
            self._grant_id,
            requested,
            admission.pinned,
            admission.audit_record_id,
            lease.credential,
        )
        try:
            return await opened(self._journal, opening)
        except NotOpenedError as failure:
            text = self._scrubber.text(storable(str(failure)))[:2000]
            reason = ErrorReason.ERROR_REASON_TOOL_FAILED
            await self._not_sent(requested, admission, reason, text)
            raise ToolDenied(text) from None

    async def _not_sent(
        self,
        requested: Requested,
        admission: Admitted,
        reason: ErrorReason.ValueType,
        message: str,
    ) -> None:
        """Record that an allowed invocation came to its end before it began."""
        event = ToolFinished(invocation_id=requested.invocation_id, tool=requested.tool)
        event.error.CopyFrom(RunErrorMessage(reason=reason, message=message))
        audit = invoking.outcome(requested, admission, self._grant_id, AuditOutcome.FAILED)
        await self._journal.write(self._holding, drafts=[Draft(event)], acts=[audit])

    def _deal_with(self, requested: Requested, invocation_id: str) -> None:
        self._dealt_with[invocation_id] = (requested.task_id, requested.node_attempt)

    def _dealt(self, requested: Requested) -> Dealt:
        tried = frozenset(
            invocation_id
            for invocation_id, (task_id, node_attempt) in self._dealt_with.items()
            if task_id == requested.task_id and node_attempt < requested.node_attempt
        )
        return Dealt(frozenset(self._dealt_with) - tried, tried)

    def _requested(self, request: ToolRequest) -> Requested:
        place = place_of(request.config)
        policy = policy_of(request.tool)
        effect, mcp_provider = effect_of(policy), None
        if isinstance(request.tool, McpTool):
            # By this run's grant, whatever a graph has made of the tool it was given.
            effect = self.pinned_effects.get(request.tool.name, ToolEffect.OUTWARD)
            mcp_provider = request.tool.granted.provider
        arguments = {str(name): json_of(each) for name, each in request.arguments.items()}
        return Requested(
            invocation_id=self._invocation_id(request, place),
            tenant_id=self._holding.tenant_id,
            run_id=self._holding.run_id,
            attempt=self._holding.attempt,
            task_id=place.task_id,
            tool_call_id=request.tool_call_id,
            tool=request.tool.name,
            node=place.node,
            effect=effect,
            provider=mcp_provider or next(iter(policy.providers), None),
            arguments_digest=hashlib.sha256(canonical_json(arguments)).digest(),
            node_attempt=place.node_attempt,
            mcp_provider=mcp_provider,
        )

    def _invocation_id(self, request: ToolRequest, place: TaskPlace) -> str:
        """The same whenever the same execution of a node asks for the same invocation."""
        tool = request.tool.name
        if request.tool_call_id:
            return derive_id(self._holding.run_id, place.task_id, tool, request.tool_call_id)
        # Counted per try of the node: LangGraph's retry runs it from the top, as a crash does.
        key = (place.task_id, place.node_attempt, tool)
        self._ordinals[key] += 1
        return derive_id(self._holding.run_id, place.task_id, tool, self._ordinals[key])


def _need(request: ToolRequest, requested: Requested) -> Need:
    """Raises ToolDenied as `need_of` does. Only tools that need a credential come here."""
    if requested.mcp_provider is not None:
        # By the grant, as its effect is: a graph may have given the tool another policy.
        return Need((requested.mcp_provider,))
    need = need_of(policy_of(request.tool), request.arguments)
    assert need is not None
    return need


def _content(outcome: Any) -> Any:
    return outcome.content if isinstance(outcome, ToolMessage) else outcome
