"""What a tool may know about the invocation it serves: its id and its leased credential."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NoReturn


class Credential:
    """A credential leased to one invocation. Use it, do not keep it.

    `kind` is the case of `cogni.connections.v1.Credential` ("bluesky_session",
    "api_key", "bearer", "mcp_server"); the fields are that message's:
    `credential()["access_jwt"]`. It prints no secret and cannot be pickled, so
    that it ends up neither in a log nor in a checkpoint.
    """

    __slots__ = ("_fields", "kind")

    def __init__(self, kind: str, fields: Mapping[str, str]) -> None:
        self.kind = kind
        self._fields = dict(fields)

    def __getitem__(self, name: str) -> str:
        return self._fields[name]

    def get(self, name: str, default: str = "") -> str:
        """The field, or `default` where the credential has none: empty fields are left out."""
        return self._fields.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        """The names of its fields."""
        return iter(self._fields)

    def __repr__(self) -> str:
        return f"Credential(kind={self.kind!r}, fields={sorted(self._fields)})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a leased credential is not to be stored")


class MissingCredentialError(LookupError):
    """Raised when a tool asks for a credential that it did not declare or was not leased.

    Declare it with `@tool(connection="bluesky")` and name a connection of that
    provider in the grant.
    """


@dataclass(frozen=True)
class Invocation:
    """One admitted use of a tool."""

    invocation_id: str
    credential: Credential | None = field(default=None, repr=False)
    #: What the guard has made ready for a tool of its own kind.
    prepared: object | None = field(default=None, repr=False)


_invocation: ContextVar[Invocation | None] = ContextVar("cogni_invocation", default=None)


def credential() -> Credential:
    """The credential leased to the running tool. Raises MissingCredentialError without one."""
    invocation = _invocation.get()
    if invocation is None or invocation.credential is None:
        raise MissingCredentialError(
            "no credential is leased to this code: see MissingCredentialError"
        )
    return invocation.credential


def invocation_id() -> str:
    """The running invocation's id: the same when it is retried after a crash.

    Hand it to the other side as an idempotency key. Raises LookupError outside a tool.
    """
    invocation = _invocation.get()
    if invocation is None:
        raise LookupError("invocation_id() is known only inside a tool that a runner invoked")
    return invocation.invocation_id


def prepared() -> object | None:
    """What the guard has made ready for the running tool; None outside one."""
    invocation = _invocation.get()
    return None if invocation is None else invocation.prepared


@contextmanager
def serving(invocation: Invocation) -> Iterator[None]:
    """Let the code inside see `invocation` as its own."""
    token = _invocation.set(invocation)
    try:
        yield
    finally:
        _invocation.reset(token)
