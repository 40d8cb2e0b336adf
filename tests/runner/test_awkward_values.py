"""What graphs hand back that JSON or PostgreSQL cannot hold: their runs end all the same."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage

from cogni.executor.v1.run_event_pb2 import MessageDelta
from services.executor.runner.catalogue import Catalogue
from services.executor.runner.narration import Narrator
from services.executor.runner.scrub import Scrubber
from tests.runner.fleet import Fleet
from tests.runner.running import Running, running

_MOST = 2 * 1024 * 1024


async def test_awkward_values_end_the_run_as_any_other_does(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    async def runs_of(graph_id: str) -> dict[str, str]:
        return {
            kind: await fleet.start(graph_id, input={"words": [kind]}) for kind in graphs.AWKWARD
        }

    raising = await runs_of("raising_awkwardly")
    asking = await runs_of("asking_awkwardly")
    saying = await runs_of("saying_awkwardly")
    async with running(fleet, catalogue) as runner:
        await _check_errors(runner, raising)
        for run_id in asking.values():
            await runner.in_state(run_id, "WAITING")
        outputs = {kind: (await runner.finished(each)).output for kind, each in saying.items()}
    (most,) = await fleet.rows("SELECT max(length(payload::text)) AS size FROM interrupts")

    assert most["size"] < _MOST
    assert outputs["nul"] == {"words": ["nul", "a\0b"]}
    assert outputs["half"] == {"words": ["half", "a?b"]}
    assert outputs["nan"] == {"words": ["nan", "NaN"]}
    assert set(outputs["large"]) == {"omitted_bytes"}  # type: ignore[arg-type]


async def _check_errors(runner: Running, raising: dict[str, str]) -> None:
    said = {}
    for kind, run_id in raising.items():
        error = (await runner.finished(run_id)).error
        assert error is not None
        assert (error.reason, error.node) == ("GRAPH_FAILED", "awkward_raise")
        said[kind] = error.message
    assert (said["nul"], said["half"], said["nan"]) == ("a\N{REPLACEMENT CHARACTER}b", "a?b", "nan")


async def test_a_function_that_is_a_graph_may_return_any_value(
    fleet: Fleet, catalogue: Catalogue
) -> None:
    run_id = await fleet.start("counting")
    async with running(fleet, catalogue) as runner:
        assert (await runner.finished(run_id)).output == 42


def test_a_long_message_is_told_in_pieces_that_a_reader_can_take() -> None:
    text, path = "x" * 3_000_000, "y" * 1_000_000
    call = {"name": "write", "args": {"path": path}, "id": "call_1"}
    message = AIMessage(text, id="m", tool_calls=[call])

    drafts = Narrator(Scrubber()).drafts((), "messages", (message, {"langgraph_node": "n"}))

    told = [each.content for each in drafts if isinstance(each.content, MessageDelta)]
    assert max(each.ByteSize() for each in told) < 1024 * 1024
    assert "".join(each.text for each in told) == text
    calls = [call for each in told for call in each.tool_calls]
    assert "".join(each.arguments_json for each in calls) == f'{{"path": "{path}"}}'
    assert [each.tool for each in calls if each.tool] == ["write"]
    assert [each.last for each in told] == [False] * (len(told) - 1) + [True]


async def test_what_a_tool_says_as_it_fails_is_on_record_whatever_is_in_it(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    graphs.FAILURES.append(RuntimeError("a\0b\ud800c"))
    grant_id = await fleet.grant("flaky_put")
    run_id = await fleet.start("retrying", grant_id, input={"words": ["idempotent"]})
    async with running(fleet, catalogue) as runner:
        assert (await runner.finished(run_id)).state == "SUCCEEDED"

    ends = [
        each.tool_finished for each in await fleet.events(run_id) if each.HasField("tool_finished")
    ]
    assert ends[0].error.message == "a\N{REPLACEMENT CHARACTER}b?c"
