"""Bad input at every RPC is refused before it does anything, with every fault at once."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import grant_pb2, run_pb2
from cogni.executor.v1 import grant_service_pb2 as grant_pb
from cogni.executor.v1.runner_service_pb2 import MintRunTokenRequest
from cogni.type.v1.amount_pb2 import Amount
from services.executor.rules import RULES
from services.runtime.validation import RuleSet

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
CHECK = RuleSet(RULES)


def start(**changes: Any) -> pb.StartRunRequest:
    fields = {"request_id": ID, "graph_id": "digest", "grant_id": ID, **changes}
    return pb.StartRunRequest(**fields)


def grant(**changes: Any) -> grant_pb.CreateGrantRequest:
    fields = {"request_id": ID, "graphs": ["graph:execute:digest"], **changes}
    return grant_pb.CreateGrantRequest(**fields)


def permission(**fields: Any) -> grant_pb2.ToolPermission:
    return grant_pb2.ToolPermission(**{"tool": "post", **fields})


def constraint(**fields: Any) -> grant_pb2.ToolPermission:
    return permission(arguments=[grant_pb2.ArgumentConstraint(**{"path": "text", **fields})])


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.StartRunRequest(), ["request_id", "graph_id", "grant_id"]),
        (start(request_id="1"), ["request_id"]),
        (start(graph_id="a b"), ["graph_id"]),
        (start(grant_id="x"), ["grant_id"]),
        (start(thread_id="x"), ["thread_id"]),
        (start(input={"text": "x" * 1_100_000}), ["input"]),
        (start(context={"text": "x" * 70_000}), ["context"]),
        (start(labels={"": "x"}), ["labels['']"]),
        (start(labels={str(n): "x" for n in range(65)}), ["labels"]),
        (start(options=run_pb2.RunOptions(max_attempts=0)), ["options.max_attempts"]),
        (start(options=run_pb2.RunOptions(max_attempts=21)), ["options.max_attempts"]),
        (start(options=run_pb2.RunOptions(max_steps=0)), ["options.max_steps"]),
        (start(options=run_pb2.RunOptions(durability=9)), ["options.durability"]),
        (start(options=run_pb2.RunOptions(timeout=Duration(seconds=0))), ["options.timeout"]),
        (
            start(options=run_pb2.RunOptions(max_cost=Amount(asset="USD", value="-1"))),
            ["options.max_cost.value"],
        ),
        (
            start(origin=run_pb2.RunOrigin(schedule=run_pb2.ScheduleOrigin())),
            ["origin.schedule.schedule_id"],
        ),
        (pb.GetRunRequest(), ["run_id"]),
        (pb.ListRunsRequest(page_size=-1), ["page_size"]),
        (pb.ListRunsRequest(page_size=1001, states=[77]), ["page_size", "states[0]"]),
        (pb.WatchRunRequest(run_id=ID, after_seq=-1), ["after_seq"]),
        (pb.WatchRunsRequest(cursor="x", from_now=True), ["from_now"]),
        (pb.WatchRunsRequest(run_ids=["x"]), ["run_ids[0]"]),
        (pb.WatchRunsRequest(run_ids=[ID] * 101), ["run_ids"]),
        (pb.CancelRunRequest(run_id=ID, comment="x" * 1001), ["comment"]),
        (pb.CancelRunRequest(run_id=ID, reason=3), ["reason"]),
        (pb.ResumeRunRequest(), ["request_id", "run_id", "interrupt_id", "answer"]),
        (
            pb.ResumeRunRequest(
                request_id=ID, run_id=ID, interrupt_id="i", verdict=pb.InvocationVerdict()
            ),
            ["verdict.finding"],
        ),
        (pb.ReplayRunRequest(mode=5), ["request_id", "run_id", "mode"]),
        (pb.DeleteRunRequest(), ["run_id"]),
        (pb.GetRunStateRequest(), ["run_id"]),
        (pb.ListCheckpointsRequest(page_size=-3), ["run_id", "page_size"]),
        (pb.ListGraphsRequest(page_size=-1), ["page_size"]),
        (pb.GetGraphRequest(), ["graph_id"]),
        (pb.ListAuditRecordsRequest(run_id="x", kinds=[9]), ["run_id", "kinds[0]"]),
        (grant_pb.CreateGrantRequest(), ["request_id", "graphs"]),
        (grant(graphs=["digest"]), ["graphs[0]"]),
        (grant(graphs=["graph:execute:"]), ["graphs[0]"]),
        (grant(graphs=["graph:execute:a"] * 101), ["graphs"]),
        (grant(tools=[grant_pb2.ToolPermission()]), ["tools[0].tool"]),
        (grant(tools=[permission(), permission()]), ["tools[1].tool"]),
        (
            grant(tools=[permission(max_invocations_per_run=-1)]),
            ["tools[0].max_invocations_per_run"],
        ),
        (grant(tools=[constraint(path="a..b")]), ["tools[0].arguments[0].path"]),
        (
            grant(tools=[constraint(range=grant_pb2.NumberRange(min=2, max=1))]),
            ["tools[0].arguments[0].range"],
        ),
        (grant(tools=[constraint(max_length=-1)]), ["tools[0].arguments[0].max_length"]),
        (grant(tools=[constraint(one_of=[])]), ["tools[0].arguments[0].one_of"]),
        (grant(connection_ids=[""]), ["connection_ids[0]"]),
        (grant(budget=Amount(asset="USD", value="1e3")), ["budget.value"]),
        (grant_pb.GetGrantRequest(grant_id="x"), ["grant_id"]),
        (grant_pb.ListGrantsRequest(page_size=-1), ["page_size"]),
        (grant_pb.RevokeGrantRequest(), ["grant_id"]),
        (grant_pb.WatchGrantsRequest(cursor="x", from_now=True), ["from_now"]),
        (MintRunTokenRequest(), ["run_id", "epoch"]),
        (MintRunTokenRequest(run_id=ID, epoch=-1), ["epoch"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Message) else "",
)
def test_each_fault_is_named_by_its_field(request_: Message, fields: list[str]) -> None:
    assert [violation.field for violation in CHECK.violations(request_)] == fields


@pytest.mark.parametrize(
    "request_",
    [
        start(),
        start(input={"a": [1, None, {"b": True}]}, labels={"a": ""}),
        grant(tools=[constraint(glob="*"), permission(tool="other")]),
        pb.ListRunsRequest(),
        pb.CancelRunRequest(run_id=ID),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_right_passes(request_: Message) -> None:
    assert CHECK.violations(request_) == []
