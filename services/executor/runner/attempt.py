"""Carries one attempt of a run: from its claim to the ending that is written."""

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from langchain_core.runnables import RunnableConfig
from langgraph.errors import GraphRecursionError
from opentelemetry import trace

from cogni.graph.guarding import ToolDenied, guarded_by
from cogni.graph.mcp import mcp_tools_granted
from cogni.graph.metering import metered_by
from services.executor.runner.catalogue import Catalogue, CatalogueError
from services.executor.runner.describing import AnyGraph, tools_of
from services.executor.runner.ending import Ending, Finished, HandedOver, Waiting, end
from services.executor.runner.foreign import ForeignCalls
from services.executor.runner.guard import Credentials, RunGuard
from services.executor.runner.holds import Holds
from services.executor.runner.journal import (
    Holding,
    Journal,
    JournalUnavailableError,
    LeaseLostError,
)
from services.executor.runner.meter import RunMeter
from services.executor.runner.narration import MODES, Narrator
from services.executor.runner.opening import effect_of_pinned, granted_tool
from services.executor.runner.purse import Purse
from services.executor.runner.redacting import Redactions
from services.executor.runner.rendering import bounded, json_of, storable
from services.executor.runner.resuming import Start, questions_of, take_up
from services.executor.runner.run_hold import RunHold
from services.executor.runner.saver import Saver
from services.executor.runner.scrub import Scrubber
from services.executor.runner.stopping import RunStoppedError, stopped_by, timed_out
from services.executor.runs import RunError, RunState
from services.executor.store import controls, usage
from services.executor.store.leases import Claim
from services.executor.store.usage import Outstanding
from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.logs import log_context
from services.runtime.telemetry import continued

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("cogni.runner")

#: How long a cancelled graph may take to let go; what it does after that goes nowhere.
_STOP_SECONDS_MAX = 5.0
#: A larger output is told by its size: GetRun's answer, which has the input too, may have 4 MiB.
_OUTPUT_BYTES_MAX = 2 * 1024 * 1024


@dataclass(frozen=True)
class Workshop:
    """What every attempt of the process works with."""

    database: Database
    journal: Journal
    catalogue: Catalogue
    credentials: Credentials
    holds: Holds
    #: Keeps tasks that may outlive their attempt, until the process's drain.
    adopt: Callable[[asyncio.Task[Any]], None]


