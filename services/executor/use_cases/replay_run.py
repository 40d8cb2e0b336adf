"""Starts a run that repeats a finished one, on a thread of its own."""

from dataclasses import dataclass, replace

from services.executor.runs import Origin, Run, RunRequest
from services.executor.store import runs
from services.executor.use_cases.backing import Backing
from services.executor.use_cases.start_run import start_run
from services.runtime.caller import Caller
from services.runtime.errors import failed_precondition, not_found


@dataclass(frozen=True, slots=True)
class Replay:
    """Which run to repeat, and what differs; None takes over what the run had."""

    run_id: str
    grant_id: str | None
    revision: str | None
    labels: dict[str, str]


async def replay_run(on: Backing, caller: Caller, request_id: str, wanted: Replay) -> Run:
    """Start the repetition, or return the one of an earlier same call. Raises as StartRun."""
    async with on.database.raw_tenant(caller.tenant_id) as tx:
        repeated = await runs.get(tx, wanted.run_id)
    if repeated is None:
        raise not_found("run", wanted.run_id)
    if not repeated.final:
        raise failed_precondition(
            "RUN_ACTIVE",
            f"The run is {repeated.state}; only finished runs can be replayed.",
            metadata={"state": repeated.state},
        )
    return await start_run(on, caller, request_id, _request(repeated, wanted))


def _request(repeated: Run, wanted: Replay) -> RunRequest:
    same = RunRequest(
        graph_id=repeated.graph_id,
        grant_id=repeated.grant_id,
        input=repeated.input,
        context=repeated.context,
        thread_id=None,
        revision=repeated.revision,
        options=repeated.options,
        labels=wanted.labels,
        origin=Origin(),
        replayed_run_id=repeated.run_id,
    )
    return replace(
        same,
        grant_id=wanted.grant_id or same.grant_id,
        revision=wanted.revision or same.revision,
    )
