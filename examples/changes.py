"""The tool `read_changes`: what is new in a git repository or a feed, newest first."""

import asyncio
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from langchain_core.tools import ToolException

from cogni.graph import tool
from cogni.graph.egress import Egress, EgressError, EgressLimits

TITLES_MAX = 50
FEED_BYTES_MAX = 4 * 1024 * 1024
READ_SECONDS = 20.0

_ATOM = "{http://www.w3.org/2005/Atom}"


@tool(effects="none")
async def read_changes(source: str, limit: int = 10) -> list[str]:
    """Titles of the newest changes of a git repository (a folder) or an RSS or Atom feed (a file
    or an https URL)."""
    limit = max(1, min(limit, TITLES_MAX))
    if source.startswith("https://"):
        return feed_titles(await _download(source), limit)
    return await asyncio.to_thread(local_titles, Path(source), limit)


def local_titles(path: Path, limit: int) -> list[str]:
    """Titles of what is new in a repository or a feed on this machine."""
    if path.is_dir():
        return commit_titles(path, limit)
    try:
        with path.open("rb") as file:
            return feed_titles(file.read(FEED_BYTES_MAX + 1), limit)
    except OSError as error:
        raise ToolException(f"{path} can not be read: {error.strerror}") from None


def commit_titles(repository: Path, limit: int) -> list[str]:
    """Subjects of the newest commits."""
    # Only what is named here runs: a repository's own configuration may name programs, and git
    # refuses folders of other users unless told that this one is meant.
    command = ["git", "-c", "core.fsmonitor=false", "-c", f"safe.directory={repository.resolve()}"]
    command += ["-C", str(repository), "log", f"-{limit}", "--no-show-signature", "--format=%s"]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=READ_SECONDS
        )
    except FileNotFoundError:
        raise ToolException("git is not installed; name a feed instead") from None
    if done.returncode != 0:
        raise ToolException(f"git could not read {repository}: {done.stderr.strip()[:200]}")
    return done.stdout.splitlines()


def feed_titles(document: bytes, limit: int) -> list[str]:
    """Titles of the newest entries of an RSS 2.0 or Atom document."""
    if len(document) > FEED_BYTES_MAX:
        raise ToolException(f"the feed is larger than {FEED_BYTES_MAX} bytes")
    # A feed needs no document type; declaring one is how entities are made to explode.
    if b"<!DOCTYPE" in document or b"<!ENTITY" in document:
        raise ToolException("the feed declares a document type, which is refused")
    try:
        root = ElementTree.fromstring(document)  # noqa: S314  # No entities: see above.
    except ElementTree.ParseError as error:
        raise ToolException(f"the feed is not well-formed XML: {error}") from None
    entries = [*root.iter("item"), *root.iter(f"{_ATOM}entry")]
    titles = (entry.findtext("title") or entry.findtext(f"{_ATOM}title") for entry in entries)
    return [" ".join(title.split()) for title in titles if title][:limit]


async def _download(url: str) -> bytes:
    # Which addresses may be read is the operator's word, and the model chose this one.
    limits = EgressLimits(total_seconds=READ_SECONDS, answer_bytes_max=FEED_BYTES_MAX)
    try:
        async with Egress(limits) as egress:
            answer = await egress.exchange("GET", url, {})
    except EgressError as error:
        raise ToolException(f"{url} can not be read: {error}") from None
    if 300 <= answer.status < 400:
        # Not followed: a grant may have bound where this tool reads.
        moved = answer.headers.get("location", "another address")[:200]
        raise ToolException(f"{url} has moved to {moved}; name that address instead")
    if answer.status >= 400:
        raise ToolException(f"{url} answered {answer.status}")
    return answer.body
