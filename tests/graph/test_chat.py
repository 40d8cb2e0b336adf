"""The chat model: what it says, and that every call is settled exactly once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from cogni.graph import chat_model, tool
from cogni.graph.metering import metered_by

DEADLINE_SECONDS = 30


def _model(provider: Any, **arguments: Any) -> Any:
    return chat_model("openai/gpt-4o-mini", api_base=provider.url, api_key="sk-test", **arguments)


def test_importing_the_library_does_not_import_litellm() -> None:
    code = "import sys, cogni.graph; cogni.graph.chat_model('x'); print('litellm' in sys.modules)"

    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert out.stdout.strip() == "False"


async def test_a_whole_answer_is_settled_with_the_usage_the_provider_reports(
    provider: Any, meter: Any
) -> None:
    with metered_by(meter):
        answer = await _model(provider).ainvoke("hi")

    assert answer.content == "one two three"
    assert answer.usage_metadata["input_tokens"] == 11
    (usage,) = meter.usages.values()
    assert (usage.input_tokens, usage.output_tokens, usage.estimated) == (11, 3, False)
    assert usage.cost_usd == Decimal("0.00000345")


async def test_a_stream_carries_usage_and_is_settled_before_the_reader_sees_its_end(
    provider: Any, meter: Any
) -> None:
    with metered_by(meter):
        chunks = [chunk async for chunk in _model(provider).astream("hi")]

    assert "".join(chunk.text for chunk in chunks) == "one two three"
    assert [c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata] == [3]
    assert [u.output_tokens for u in meter.usages.values()] == [3]


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_without_usage_is_settled_from_an_estimate_that_is_flagged(
    provider: Any, meter: Any, streamed: bool
) -> None:
    provider.reports = False
    with metered_by(meter):
        model = _model(provider)
        if streamed:
            said = "".join([chunk.text async for chunk in model.astream("hi")])
        else:
            said = (await model.ainvoke("hi")).text

    assert said == "one two three"
    (usage,) = meter.usages.values()
    assert usage.estimated
    assert usage.input_tokens > 0
    assert usage.cost_usd > 0


async def test_a_stream_cut_off_by_a_cancelled_run_is_read_to_its_end_and_settled_exactly(
    provider: Any, meter: Any
) -> None:
    provider.hold_after = 1
    first = asyncio.Event()

    async def read() -> None:
        with metered_by(meter):
            async for _ in _model(provider).astream("hi"):
                first.set()

    reading = asyncio.create_task(read())
    await asyncio.wait_for(first.wait(), DEADLINE_SECONDS)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert meter.usages == {}
    provider.release.set()
    await asyncio.wait_for(meter.settled.wait(), DEADLINE_SECONDS)

    assert [(u.input_tokens, u.output_tokens) for u in meter.usages.values()] == provider.billed
    assert not any(u.estimated for u in meter.usages.values())


async def test_a_stream_that_never_ends_is_settled_from_its_upper_bound_and_flagged(
    provider: Any, meter: Any
) -> None:
    provider.hold_after = 1
    model = _model(provider, max_tokens=50, drain_seconds=0.05)
    with metered_by(meter):
        async for _ in model.astream("hi"):
            break
    await asyncio.wait_for(meter.settled.wait(), DEADLINE_SECONDS)

    (usage,) = meter.usages.values()
    assert usage.estimated
    assert usage.output_tokens == 50


async def test_a_refused_call_costs_nothing_and_a_failed_one_its_estimate(
    provider: Any, meter: Any
) -> None:
    with metered_by(meter):
        provider.refuse_status = 429
        with pytest.raises(Exception, match="no"):
            await _model(provider).ainvoke("hi")
        provider.refuse_status = 503
        with pytest.raises(Exception, match="no"):
            await _model(provider).ainvoke("hi")

    refused, failed = meter.usages.values()
    assert (refused.output_tokens, refused.estimated) == (0, False)
    assert failed.estimated
    assert len(provider.requests) == 2, "a hidden retry is a call nobody metered"


async def test_a_call_that_was_never_sent_costs_nothing(
    meter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    with metered_by(meter):
        with pytest.raises(Exception, match="credentials"):
            await chat_model("openai/gpt-5-mini").ainvoke("hi")
        with pytest.raises(Exception, match="Connection"):
            await chat_model(
                "openai/gpt-5-mini", api_base="http://127.0.0.1:1", api_key="key"
            ).ainvoke("hi")

    assert [usage.output_tokens for usage in meter.usages.values()] == [0, 0]


async def test_a_call_that_may_not_be_opened_is_never_sent(provider: Any, meter: Any) -> None:
    async def refuse(start: Any) -> str:
        raise RuntimeError("the budget is spent")

    meter.open = refuse
    with metered_by(meter), pytest.raises(RuntimeError, match="budget"):
        await _model(provider).ainvoke("hi")

    assert provider.requests == []


async def test_blocking_code_in_a_thread_is_metered_on_the_runs_loop(
    provider: Any, meter: Any
) -> None:
    def node() -> list[str]:
        return [chunk.text for chunk in _model(provider).stream("hi")]

    with metered_by(meter):
        answer = await asyncio.to_thread(lambda: _model(provider).invoke("hi"))
        words = await asyncio.to_thread(node)

    assert answer.content == "".join(words) == "one two three"
    assert len(meter.usages) == 2


async def test_a_blocking_call_inside_async_code_says_what_to_do(meter: Any) -> None:
    with metered_by(meter), pytest.raises(RuntimeError, match="ainvoke"):
        chat_model("openai/x", mock_response="hi").invoke("hi")


def test_outside_a_run_it_works_unmetered() -> None:
    model = chat_model("gpt-4o-mini", mock_response="hello there")

    assert model.invoke("hi").content == "hello there"
    assert "".join(chunk.text for chunk in model.stream("hi")) == "hello there"


async def test_a_mocked_model_calls_tools_and_is_metered(meter: Any) -> None:
    @tool(effects="none")
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    def script(messages: Any) -> str | AIMessage:
        if isinstance(messages[-1], HumanMessage):
            call = {"name": "add", "args": {"a": 1, "b": 2}, "id": "c1"}
            return AIMessage(content="", tool_calls=[call])
        return "done"

    model = chat_model("gpt-4o-mini", mock_response=script).bind_tools([add])
    with metered_by(meter):
        whole = await model.ainvoke("add")
        streamed = [chunk async for chunk in model.astream("add")]

    assert whole.tool_calls[0]["args"] == {"a": 1, "b": 2}
    assert streamed[0].tool_calls[0]["name"] == "add"
    assert len(meter.usages) == 2


def test_a_key_in_the_arguments_is_not_printed() -> None:
    model = chat_model("openai/gpt-4o-mini", api_key="sk-canary")

    assert "sk-canary" not in repr(model)
    assert "sk-canary" not in str(model._get_invocation_params())
