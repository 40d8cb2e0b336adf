"""A run says where its trace can be looked at, if there is such a place and such a trace."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cogni.executor.v1 import executor_service_pb2 as pb
from services.executor.convert.runs import run_to_proto
from services.executor.runs import Options, Origin, Run, RunState
from tests.executor.conftest import World

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACED = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
TEMPLATE = "https://traces.test/{trace_id}/tree"


@pytest.mark.parametrize(
    ("template", "traceparent", "url"),
    [
        (TEMPLATE, TRACED, f"https://traces.test/{TRACE_ID}/tree"),
        (TEMPLATE, None, ""),
        (TEMPLATE, "no traceparent", ""),
        ("", TRACED, ""),
    ],
)
def test_a_trace_url_is_the_template_with_the_trace_id_or_nothing(
    template: str, traceparent: str | None, url: str
) -> None:
    now = datetime.now(UTC)
    ids = dict.fromkeys(("run_id", "tenant_id", "graph_id", "revision", "thread_id"), "a")
    run = Run(
        **ids,
        grant_id="a",
        owner="a",
        state=RunState.QUEUED,
        attempt=0,
        options=Options(),
        origin=Origin(),
        labels={},
        create_time=now,
        update_time=now,
        traceparent=traceparent,
    )

    assert run_to_proto(run, template).trace_url == url


async def test_every_rpc_that_shows_a_run_shows_its_trace_url(quiet_world: World) -> None:
    started = await quiet_world.start(await quiet_world.grant())
    read = await quiet_world.run(started.run_id)
    listed = (await quiet_world.executor().ListRuns(pb.ListRunsRequest())).runs

    assert len(started.trace_id) == 32
    urls = [each.trace_url for each in (started, read, *listed)]
    assert urls == [f"https://traces.test/{started.trace_id}/tree"] * 3
