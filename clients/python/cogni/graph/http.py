"""The tool `http_request`: any HTTP API, with a leased key, at the origins the key may go to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from langchain_core.tools import BaseTool, StructuredTool, ToolException

from cogni.egress_rules import origin_of
from cogni.graph.blocking import blocking
from cogni.graph.egress import Answer, Egress, EgressError, EgressLimits
from cogni.graph.invocation import Credential, credential, invocation_id
from cogni.graph.policy import Effect, ToolPolicy, with_policy

#: RFC 9110 §9.2.1: they ask and change nothing.
SAFE_METHODS = frozenset({"GET", "HEAD"})
METHODS = SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
BODY_BYTES_MAX = 1024 * 1024
ANSWER_BYTES_MAX = 1024 * 1024
TIMEOUT_SECONDS = 30.0
HEADERS_MAX = 20
HEADER_LENGTH_MAX = 4096

# RFC 9110 §5.6.2: a token; and what a header can carry without ending it.
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_VALUE = re.compile(r"[\x20-\x7e]*")
# What decides where a request goes, how it is framed, or who it comes from is not the model's.
_OURS = frozenset(
    {"accept-encoding", "authorization", "connection", "content-length", "cookie", "expect", "host"}
    | {"keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "user-agent", "forwarded", "x-forwarded-for"}
    | {"x-forwarded-host", "x-forwarded-proto", "x-http-method-override"}
)
_TOLD = ("content-type", "etag", "last-modified", "link", "location", "retry-after")


def http_request_tool(
    name: str = "http_request",
    *,
    methods: Sequence[str] = ("GET", "HEAD"),
    idempotency_header: str | None = None,
    connection: str | tuple[str, ...] = "api_key",
    description: str | None = None,
    answer_bytes_max: int = ANSWER_BYTES_MAX,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> BaseTool:
    """A tool for HTTP APIs that does these methods and no others.

    One that only reads has no effect and may be repeated. Any other acts in the world, and after a
    crash a person is asked before it is repeated, unless the API knows a request again by a header:
    name it ("Idempotency-Key") and each request carries its invocation's id there. The grant can
    bind the arguments further, for example `url` to a glob. Raises ValueError for an unknown method
    or a header that is none.
    """
    allowed = frozenset(method.upper() for method in methods)
    if not allowed or not allowed <= METHODS:
        raise ValueError(f"methods are some of {', '.join(sorted(METHODS))}")
    if idempotency_header is not None and _NAME.fullmatch(idempotency_header) is None:
        raise ValueError("idempotency_header is no header name")
    limits = EgressLimits(total_seconds=timeout_seconds, answer_bytes_max=answer_bytes_max)

    async def request(
        url: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        body: str | None = None,
    ) -> dict[str, Any]:
        if method not in allowed:
            raise ToolException(f"{method} is not allowed; {', '.join(sorted(allowed))} are.")
        leased = credential()
        _check_origin(url, leased)
        try:
            content = (body or "").encode()
        except UnicodeEncodeError:
            raise ToolException("the body holds half characters, which cannot be sent") from None
        if len(content) > BODY_BYTES_MAX:
            raise ToolException(f"the body is larger than {BODY_BYTES_MAX} bytes")
        sent = _headers(headers or {}, leased, idempotency_header)
        if idempotency_header is not None:
            sent[idempotency_header] = invocation_id()
        target = _with_key(url, sent, leased)
        async with Egress(limits) as egress:
            try:
                answer = await egress.exchange(method, target, sent, content)
            except EgressError as error:
                if error.maybe_done and method not in SAFE_METHODS:
                    # Nobody knows what became of it: that is no answer to give to a model.
                    raise
                raise ToolException(str(error)) from None
        return _told(answer)

    effects = Effect.NONE if allowed <= SAFE_METHODS else Effect.OUTWARD
    declared = StructuredTool.from_function(
        func=blocking(request),
        coroutine=request,
        name=name,
        description=description
        or f"Call an HTTP API with the team's key ({', '.join(sorted(allowed))}). Redirects are "
        "not followed: they are answers.",
        handle_tool_error=True,
    )
    return with_policy(
        declared,
        ToolPolicy(
            effects,
            idempotency_header is not None,
            connection=connection,
            # The key is the team's; whose words the API hands on, nobody here knows.
            untrusted=True,
        ),
    )


def _check_origin(url: str, leased: Credential) -> None:
    """Raise ToolException unless the credential may be sent there."""
    try:
        origin = origin_of(url)
    except ValueError as error:
        raise ToolException(f"the URL {error}") from None
    if leased.kind == "api_key":
        allowed = leased["allowed_origins"].split()
    else:
        allowed = [leased["base_url"]]
    if origin not in [origin_of(each) for each in allowed]:
        named = ", ".join(allowed)
        raise ToolException(f"the connection's key may not go there, only to {named}")
    if urlsplit(url).fragment:
        raise ToolException("the URL must not contain a fragment")


def _headers(
    wanted: Mapping[str, str], leased: Credential, idempotency_header: str | None
) -> dict[str, str]:
    if len(wanted) > HEADERS_MAX:
        raise ToolException(f"at most {HEADERS_MAX} headers can be given")
    ours = _OURS | {(idempotency_header or "").lower(), _key_header(leased).lower()}
    for name, value in wanted.items():
        if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise ToolException(f"{name!r} is no header that can be sent")
        if name.lower() in ours:
            raise ToolException(f"the header {name!r} is not for you to set")
        if len(value) > HEADER_LENGTH_MAX:
            raise ToolException(f"the header {name!r} is too long")
    return dict(wanted)


def _key_header(leased: Credential) -> str:
    if leased.kind != "api_key":
        return "authorization"
    return leased.get("header_name")


def _with_key(url: str, headers: dict[str, str], leased: Credential) -> str:
    """Put the key where it belongs; the URL to call."""
    if leased.kind != "api_key":
        headers["authorization"] = f"Bearer {leased['access_token']}"
        return url
    if header := _key_header(leased):
        headers[header] = f"{leased.get('header_prefix')}{leased['key']}"
        return url
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}{quote(leased['query_name'], safe='')}={quote(leased['key'], safe='')}"


def _told(answer: Answer) -> dict[str, Any]:
    return {
        "status": answer.status,
        "headers": {name: answer.headers[name] for name in _TOLD if name in answer.headers},
        "body": answer.body.decode(errors="replace"),
    }


http_request = http_request_tool()
