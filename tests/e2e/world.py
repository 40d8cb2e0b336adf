"""One embedded stack of separate processes, and the world it acts on."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pytest

from bench.embedded import STOP_SECONDS_MAX, Embedded, embedded
from services.standalone import pds
from services.standalone.demo import tenant
from services.standalone.demo.outside import MODEL_KEYS, Bluesky
from tests.e2e.collector import Collector, collecting

GRAPHS = Path(__file__).parents[2] / "examples" / "langgraph.json"
TENANT = "e2e"
HANDLE = "e2e.test"
#: Stands in what the model is asked and answers: it may be stored with the run, never in spans.
PROMPT_CANARY = "Canaries sing in prompts only"
FEED = f"""<?xml version="1.0"?>
<feed xmlns="http://www.w3.org/2005/Atom">
  <entry><title>{PROMPT_CANARY}</title></entry>
  <entry><title>Servers start a second sooner</title></entry>
</feed>
"""


@dataclass
class World:
    """The stack, what is outside of it, and what must stay inside."""

    stack: Embedded
    collector: Collector
    bluesky: Bluesky
    feed: Path
    #: The session tokens that the AT Protocol server has issued.
    sessions: list[str]
    team: tenant.Tenant | None = field(default=None)

    @cached_property
    def environment(self) -> dict[str, str]:
        """What a client of the tenant has in its environment: asking costs a process each time."""
        return self.stack.environment(TENANT)


@contextmanager
def running_world(folder: Path) -> Iterator[World]:
    """Starts all of it; `folder` is for what is outside of the stack."""
    feed = folder / "feed.atom"
    feed.write_text(FEED)
    sessions: list[str] = []
    with pytest.MonkeyPatch.context() as patch, collecting() as collector:
        for name in (*MODEL_KEYS, "DIGEST_MODEL"):
            patch.delenv(name, raising=False)
        issue = pds.Pds._token

        def remember(self: pds.Pds, scope: str, seconds: int) -> str:
            sessions.append(issue(self, scope, seconds))
            return sessions[-1]

        patch.setattr(pds.Pds, "_token", remember)
        password = secrets.token_urlsafe(24)
        server = pds.serve(0, folder / "pds.json", HANDLE, password)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        settings = {
            "COGNI_CONNECTIONS_EGRESS_ALLOW": url.removeprefix("http://"),
            "COGNI_RUNNER_EGRESS_ALLOW": url.removeprefix("http://"),
            # A crash of the runner is noticed when its lease is over, and a runner on a busy
            # machine must be able to renew it.
            "COGNI_RUNNER_LEASE_SECONDS": "6",
        }
        try:
            with embedded(GRAPHS, settings, {"COGNI_OTLP_ENDPOINT": collector.url}) as stack:
                bluesky = Bluesky(url, HANDLE, password, None)
                yield World(stack, collector, bluesky, feed, sessions)
                stack.process.wait(STOP_SECONDS_MAX)
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
