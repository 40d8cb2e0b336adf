"""What the demo meets outside: a model and an AT Protocol server, real ones when there are keys."""

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from services.standalone.children import Program, Stage, log_says, logs_in
from services.standalone.pds import READY
from services.standalone.ports import LOOPBACK, free_port

REAL_SERVICE_URL: Final = "https://bsky.social"
STAND_IN_HANDLE: Final = "demo.test"
POSTS: Final = "app.bsky.feed.post"
HTTP_SECONDS: Final = 20.0

#: The keys that examples/writer.py looks for, in its order.
MODEL_KEYS: Final = (
    "ANTHROPIC_API_KEY",
    "OPENAI_API_KEY",
    "GEMINI_API_KEY",
    "MISTRAL_API_KEY",
    "GROQ_API_KEY",
    "OPENROUTER_API_KEY",
)


@dataclass(frozen=True)
class Bluesky:
    """The account to post with, and the stand-in's process when the account is not real."""

    service_url: str
    handle: str
    app_password: str
    stand_in: Program | None

    @property
    def settings(self) -> dict[str, str]:
        """Settings without which neither Connections nor the tool calls an address of this
        machine; they allow this one and no other."""
        if self.stand_in is None:
            return {}
        address = self.service_url.removeprefix("http://")
        return {
            "COGNI_CONNECTIONS_EGRESS_ALLOW": address,
            "COGNI_RUNNER_EGRESS_ALLOW": address,
        }

    def sentence(self) -> str:
        """Says to whom the demo posts."""
        if self.stand_in is None:
            return f"Posts go to {self.handle} at {self.service_url}: this is real."
        return (
            f"Posts go to a small AT Protocol server started for this demo ({self.service_url}), "
            f"because BLUESKY_HANDLE and BLUESKY_APP_PASSWORD are not set."
        )

    async def posts(self, text: str) -> list[dict[str, Any]]:
        """The newest posts of the account with exactly this text, as the server lists them."""
        async with httpx.AsyncClient(timeout=HTTP_SECONDS, base_url=self.service_url) as client:
            answer = await client.get(
                "/xrpc/com.atproto.repo.listRecords",
                params={"repo": self.handle, "collection": POSTS, "limit": "100"},
            )
            answer.raise_for_status()
        return [record for record in answer.json()["records"] if record["value"]["text"] == text]


def bluesky(environ: Mapping[str, str], data_dir: Path, logs: Path) -> Bluesky:
    """The person's own account, or an account on a server of ours."""
    handle, password = environ.get("BLUESKY_HANDLE"), environ.get("BLUESKY_APP_PASSWORD")
    if handle and password:
        url = environ.get("BLUESKY_SERVICE_URL", REAL_SERVICE_URL).rstrip("/")
        return Bluesky(url, handle, password, None)
    port, password = free_port(), secrets.token_urlsafe(16)
    stand_in = Program(
        name="bluesky",
        stage=Stage.SERVERS,
        command=(
            *(sys.executable, "-m", "services.standalone.pds"),
            *(str(port), str(data_dir / "pds.json")),
        ),
        environment={
            **{name: environ[name] for name in ("PATH", "PYTHONPATH") if name in environ},
            "PDS_HANDLE": STAND_IN_HANDLE,
            "PDS_PASSWORD": password,
        },
        log=logs_in(logs, "bluesky"),
        probe=log_says(READY),
    )
    return Bluesky(f"http://{LOOPBACK}:{port}", STAND_IN_HANDLE, password, stand_in)


def model_sentence(environ: Mapping[str, str]) -> str:
    """Says which model writes."""
    if chosen := environ.get("DIGEST_MODEL"):
        return f"The model is {chosen}, as DIGEST_MODEL says: its calls cost real money."
    for name in MODEL_KEYS:
        if environ.get(name):
            return f"The model is the one {name} opens: its calls cost real money."
    return (
        "The model is LiteLLM's mock response, because no model key is set "
        f"({', '.join(MODEL_KEYS[:3])}, ...): nothing is sent, and usage is billed as if it were."
    )
