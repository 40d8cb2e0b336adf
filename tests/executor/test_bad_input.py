"""Whatever a caller sends is answered by a reason of the contract, never by INTERNAL."""

from __future__ import annotations

from typing import Any

import pytest

from cogni.executor.v1 import grant_pb2
from tests.executor.conftest import World, grant_request, start_request
from tests.plugins.bad_input import prove_bad_input
from tests.plugins.strangers import prove_strangers


@pytest.fixture
async def known(quiet_world: World) -> dict[str, Any]:
    """What the Executor has that requests can name."""
    bounds = grant_pb2.NumberRange(min=1, max=5)
    path = grant_pb2.ArgumentConstraint(path="count", range=bounds)
    grant = grant_request(tools=[grant_pb2.ToolPermission(tool="post", arguments=[path])])
    grant_id = await quiet_world.grant()
    run = await quiet_world.start(grant_id)
    return {
        "grant_id": grant_id,
        "run_id": run.run_id,
        "graph_id": run.graph_id,
        "cogni.executor.v1.CreateGrantRequest": grant,
        "cogni.executor.v1.StartRunRequest": start_request(grant_id),
    }


async def test_no_request_is_answered_by_a_defect(
    quiet_world: World, known: dict[str, Any]
) -> None:
    world = quiet_world

    count = await prove_bad_input(
        "executor", world.application, world.served, world.identities, known
    )

    assert count > 1000


async def test_to_another_tenant_all_of_it_is_unknown(
    quiet_world: World, known: dict[str, Any]
) -> None:
    world = quiet_world
    # What it names is not there at all: this Executor asks nobody whose connections are.
    known.pop("cogni.executor.v1.CreateGrantRequest")

    count = await prove_strangers(
        "executor", world.application, world.served, world.identities, known
    )

    assert count > 10
