"""Deletes a final run with all that belongs to it alone."""

from services.executor.store.events import Connection

# LangGraph's checkpoints share values: a later run of the thread may stand on a value that this
# run wrote, so values go to another run of the thread, if there is one.
_LEAVE_VALUES = """
UPDATE checkpoint_blobs SET run_id = heir.run_id
FROM (
    SELECT others.run_id FROM runs JOIN runs AS others USING (thread_id)
    WHERE runs.run_id = $1 AND others.run_id <> $1 ORDER BY others.run_id DESC LIMIT 1
) AS heir
WHERE checkpoint_blobs.run_id = $1
"""
# Usage units have no reference to runs: what was used is a fact, and outlives them.
_DELETE = """
DELETE FROM runs WHERE run_id = $1 AND finish_time IS NOT NULL AND close_time IS NOT NULL
RETURNING run_id
"""
_WAS_DELETED = """
SELECT 1 FROM audit_records WHERE run_id = $1 AND action = 'run.delete' LIMIT 1
"""


async def delete(tx: Connection, run_id: str) -> bool:
    """Delete the run, its events, checkpoints and invocations; False unless it is closed."""
    await tx.execute(_LEAVE_VALUES, run_id)
    return await tx.fetchval(_DELETE, run_id) is not None


async def was_deleted(tx: Connection, run_id: str) -> bool:
    """Whether the tenant had the run and deleted it."""
    return await tx.fetchval(_WAS_DELETED, run_id) is not None
