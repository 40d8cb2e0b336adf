"""Breakpoints of graphs: nobody passes one without an answer, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.executor.runner import attempt, ending
from services.executor.runner.catalogue import Catalogue
from tests.runner.fleet import Fleet
from tests.runner.running import DEADLINE_SECONDS, Running, running


async def _answer(fleet: Fleet, runner: Running, run_id: str) -> None:
    await runner.in_state(run_id, "WAITING")
    (row,) = await fleet.rows(
        "SELECT interrupt_id FROM interrupts WHERE run_id = $1 AND answer_time IS NULL", run_id
    )
    await fleet.answer(run_id, row["interrupt_id"], True)


@pytest.mark.parametrize("graph_id", ["gated_before", "gated_after"])
async def test_a_breakpoint_is_asked_about_after_the_attempt_that_reached_it_died(
    fleet: Fleet, catalogue: Catalogue, graphs: Any, monkeypatch: pytest.MonkeyPatch, graph_id: str
) -> None:
    died = asyncio.Event()

    async def die_first(*args: Any) -> None:
        if died.is_set():
            await ending.end(*args)
        died.set()

    monkeypatch.setattr(attempt, "end", die_first)
    run_id = await fleet.start(graph_id, input={"words": []})
    async with running(fleet, catalogue) as runner:
        runner.loop.wake()
        await asyncio.wait_for(died.wait(), DEADLINE_SECONDS)
        await runner.idle()
        await fleet.kill(run_id)
        waiting = await runner.in_state(run_id, "WAITING")
        assert (waiting.attempt, graphs.HAPPENED["second"]) == (2, 0)
        await _answer(fleet, runner, run_id)
        run = await runner.finished(run_id)

    assert run.output == {"words": ["first", "second"]}


async def test_each_breakpoint_within_a_subgraph_is_asked_about(
    fleet: Fleet, catalogue: Catalogue, graphs: Any
) -> None:
    run_id = await fleet.start("gated_within", input={"words": []})
    async with running(fleet, catalogue) as runner:
        await _answer(fleet, runner, run_id)
        await runner.until(run_id, lambda run: run.state == "WAITING" and run.attempt == 2)
        assert (graphs.HAPPENED["first"], graphs.HAPPENED["second"]) == (1, 0)
        await _answer(fleet, runner, run_id)
        run = await runner.finished(run_id)

    assert run.output == {"words": ["first", "second"]}
