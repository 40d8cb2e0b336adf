"""Stands around each tool invocation of an attempt: decides, records, leases, scrubs."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from langchain_core.messages import ToolMessage
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
from services.executor.audit import AuditKind, AuditOutcome, AuditRecord
from services.executor.events import Draft
from services.executor.graphs import ToolEffect
from services.executor.runner import charging, invoking
from services.executor.runner.describing import effect_of
from services.executor.runner.invoking import Admission, Admitted, Asked, Denied, Reused
from services.executor.runner.journal import Holding, Journal
from services.executor.runner.needs import Need, need_of
from services.executor.runner.opening import NotOpenedError, Opening, opened
from services.executor.runner.outcomes import Outcomes
from services.executor.runner.redacting import REDACTED, shown_arguments, shown_result
from services.executor.runner.rendering import json_of, value_of
from services.executor.runner.scrub import Scrubber
from services.executor.runner.task import TaskPlace, place_of
from services.executor.store import invocations as store
from services.executor.store.budgets import NO_LIMITS
from services.executor.store.invocations import Requested, ToolUnit
from services.runtime.database import Database
from services.runtime.ids import derive_id, new_id
from services.runtime.jsonvalues import canonical_json

_tracer = trace.get_tracer("cogni.runner")


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

    requested: Requested
    admission: Admitted
    span: trace.Span
    policy: ToolPolicy
    #: What is charged for it; None when nobody pays.
    unit: ToolUnit | None


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
        self._dealt_with: set[str] = set()
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
        return await self._admit(request, self._requested(request), answered=False)

    async def answered(
        self, request: ToolRequest, question: Question, answer: Any
    ) -> Invocation | Recorded:
        """Take a person's verdict on an invocation in doubt, and go on by it."""
        requested = self._requested(request, again=True)
        verdict = invoking.verdict_of(answer)
        async with self._database.raw_tenant(self._holding.tenant_id) as tx:
            await invoking.resolve(
                tx,
                self._holding,
                str(question.asked["invocation_id"]),
                happened=verdict.happened,
                result=self._outcomes.stored(verdict.output),
            )
        admitted = await self._admit(request, requested, answered=True)
        assert not isinstance(admitted, Question), "it has just been answered"
        return admitted

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
        audit = self._outcome(requested, admission, failed=failed)
        drafts = [Draft(event), *charging.told(requested, under_way.unit)]
        await self._journal.write(self._holding, drafts=drafts, acts=[act, invoking.audited(audit)])
        return clean

    async def failed(self, invocation: Invocation, failure: BaseException) -> BaseException:
        """Record how the tool failed, and return what to raise, without credentials."""
        under_way = self._under_way.pop(invocation.invocation_id)
        requested, admission = under_way.requested, under_way.admission
        _end_failed(under_way.span, failure)
        clean = self._scrubber.failure(failure)
        if isinstance(clean, asyncio.CancelledError | GraphBubbleUp) or not isinstance(
            clean, Exception
        ):
            # Cut off in the middle: what it did outside stays unknown, and the row says SENT.
            return clean
        kind, text = type(failure).__name__, self._scrubber.text(str(failure))[:2000]
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
        act = store.fail(requested.invocation_id, requested.attempt, kind, text)
        audit = self._outcome(requested, admission, failed=True)
        drafts = [Draft(event), *charging.told(requested, under_way.unit)]
        await self._journal.write(self._holding, drafts=drafts, acts=[act, invoking.audited(audit)])
        return clean

    async def _admit(
        self, request: ToolRequest, requested: Requested, *, answered: bool
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
                frozenset(self._dealt_with),
                limits=self.limits,
                shown=shown_arguments(policy_of(request.tool), clean),
                answered=answered,
            )
        match admission:
            case Asked():
                return Question(admission.question)
            case Reused():
                self._dealt_with.add(admission.invocation_id)
                return Recorded(self._outcomes.reused(request, admission.result))
            case Denied():
                raise ToolDenied(f"Denied: {admission.decision.message}")
        self._dealt_with.add(requested.invocation_id)
        return await self._send(request, requested, admission)

    async def _send(
        self, request: ToolRequest, requested: Requested, admission: Admitted
    ) -> Invocation:
        connection_id, credential, prepared = None, None, None
        span = _span(requested)
        if requested.provider is not None:
            try:
                with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                    lease = await self._lease(request, requested, admission)
                    if admission.pinned is not None:
                        prepared = await self._open(requested, admission, lease)
            except BaseException as failure:
                _end_failed(span, failure)
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
            requested, admission, span, policy_of(request.tool), unit
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
            text = self._scrubber.text(str(failure))[:2000]
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
        audit = self._outcome(requested, admission, failed=True)
        await self._journal.write(
            self._holding, drafts=[Draft(event)], acts=[invoking.audited(audit)]
        )

    def _requested(self, request: ToolRequest, *, again: bool = False) -> Requested:
        place = place_of(request.config)
        policy = policy_of(request.tool)
        effect, mcp_provider = effect_of(policy), None
        if isinstance(request.tool, McpTool):
            # By this run's grant, whatever a graph has made of the tool it was given.
            effect = self.pinned_effects.get(request.tool.name, ToolEffect.OUTWARD)
            mcp_provider = request.tool.granted.provider
        arguments = {str(name): json_of(each) for name, each in request.arguments.items()}
        return Requested(
            invocation_id=self._invocation_id(request, place, again=again),
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
            mcp_provider=mcp_provider,
        )

    def _invocation_id(self, request: ToolRequest, place: TaskPlace, *, again: bool) -> str:
        """The same whenever the same execution of a node asks for the same invocation."""
        tool = request.tool.name
        if request.tool_call_id:
            return derive_id(self._holding.run_id, place.task_id, tool, request.tool_call_id)
        # Counted per try of the node: LangGraph's retry runs it from the top, as a crash does.
        key = (place.task_id, place.node_attempt, tool)
        if not again:
            self._ordinals[key] += 1
        return derive_id(self._holding.run_id, place.task_id, tool, self._ordinals[key])

    def _outcome(
        self, requested: Requested, admission: Admission, *, failed: bool
    ) -> tuple[str, AuditRecord]:
        assert isinstance(admission, Admitted)
        record = AuditRecord(
            audit_record_id=new_id(),
            kind=AuditKind.OUTCOME,
            action="tool.invoke",
            actor=f"run:{requested.run_id}",
            run_id=requested.run_id,
            attempt=requested.attempt,
            grant_id=self._grant_id,
            invocation_id=requested.invocation_id,
            cause_audit_record_id=admission.audit_record_id,
            outcome=AuditOutcome.FAILED if failed else AuditOutcome.SUCCEEDED,
            reason="TOOL_FAILED" if failed else None,
            details={"tool": requested.tool},
        )
        return requested.tenant_id, record


def _need(request: ToolRequest, requested: Requested) -> Need:
    """Raises ToolDenied as `need_of` does. Only tools that need a credential come here."""
    if requested.mcp_provider is not None:
        # By the grant, as its effect is: a graph may have given the tool another policy.
        return Need((requested.mcp_provider,))
    need = need_of(policy_of(request.tool), request.arguments)
    assert need is not None
    return need


def _span(requested: Requested) -> trace.Span:
    """A span by OpenTelemetry's GenAI conventions; it holds no argument and no outcome."""
    return _tracer.start_span(
        f"execute_tool {requested.tool}",
        attributes={
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": requested.tool,
            "cogni.invocation_id": requested.invocation_id,
            "cogni.run_id": requested.run_id,
        },
    )


def _end_failed(span: trace.Span, failure: BaseException) -> None:
    """End the span with the failure's type alone: its text may quote a provider's answer."""
    span.set_attribute("error.type", type(failure).__qualname__)
    span.set_status(trace.StatusCode.ERROR)
    span.end()


def _content(outcome: Any) -> Any:
    return outcome.content if isinstance(outcome, ToolMessage) else outcome
