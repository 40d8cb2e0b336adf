"""A model provider with a meter: speaks the OpenAI protocol and writes down what it would bill.

`python -m tests.chaos.provider METER_FILE` prints its port. Every completion is one JSON line
in the meter, written before the usage is sent, so what a caller learnt of is always metered.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PIECES = 5
PIECE_SECONDS = 0.05


class Meter:
    """Appends one line per completion; each is on disk before it is answered."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._lock = threading.Lock()

    def bill(self, response_id: str, tokens_in: int, tokens_out: int) -> None:
        line = {"id": response_id, "input": tokens_in, "output": tokens_out}
        with self._lock:
            self._file.write(json.dumps(line) + "\n")
            os.fsync(self._file.fileno())


class Handler(BaseHTTPRequestHandler):
    """Answers POST /chat/completions, streamed or whole."""

    protocol_version = "HTTP/1.1"
    meter: Meter

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        response_id = f"cmpl-{uuid.uuid4()}"
        tokens_in, tokens_out = random.randint(10, 500), random.randint(10, 500)
        usage = {
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "total_tokens": tokens_in + tokens_out,
        }
        if request.get("stream"):
            self._stream(request, response_id, usage)
        else:
            time.sleep(PIECES * PIECE_SECONDS)
            self.meter.bill(response_id, tokens_in, tokens_out)
            self._whole(request, response_id, usage)

    def _whole(self, request: Mapping[str, Any], response_id: str, usage: object) -> None:
        message = {"role": "assistant", "content": "word " * PIECES}
        body = json.dumps(
            {
                "id": response_id,
                "object": "chat.completion",
                "created": int(time.time()),
                "model": request["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": usage,
            }
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(
        self, request: Mapping[str, Any], response_id: str, usage: Mapping[str, int]
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        chunk = {
            "id": response_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": request["model"],
        }
        for _ in range(PIECES):
            time.sleep(PIECE_SECONDS)
            piece = [{"index": 0, "delta": {"role": "assistant", "content": "word "}}]
            self._event({**chunk, "choices": piece})
        self._event({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.meter.bill(response_id, usage["prompt_tokens"], usage["completion_tokens"])
        self._event({**chunk, "choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, data: object) -> None:
        self.wfile.write(b"data: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()

    def handle(self) -> None:
        try:
            super().handle()
        except (BrokenPipeError, ConnectionResetError):
            # The caller was killed: that is what the test is about.
            return

    def log_message(self, *arguments: object) -> None:
        """Says nothing: the meter is the record."""


def main() -> None:
    Handler.meter = Meter(Path(sys.argv[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
