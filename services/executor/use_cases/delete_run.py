"""Deletes a finished run; its charges, its audit records and its request_id stay."""

from services.executor.audit import AuditKind, AuditRecord
from services.executor.store import audit, deletion, runs
from services.executor.use_cases.backing import current_traceparent, trace_id_of
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import failed_precondition, not_found
from services.runtime.ids import new_id


async def delete_run(database: Database, caller: Caller, run_id: str) -> None:
    """Delete the run; deleting it again succeeds. Raises NOT_FOUND, RUN_ACTIVE."""
    async with database.raw_tenant(caller.tenant_id) as tx:
        run = await runs.get(tx, run_id, lock=True)
        if run is None:
            if await deletion.was_deleted(tx, run_id):
                return
            raise not_found("run", run_id)
        if not run.final:
            raise failed_precondition(
                "RUN_ACTIVE",
                f"The run is {run.state}; cancel it or wait.",
                metadata={"state": run.state},
            )
        if not await deletion.delete(tx, run_id):
            raise failed_precondition(
                "RUN_ACTIVE",
                "The run's usage has not all reached the Ledger yet; try again in a moment.",
                metadata={"state": run.state},
            )
        record = AuditRecord(
            audit_record_id=new_id(),
            kind=AuditKind.EVENT,
            action="run.delete",
            actor=caller.subject,
            run_id=run_id,
            attempt=run.attempt,
            grant_id=run.grant_id,
            trace_id=trace_id_of(current_traceparent()),
        )
        await audit.write(tx, caller.tenant_id, record)
