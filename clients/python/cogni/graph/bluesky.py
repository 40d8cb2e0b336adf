"""The tool `post_to_bluesky`: one post per invocation, however often it is retried."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

from langchain_core.tools import BaseTool, StructuredTool, ToolException

from cogni.graph.blocking import blocking
from cogni.graph.egress import Answer, Egress, EgressError, EgressLimits
from cogni.graph.invocation import Credential, credential, invocation_id
from cogni.graph.policy import Effect, ToolPolicy, with_policy
from cogni.graph.reading import Fields, after_an_act, json_of, said

#: https://docs.bsky.app: a post holds 300 graphemes. Characters are never fewer.
TEXT_LENGTH_MAX = 300

TIMEOUT_SECONDS = 20.0
ANSWER_BYTES_MAX = 64 * 1024
_LIMITS = EgressLimits(total_seconds=TIMEOUT_SECONDS, answer_bytes_max=ANSWER_BYTES_MAX)

_WHO = "Bluesky"
_COLLECTION = "app.bsky.feed.post"
_LINK = re.compile(rb"https?://[^\s)\]]+")
_TID_ALPHABET = "234567abcdefghijklmnopqrstuvwxyz"
#: 2023-01-01 in microseconds, and how far after it a derived key may lie.
_TID_FROM_US = 1_672_531_200_000_000
_TID_RANGE_US = 2 * 365 * 86_400 * 1_000_000


def record_key(invocation: str) -> str:
    """A record key (TID) that is the same whenever the invocation is retried.

    A TID is 53 bits of microseconds and 10 bits of clock id in sortable base 32
    (https://atproto.com/specs/tid); both are taken from the invocation's digest.
    """
    digest = hashlib.sha256(invocation.encode()).digest()
    microseconds = _TID_FROM_US + int.from_bytes(digest[:8]) % _TID_RANGE_US
    number = (microseconds << 10) | (int.from_bytes(digest[8:10]) & 0x3FF)
    return "".join(_TID_ALPHABET[(number >> shift) & 31] for shift in range(60, -1, -5))


def link_facets(text: str) -> list[dict[str, Any]]:
    """Marks of the links in a post, in byte offsets as the AT Protocol counts them."""
    return [
        {
            "index": {"byteStart": match.start(), "byteEnd": match.end()},
            "features": [{"$type": "app.bsky.richtext.facet#link", "uri": match.group().decode()}],
        }
        for match in _LINK.finditer(text.encode())
    ]


async def _post(text: str) -> dict[str, str]:
    leased, key = credential(), record_key(invocation_id())
    content = json.dumps(_content(text, leased, key)).encode()
    url = f"{leased['service_url'].rstrip('/')}/xrpc/com.atproto.repo.putRecord"
    headers = {
        "authorization": f"Bearer {leased['access_jwt']}",
        "content-type": "application/json",
    }
    async with Egress(_LIMITS) as egress:
        try:
            answer = await egress.exchange("POST", url, headers, content)
        except EgressError as error:
            if error.maybe_done:
                # Nobody knows what became of it: that is no answer to give to a model.
                raise
            raise ToolException(f"Bluesky: {error}") from None
    return _answer(answer, leased, key)


def _content(text: str, leased: Credential, key: str) -> dict[str, Any]:
    if len(text) > TEXT_LENGTH_MAX:
        raise ToolException(
            f"the post has {len(text)} characters; shorten it to {TEXT_LENGTH_MAX} or fewer"
        )
    record: dict[str, Any] = {
        "$type": _COLLECTION,
        "text": text,
        "createdAt": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    try:
        facets = link_facets(text)
    except UnicodeEncodeError:
        raise ToolException("the post holds half characters, which cannot be sent") from None
    if facets:
        record["facets"] = facets
    return {
        "repo": leased["did"],
        "collection": _COLLECTION,
        "rkey": key,
        "record": record,
        # The record must not exist yet: a retry is told so instead of writing again.
        "swapRecord": None,
    }


def _answer(answer: Answer, leased: Credential, key: str) -> dict[str, str]:
    why = said(answer.body, "error", "message")
    if answer.status == 400 and said(answer.body, "error") == "InvalidSwap":
        return {"uri": f"at://{leased['did']}/{_COLLECTION}/{key}"}
    if 300 <= answer.status < 500:
        raise ToolException(f"Bluesky refused the post: {why or answer.status}")
    with after_an_act():
        if answer.status >= 500:
            raise ToolException(f"Bluesky answered {answer.status} ({why or 'no message'}).")
        uri = Fields(_WHO, json_of(_WHO, answer.body)).text("uri")
        if not uri.startswith("at://"):
            raise ToolException("Bluesky answered with something that is no post.")
    return {"uri": uri}


def _tool() -> BaseTool:
    declared = StructuredTool.from_function(
        func=blocking(_post),
        coroutine=_post,
        name="post_to_bluesky",
        description="Post a text of at most 300 characters to the team's Bluesky account.",
        handle_tool_error=True,
    )
    return with_policy(declared, ToolPolicy(Effect.OUTWARD, True, "bluesky"))


post_to_bluesky = _tool()
