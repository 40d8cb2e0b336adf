"""How the access log names whoever calls."""

from __future__ import annotations

from services.connections.access_log import Action, Decision, Entry
from services.runtime.caller import Caller, CallerKind


def actor_of(caller: Caller) -> str:
    """ "user:<sub>", "service:<name>" or "run:<run_id>"."""
    match caller.kind:
        case CallerKind.RUN if caller.run is not None:
            return f"run:{caller.run.run_id}"
        case CallerKind.SERVICE:
            return f"service:{caller.service}"
        case _:
            return f"user:{caller.subject}"


def entry_by(caller: Caller, action: Action, decision: Decision) -> Entry:
    """An entry of the access log with everything that the caller's token says."""
    run = caller.run
    return Entry(
        action,
        decision,
        actor_of(caller),
        on_behalf_of=caller.on_behalf_of or "",
        run_id=run.run_id if run else "",
        epoch=run.epoch if run else 0,
        grant_id=run.grant_id if run else "",
    )
