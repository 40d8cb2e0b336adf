"""The search for secrets finds them: a search that finds nothing proves nothing otherwise."""

from __future__ import annotations

import base64
import os
import secrets
import subprocess
import sys

import pytest

from tests.canaries import containing, holding_in_memory

SECRET = "hunter2/\u00fc+"


@pytest.mark.parametrize(
    "written",
    [
        SECRET.encode(),
        SECRET.encode().hex().encode(),
        b"password=hunter2%2F%C3%BC%2B",
        b'{"password": "hunter2/\\u00fc+"}',
        *(base64.b64encode(b"x" * before + SECRET.encode() + b"yz") for before in range(4)),
        *(base64.urlsafe_b64encode(b"x" * before + SECRET.encode()) for before in range(4)),
    ],
)
def test_a_secret_is_found_however_it_was_written(written: bytes) -> None:
    assert containing([SECRET], {"here": written, "there": b"hunter3"}) == ["here"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into other processes' memory")
def test_a_secret_in_another_processs_memory_is_found() -> None:
    held, never = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
    program = "import sys; held = sys.stdin.readline(); print(len(held), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{held}\n")
        process.stdin.flush()
        process.stdout.readline()
        found = holding_in_memory(process.pid, [held, never])
        process.stdin.write("\n")
    assert found == [held]