class Attempt:
    """One attempt, in a task of the process's loop."""

    def __init__(self, workshop: Workshop, claim: Claim) -> None:
        run = claim.run
        self.claim = claim
        self.holding = Holding(run.run_id, run.tenant_id, claim.epoch, run.attempt)
        self._workshop = workshop
        self._scrubber = Scrubber()
        self._narrator = Narrator(self._scrubber)
        self._guard = RunGuard(
            workshop.database,
            workshop.journal,
            workshop.credentials,
            self.holding,
            run.grant_id,
            self._scrubber,
        )
        self._hold: RunHold | None = None
        self._work: asyncio.Task[Ending] | None = None
        self._stopped_by: BaseException | None = None

    def stop(self, why: RunStoppedError) -> None:
        """End the run for this reason, as soon as its graph lets go."""
        self._interrupt(why)

    def abandon(self) -> None:
        """Stop acting: the lease is lost, and nothing may be written any more."""
        self._interrupt(LeaseLostError(self.holding.run_id))

    def hand_over(self) -> None:
        """Stop, so that another process goes on from the newest checkpoint."""
        self._interrupt(_HandOver())

    async def carry(self) -> None:
        """Carry the run until its attempt has ended, and write how."""
        run = self.claim.run
        with (
            log_context(run_id=run.run_id, tenant_id=run.tenant_id),
            continued(
                _tracer,
                f"run {run.graph_id}",
                {"traceparent": run.traceparent} if run.traceparent else {},
                attributes={
                    "cogni.run_id": run.run_id,
                    "cogni.tenant_id": run.tenant_id,
                    "cogni.graph_id": run.graph_id,
                    "cogni.attempt": run.attempt,
                },
            ),
        ):
            try:
                ending = await self._ending()
                self._close()
                await self._shrink_hold(ending)
                await end(self._workshop.database, self._workshop.journal, self.holding, ending)
            except LeaseLostError:
                _log.warning("the lease of run %s is lost; its attempt stops", run.run_id)
            except (JournalUnavailableError, ServiceError) as error:
                _log.error("run %s could not be stored (%s); its lease expires", run.run_id, error)
            finally:
                self._close()

    def _interrupt(self, why: BaseException) -> None:
        if self._stopped_by is None:
            self._stopped_by = why
        if self._work is not None:
            self._work.cancel()

    def _close(self) -> None:
        # Threads and tasks that graph code left behind can act no more.
        self._guard.closed = True
        if self._hold is not None:
            self._hold.close()

    async def _shrink_hold(self, ending: Ending) -> None:
        """Give back what the run no longer needs, while the lease still gives the right to.

        Closing the run does so too, but seconds later: others of its account may need the money.
        Whoever takes over a run that is handed over goes on with its hold.
        """
        if self._hold is None or not self._hold.placed:
            return
        match ending:
            case Waiting():
                await self._hold.shrink()
            case Finished():
                self._workshop.adopt(asyncio.create_task(self._hold.shrink()))

    async def _ending(self) -> Ending:
        self._work = asyncio.create_task(self._carry_graph(), name=f"run {self.holding.run_id}")
        if self._stopped_by is not None:
            self._work.cancel()
        try:
            await self._let_work()
            return self._work.result()
        except asyncio.CancelledError:
            if self._stopped_by is None:
                self._work.cancel()
                raise
            return self._ending_by(self._stopped_by)
        except (LeaseLostError, JournalUnavailableError, ServiceError):
            # Of our own making, and nothing else: a graph's OSError, which every timeout is, says
            # nothing about our database, and carrying its run again would repeat its effects.
            raise
        except Exception as failure:
            return self._ending_by(failure)

    async def _let_work(self) -> None:
        """Wait for the graph; once it is told to stop, for a bounded time."""
        assert self._work is not None
        while not self._work.done():
            stopping = self._stopped_by is not None
            await asyncio.wait({self._work}, timeout=_STOP_SECONDS_MAX if stopping else 1.0)
            if stopping and not self._work.done():
                _log.warning("run %s does not let go of its graph", self.holding.run_id)
                self._workshop.adopt(self._work)
                raise asyncio.CancelledError

    def _ending_by(self, failure: BaseException) -> Ending:
        match failure:
            case RunStoppedError():
                return Finished(failure.state, error=failure.error)
            case _HandOver():
                return HandedOver()
            case LeaseLostError() | JournalUnavailableError():
                raise failure
            case GraphRecursionError():
                most = self.claim.run.options.max_steps
                return self._failed("STEPS_EXHAUSTED", f"The graph took more than {most} steps.")
            case CatalogueError():
                return self._failed("GRAPH_BROKEN", str(failure))
        if self._stopped_by is not None:
            return self._ending_by(self._stopped_by)
        if not isinstance(failure, ToolDenied):
            # The traceback is the author's to see, in the operator's log; its text is scrubbed
            # in the run.
            _log.info("the graph of run %s raised %s", self.holding.run_id, type(failure).__name__)
        text = self._scrubber.text(f"{failure}")[:2000]
        return self._failed("GRAPH_FAILED", text or type(failure).__name__, failure)

    def _failed(self, reason: str, message: str, failure: BaseException | None = None) -> Finished:
        kind = type(failure).__name__ if failure is not None else ""
        error = RunError(reason, storable(message), node=self._narrator.failed_node, type=kind)
        return Finished(RunState.FAILED, error=error)

    async def _carry_graph(self) -> Ending:
        run = self.claim.run
        async with self._workshop.database.raw_tenant(run.tenant_id) as tx:
            briefing = await controls.briefing(tx, run.run_id, run.attempt)
        if briefing.stop is not None:
            raise stopped_by(briefing.stop)
        if briefing.account_id is not None:
            self._hold = RunHold(
                self._workshop.holds, self.holding, briefing.account_id, self._outstanding
            )
        meter = RunMeter(
            self._workshop.journal,
            self.holding,
            grant_id=run.grant_id,
            account_id=briefing.account_id,
            hold=self._hold,
            purse=Purse(self._workshop.database, briefing.limits),
            repeated=Counter(briefing.lost_calls),
            adopt=self._workshop.adopt,
        )
        self._guard.account_id, self._guard.limits = briefing.account_id, briefing.limits
        self._guard.pinned_effects = {
            each.tool: effect_of_pinned(each) for each in briefing.pinned_tools
        }
        granted = [granted_tool(each) for each in briefing.pinned_tools]
        try:
            with (
                metered_by(meter),
                guarded_by(self._guard),
                mcp_tools_granted(granted),
                self._deadline(briefing.waited),
            ):
                return await self._stream(briefing.answers, ForeignCalls(meter))
        finally:
            meter.closed = True

    async def _outstanding(self) -> Outstanding:
        async with self._workshop.database.raw_tenant(self.holding.tenant_id) as tx:
            return await usage.outstanding(tx, self.holding.run_id)

    @contextlib.contextmanager
    def _deadline(self, waited: timedelta) -> Any:
        """Stop the run when its time is over, time spent waiting not counted."""
        run = self.claim.run
        spent = run.update_time - (run.start_time or run.update_time) - waited
        left = (run.options.timeout - spent).total_seconds()
        timer = asyncio.get_running_loop().call_later(max(0.0, left), self._interrupt, timed_out())
        try:
            yield
        finally:
            timer.cancel()

    async def _stream(self, answers: dict[str, Any], foreign: ForeignCalls) -> Ending:
        run = self.claim.run
        graph = await self._graph()
        config: RunnableConfig = {
            # The same in every attempt: LangGraph resumes by it, and a new one applies the
            # input again.
            "run_id": UUID(run.run_id),
            "recursion_limit": run.options.max_steps,
            "configurable": {"thread_id": run.thread_id},
            "metadata": {"run_id": run.run_id},
            "callbacks": [foreign],
        }
        self._narrator.redactions = Redactions.of(tools_of(graph))
        begin: Start | Waiting = Start(run.input)
        if run.attempt > 1:
            begin = await take_up(graph, config, run.run_id, run.input, answers, self._scrubber)
        if isinstance(begin, Waiting):
            return begin
        parts = graph.astream(
            begin.graph_input,
            config,
            context=run.context or None,
            # A list, and no other sequence: only then are the parts told apart.
            stream_mode=list(MODES),
            subgraphs=True,
            # Each step is durable before the next begins: an outward effect must never be ahead
            # of the state that led to it. DURABILITY_EXIT is taken as a permission, not used.
            durability="sync",
        )
        part: Any
        async for part in parts:
            namespace, mode, content = part
            await self._tell(namespace, mode, content)
        return await self._conclude(graph, config)

    async def _graph(self) -> AnyGraph:
        graph = await self._workshop.catalogue.graph(self.claim.run.graph_id)
        saver = Saver(
            self._workshop.database,
            self._workshop.journal,
            self.holding,
            self._narrator.stepped,
        )
        return graph.copy(update={"checkpointer": saver})

    async def _tell(self, namespace: tuple[str, ...], mode: str, part: Any) -> None:
        drafts = self._narrator.drafts(namespace, mode, part)
        if not drafts:
            return
        self._workshop.journal.write(self.holding, drafts=drafts)
        if self._workshop.journal.crowded(self.holding):
            await self._workshop.journal.flush(self.holding)

    async def _conclude(self, graph: AnyGraph, config: RunnableConfig) -> Ending:
        output = self._narrator.output
        # A graph that asked nothing, has no breakpoints and left no node at work, as it does that
        # stops at a breakpoint within a subgraph, has come to its end.
        may_wait = graph.interrupt_before_nodes or graph.interrupt_after_nodes
        if output is None or self._narrator.interrupts or self._narrator.at_work or may_wait:
            state = await graph.aget_state(config)
            if questions := await questions_of(graph, state, self._scrubber):
                return Waiting(questions)
            output = state.values if output is None else output
        shown = self._narrator.redactions.value(self._scrubber.value(json_of(output)))
        return Finished(RunState.SUCCEEDED, bounded(shown, _OUTPUT_BYTES_MAX))


class _HandOver(Exception):
    """Stands for the process's wish to end."""
