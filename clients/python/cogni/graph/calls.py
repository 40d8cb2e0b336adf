"""One request to a provider, run in a task of its own so that it is always settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from cogni.graph import provider
from cogni.graph.metering import NOTHING, CallStart, Meter, Usage

#: How long a request goes on after its caller has left, to learn what it used.
DRAIN_SECONDS = 120.0

#: How many chunks wait for a slow reader before the provider's stream is slowed down.
CHUNKS_WAITING_MAX = 256

_END = object()


class ProviderCall:
    """A request in flight. The caller reads it; a pump of its own settles it.

    LiteLLM reports no usage for a stream that nobody reads to the end, so the
    pump reads on when the caller stops or is cancelled, for at most
    `drain_seconds`, and settles from the estimate after that.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        meter: Meter | None,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self._request = request
        self._meter = meter
        self._drain_seconds = drain_seconds
        self._abandoned = asyncio.Event()
        self._parts: asyncio.Queue[Any] = asyncio.Queue(CHUNKS_WAITING_MAX)
        self._usage: Usage | None = None
        self._response_id = ""
        self._pump = asyncio.create_task(self._run(), name="provider-call")
        self._pump.add_done_callback(_mark_retrieved)
        if meter is not None:
            meter.adopt(self._pump)

    async def response(self) -> Any:
        """The whole response of a request without `stream`. Raises what the provider raised."""
        whole = None
        async for part in self.chunks():
            whole = part
        return whole

    async def chunks(self) -> AsyncIterator[Any]:
        """The response's chunks as they come. Leaving early leaves the pump running.

        Raises what the provider raised.
        """
        try:
            while (part := await self._parts.get()) is not _END:
                yield part
            # The pump ends after the call is settled, so a reader that saw the
            # end of its answer knows that it is paid for.
            await asyncio.shield(self._pump)
        finally:
            self._abandoned.set()

    async def _run(self) -> None:
        try:
            await provider.load()
            start = provider.describe(self._request)
            call_id = await self._meter.open(start) if self._meter else None
            await self._send_and_settle(start, call_id)
        finally:
            await self._hand_over(_END)

    async def _send_and_settle(self, start: CallStart, call_id: str | None) -> None:
        usage = provider.estimated(start)
        try:
            if self._abandoned.is_set():
                usage = NOTHING
                return
            await self._until_drained(self._read(call_id))
            if self._usage is not None:
                usage = provider.priced(start, self._usage)
        except Exception as failure:
            usage = provider.usage_after_failure(start, failure, tried_once=True)
            raise
        finally:
            if self._meter and call_id:
                named = replace(usage, provider_response_id=self._response_id)
                await self._meter.settle(call_id, named)

    async def _until_drained(self, reading: Coroutine[Any, Any, None]) -> None:
        """Read to the end; once abandoned, for at most the drain time."""
        read = asyncio.create_task(reading)
        left = asyncio.create_task(self._abandoned.wait())
        try:
            await asyncio.wait({read, left}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({read}, timeout=self._drain_seconds)
            if read.done():
                await read
        finally:
            left.cancel()
            read.cancel()

    async def _read(self, call_id: str | None) -> None:
        # The gateway knows the call by our id: reconciliation compares the two meters by it.
        request = {**self._request, "litellm_call_id": call_id} if call_id else self._request
        answer = await provider.complete(request)
        if not self._request.get("stream"):
            self._note_usage(answer)
            await self._hand_over(answer)
            return
        async for chunk in answer:
            self._note_usage(chunk)
            await self._hand_over(chunk)
        if self._usage is not None and not provider.reported_usage(self._request, answer):
            self._usage = replace(self._usage, estimated=True)

    def _note_usage(self, part: Any) -> None:
        self._response_id = str(getattr(part, "id", None) or self._response_id)
        reported = getattr(part, "usage", None)
        if reported is not None and not provider.is_blank(reported):
            self._usage = provider.usage_of(reported)

    async def _hand_over(self, part: Any) -> None:
        """Give the part to the reader, waiting for room only while there is a reader."""
        if self._abandoned.is_set():
            return
        if not self._parts.full():
            self._parts.put_nowait(part)
            return
        put = asyncio.create_task(self._parts.put(part))
        left = asyncio.create_task(self._abandoned.wait())
        await asyncio.wait({put, left}, return_when=asyncio.FIRST_COMPLETED)
        put.cancel()
        left.cancel()


def _mark_retrieved(pump: asyncio.Task[None]) -> None:
    # A reader that left never asks for the failure; asyncio would report it as forgotten.
    if not pump.cancelled():
        pump.exception()
