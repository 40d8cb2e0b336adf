"""What tests of renewals share: limits, and what a renewal left behind."""

from __future__ import annotations

from datetime import timedelta

from services.connections.connection import Connection, State, StateReason
from services.connections.renewal import RenewalLimits
from services.connections.store import credentials
from tests.connections.conftest import World, user

# Wide, so that a busy machine is not taken for a process that was held up; under the 30 seconds
# by which tests let a claim run out.
QUICK = RenewalLimits(
    provider_call=timedelta(seconds=12),
    claim=timedelta(seconds=25),
    poll=timedelta(milliseconds=10),
)


async def state_of(world: World, made: Connection) -> tuple[State, StateReason]:
    now = await world.connections.get(user(), made.connection_id)
    return now.state, now.state_reason


async def generation_of(world: World, made: Connection) -> int:
    async with world.database.tenant("t1") as tx:
        return (await credentials.get(tx, "t1", made.connection_id)).session_generation
