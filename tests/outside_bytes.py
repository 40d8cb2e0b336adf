"""What may arrive from outside: answers, headers and texts as nobody should send them.

The searches of test files are short; with LONG=1 (make chaos LONG=1) they are long.
"""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

CANARY = "CANARYwhatwassent"
# Too long to be drawn, and so shown, as themselves.
LARGE = {
    "deep": "[" * 100_000,
    "digits": "9" * 5000,
    "quotes": json.dumps({"access_token": '"' * 17_000, "token": '"' * 17_000}),
    "words": json.dumps({"access_token": "a", "scope": "a " * 9000}),
    "html": f"<html>{CANARY}",
}
LONG = settings(max_examples=3_000 if os.environ.get("LONG") else 60)

# Everything JSON can spell, lone surrogates and numbers that Python reads beyond the standard too.
texts = st.text(st.characters(exclude_categories=()), max_size=30)
numbers = st.one_of(
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.sampled_from([10**400, -1, 0, float("nan"), float("inf"), float("-inf"), 1e308]),
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)
tokens = st.one_of(
    st.just("good.token"),
    st.just(CANARY),
    texts,
    st.just("a\nb: c"),
    st.just("t\u00f6ken"),
    values,
)
times = st.one_of(
    st.sampled_from(
        ["2026-03-01T13:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "soon"]
    ),
    values,
)
answers_in_shape = st.fixed_dictionaries(
    {},
    optional={
        "access_token": tokens,
        "refresh_token": tokens,
        "token": tokens,
        "accessJwt": tokens,
        "refreshJwt": tokens,
        "token_type": st.one_of(st.just("bearer"), st.just(CANARY), values),
        "expires_in": st.one_of(numbers, texts, st.just("9" * 11), values),
        "expires_at": times,
        "scope": st.one_of(texts, st.just("a\0b"), values),
        "permissions": st.one_of(
            st.dictionaries(st.one_of(st.just("issues"), texts), st.just("read")), values
        ),
        "did": st.one_of(st.just("did:plc:x"), values),
        "handle": st.one_of(st.just("ann.test"), texts, values),
        "active": values,
        "error": st.one_of(st.just("invalid_grant"), st.just(CANARY), values),
        "total_count": values,
        "repositories": st.one_of(
            st.just([{"full_name": "octo/hello"}]),
            st.lists(st.fixed_dictionaries({"full_name": values}), max_size=2),
            values,
        ),
    },
)
bodies = st.one_of(
    answers_in_shape.map(lambda content: json.dumps(content).encode()),
    values.map(lambda content: json.dumps(content).encode()),
    st.binary(max_size=60),
    st.sampled_from([name.encode() for name in LARGE]),
)
dates = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Mon", "", "Xxx"]),
    st.integers(-1, 99),
    st.sampled_from(["Jan", "Feb", "Dec", "Nix"]),
    st.integers(-1, 10**20),
    st.integers(-1, 10**20),
    st.integers(0, 99),
    st.integers(0, 99),
    st.one_of(st.just("GMT"), st.integers(-(10**20), 10**20).map("{:+d}".format)),
)
header_texts = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=30), dates, st.integers().map(str)
)
headers = st.fixed_dictionaries(
    {},
    optional={
        "retry-after": header_texts,
        "ratelimit-reset": header_texts,
        "x-ratelimit-reset": header_texts,
        "x-ratelimit-remaining": st.sampled_from(["0", "1", "\xff"]),
        "content-type": st.one_of(header_texts, st.just(f"text/{CANARY}")),
    },
)
statuses = st.sampled_from([200, 201, 204, 302, 400, 401, 403, 404, 408, 422, 429, 500, 599])


def spelled(**content: Any) -> bytes:
    """A JSON object's bytes."""
    return json.dumps(content).encode()


def written_out(body: bytes) -> bytes:
    """The body, or the large one that it stands for."""
    name = body.decode("latin-1")
    return LARGE[name].encode() if name in LARGE else body
