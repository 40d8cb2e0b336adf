"""Nobody gets in who may not."""

from __future__ import annotations

from tests.executor.conftest import World
from tests.plugins.refusals import prove_refusals


async def test_every_rpc_refuses_whoever_its_entry_does_not_admit(quiet_world: World) -> None:
    refusals = await prove_refusals(
        "executor", quiet_world.application, quiet_world.served, quiet_world.identities
    )

    assert refusals > 100
