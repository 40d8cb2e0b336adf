"""The writer's queue: bounded, answered after the commit, and one caller's trouble is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from services.ledger.commands import Command, Outcome, UsageOutcome, UsageResult
from services.ledger.writer import LARGE_COMMANDS, QUEUE_COMMANDS_MAX, Writer
from services.runtime.errors import ErrorKind, ServiceError
from tests.ledger.conftest import one_command, running

CREATED = UsageOutcome(UsageResult.CREATED)


async def test_a_full_queue_refuses_with_a_time_to_come_back_and_has_done_nothing() -> None:
    entered, release = asyncio.Event(), asyncio.Event()
    posted: list[Command] = []

    async def post(commands: Sequence[Command]) -> list[Outcome]:
        entered.set()
        await release.wait()
        posted.extend(commands)
        return [CREATED for _ in commands]

    some = [one_command() for _ in range(QUEUE_COMMANDS_MAX)]
    async with running(Writer(post)) as writer:
        first = asyncio.create_task(writer.submit(some[:1]))
        await entered.wait()
        waiting = asyncio.create_task(writer.submit(some))
        await asyncio.sleep(0)
        late = one_command()

        with pytest.raises(ServiceError) as refused:
            await writer.submit([late])
        release.set()
        assert await first == [CREATED]
        assert await waiting == [CREATED] * QUEUE_COMMANDS_MAX

        assert refused.value.kind is ErrorKind.RESOURCE_EXHAUSTED
        assert refused.value.retry_after is not None
        assert late not in posted
        assert await writer.submit([late]) == [CREATED]


async def test_a_callers_commands_that_break_the_batch_fail_alone() -> None:
    entered, release = asyncio.Event(), asyncio.Event()
    broken = one_command()

    async def post(commands: Sequence[Command]) -> list[Outcome]:
        entered.set()
        await release.wait()
        if broken in commands:
            raise ArithmeticError
        return [CREATED for _ in commands]

    async with running(Writer(post)) as writer:
        sent = [writer.submit([each]) for each in (one_command(), one_command(), broken)]
        tasks = [asyncio.create_task(each) for each in sent]
        await entered.wait()
        release.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert answers[:2] == [[CREATED], [CREATED]]
    assert isinstance(answers[2], ArithmeticError)


async def arriving(writer: Writer, count: int) -> None:
    """One command in each round of the loop, as calls do that have arrived already."""

    async def submit_in_round(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
        await writer.submit([one_command()])

    await asyncio.gather(*(submit_in_round(number) for number in range(count)))


async def test_calls_that_arrive_in_neighbouring_rounds_share_a_batch() -> None:
    sizes: list[int] = []

    async def post(commands: Sequence[Command]) -> list[Outcome]:
        sizes.append(len(commands))
        return [CREATED for _ in commands]

    async with running(Writer(post)) as writer:
        await arriving(writer, 20)

    assert sizes == [20]


async def test_calls_without_end_do_not_put_off_the_batch() -> None:
    sizes: list[int] = []

    async def post(commands: Sequence[Command]) -> list[Outcome]:
        sizes.append(len(commands))
        return [CREATED for _ in commands]

    async with running(Writer(post)) as writer:
        await arriving(writer, 3 * LARGE_COMMANDS)

    assert sum(sizes) == 3 * LARGE_COMMANDS
    assert sizes[0] == LARGE_COMMANDS
