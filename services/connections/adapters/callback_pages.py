"""Serves the callback's pages over HTTP: one small GET a connection, bounded in size and time."""

from __future__ import annotations

import asyncio
import html
import logging

import h11

from services.connections.callback import Callback, Page
from services.runtime.drain import Drain
from services.runtime.errors import ServiceError, StartError

_log = logging.getLogger(__name__)

REQUEST_SECONDS_MAX = 30.0
REQUEST_BYTES_MAX = 32 * 1024
CONNECTIONS_MAX = 256
_HEADERS = [
    ("connection", "close"),
    ("content-type", "text/html; charset=utf-8"),
    ("cache-control", "no-store"),
    ("referrer-policy", "no-referrer"),
    ("x-content-type-options", "nosniff"),
    ("content-security-policy", "default-src 'none'"),
]


async def serve_pages(callback: Callback, host: str, port: int, drain: Drain) -> None:
    """Listen until the drain begins. Raises StartError when the port cannot be had."""
    pages = Pages(callback)
    try:
        server = await asyncio.start_server(pages.serve, host, port)
    except OSError as error:
        raise StartError(
            f"Cannot listen on {host}:{port} for the callback: {error.strerror}."
        ) from error
    async with server:
        _log.info("listening on %s:%s", *server.sockets[0].getsockname()[:2])
        await drain.draining.wait()


class Pages:
    """Speaks HTTP for a callback."""

    def __init__(self, callback: Callback) -> None:
        self._callback = callback
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request, bounded in size and time."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS_MAX), self._slots:
                await self._exchange(reader, writer)
        except (TimeoutError, OSError, h11.RemoteProtocolError):
            _log.debug("a browser went away or did not speak HTTP")
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES_MAX)
        request = await _read(protocol, reader)
        try:
            page = await self._callback.answer(request.method.decode(), request.target.decode())
        except ServiceError:
            page = Page(503, "Something is out of order; begin again in a minute.")
        body = _body(page)
        headers = [*_HEADERS, ("content-length", str(len(body)))]
        if page.location:
            headers.append(("location", page.location))
        for event in (
            h11.Response(status_code=page.status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            writer.write(protocol.send(event) or b"")
        await writer.drain()


async def _read(protocol: h11.Connection, reader: asyncio.StreamReader) -> h11.Request:
    while True:
        event = protocol.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            raise h11.RemoteProtocolError("no request came")
        protocol.receive_data(await reader.read(REQUEST_BYTES_MAX))


def _body(page: Page) -> bytes:
    text = html.escape(page.text)
    return f"<!doctype html><title>Cogni</title><p>{text}</p>\n".encode()
