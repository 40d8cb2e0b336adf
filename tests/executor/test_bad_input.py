"""Whatever a caller sends is answered by a reason of the contract, never by INTERNAL."""

from __future__ import annotations

from cogni.executor.v1 import grant_pb2
from tests.executor.conftest import World, grant_request, start_request
from tests.plugins.bad_input import prove_bad_input


async def test_no_request_is_answered_by_a_defect(quiet_world: World) -> None:
    bounds = grant_pb2.NumberRange(min=1, max=5)
    path = grant_pb2.ArgumentConstraint(path="count", range=bounds)
    grant = grant_request(tools=[grant_pb2.ToolPermission(tool="post", arguments=[path])])
    grant_id = await quiet_world.grant()
    start = start_request(grant_id)
    run = await quiet_world.start(grant_id)

    count = await prove_bad_input(
        "executor",
        quiet_world.application,
        quiet_world.served,
        quiet_world.identities,
        {
            "grant_id": grant_id,
            "run_id": run.run_id,
            "graph_id": run.graph_id,
            "cogni.executor.v1.CreateGrantRequest": grant,
            "cogni.executor.v1.StartRunRequest": start,
        },
    )

    assert count > 1000
