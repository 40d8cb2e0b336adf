"""A provider of models on a local port: OpenAI's wire format, with a meter of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class ProviderServer:
    """What the provider saw and billed. `release` lets a held stream go on."""

    url: str = ""
    answer: list[str] = field(default_factory=lambda: ["one ", "two ", "three"])
    refuse_status: int | None = None
    #: Whether an answer says what it used.
    reports: bool = True
    hold_after: int | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    requests: list[dict[str, Any]] = field(default_factory=list)
    billed: list[tuple[int, int]] = field(default_factory=list)

    async def complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        if self.refuse_status:
            return web.json_response({"error": {"message": "no"}}, status=self.refuse_status)
        usage = (11, len(self.answer))
        if not body.get("stream"):
            self.billed.append(usage)
            whole = _whole("".join(self.answer), usage)
            return web.json_response(whole if self.reports else {**whole, "usage": None})
        return await self._stream(request, usage)

    async def _stream(self, request: web.Request, usage: tuple[int, int]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for index, word in enumerate(self.answer):
            if index == self.hold_after:
                await self.release.wait()
            await response.write(_event(_chunk({"content": word}, None)))
        await response.write(_event(_chunk({}, "stop")))
        self.billed.append(usage)
        if self.reports:
            last = {**_chunk({}, None), "choices": [], "usage": _usage(usage)}
            await response.write(_event(last))
        await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def provider_server() -> AsyncIterator[ProviderServer]:
    provider = ProviderServer()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", provider.complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    provider.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield provider
    finally:
        provider.release.set()
        await runner.cleanup()


def _usage(usage: tuple[int, int]) -> dict[str, int]:
    prompt, completion = usage
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def _whole(text: str, usage: tuple[int, int]) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _usage(usage),
    }


def _chunk(delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()
