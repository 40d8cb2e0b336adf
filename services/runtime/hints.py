"""Sends Dramatiq messages by name, without importing the modules of the workers."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

from dramatiq import Broker, Message

from services.runtime.errors import unavailable
from services.runtime.message_trace import OPTION, outgoing_trace
from services.runtime.outbox import Entry
from services.runtime.relay import Handler

Argument = str | int | float | bool | None

_RETRY_AFTER = timedelta(seconds=1)


@dataclass(frozen=True)
class Hint:
    """A message for the actor `actor` of `queue`: ids only, never a secret."""

    queue: str
    actor: str
    args: Sequence[Argument]
    trace_context: Mapping[str, str] | None = None


class HintSender:
    """Sends hints from an event loop without blocking it.

    One thread does it: a RabbitMQ connection belongs to the thread that made it.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hints")

    async def send(self, queue: str, actor: str, *args: Argument) -> None:
        """Send one hint under the current trace. Raises ServiceError UNAVAILABLE."""
        await self.send_all([Hint(queue, actor, args, outgoing_trace())])

    async def send_all(self, hints: Iterable[Hint]) -> None:
        """Send the hints in order; when it raises UNAVAILABLE, some may have been sent."""
        messages = [_message(hint) for hint in hints]
        await asyncio.get_running_loop().run_in_executor(self._thread, self._enqueue, messages)

    def handler(
        self, queue: str, actor: str, args: Callable[[Entry], Sequence[Argument]]
    ) -> Handler:
        """Return a relay's handler that sends each outbox entry as a hint."""

        async def send_entries(entries: list[Entry]) -> None:
            await self.send_all(
                Hint(queue, actor, args(entry), entry.trace_context) for entry in entries
            )

        return send_entries

    def close(self) -> None:
        """Stop the thread and close its connections; waits for a send under way."""
        self._thread.submit(self._broker.close)
        self._thread.shutdown()

    def _enqueue(self, messages: list[Message[None]]) -> None:
        try:
            for message in messages:
                self._broker.enqueue(message)
        except Exception as error:
            # Dramatiq's brokers raise what their client libraries do: all of it means "not sent".
            raise unavailable(
                "The message broker cannot be reached; retry.", retry_after=_RETRY_AFTER
            ) from error


def _message(hint: Hint) -> Message[None]:
    return Message(
        queue_name=hint.queue,
        actor_name=hint.actor,
        args=tuple(hint.args),
        kwargs={},
        options={OPTION: outgoing_trace(hint.trace_context)},
    )
