"""Who makes the present call: the identity every use case reads and no use case builds."""

from __future__ import annotations

from contextvars import ContextVar, Token
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

#: The tenant of a service token that may read across tenants (internal watch streams only).
ALL_TENANTS = "*"


class CallerKind(StrEnum):
    """A person or program with a caller JWT, another Cogni service, or one attempt of a run."""

    USER = "user"
    SERVICE = "service"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class RunClaims:
    """What a run token proves: which attempt acts, under which grant, until when (aware UTC).

    `owner` is the subject who made the grant, on whose behalf the run acts; "" when not told.
    """

    run_id: str
    epoch: int
    tenant_id: str
    grant_id: str
    connection_ids: tuple[str, ...]
    account_id: str
    expire_time: datetime
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified identity.

    `service` is set for SERVICE callers, `run` for RUN callers. `on_behalf_of` is the subject for
    whom a service acts. `tenant_id` is "*" only where the RPC's access entry says cross_tenant.
    """

    kind: CallerKind
    subject: str
    tenant_id: str
    scopes: frozenset[str] = frozenset()
    service: str | None = None
    on_behalf_of: str | None = None
    run: RunClaims | None = None

    @property
    def owner(self) -> str:
        """The subject who owns what this call creates: the person behind a service, if any."""
        return self.on_behalf_of or self.subject


_caller: ContextVar[Caller] = ContextVar("cogni_caller")


def current_caller() -> Caller:
    """The caller of the RPC being served; a RuntimeError outside of one is a programming error."""
    try:
        return _caller.get()
    except LookupError:
        raise RuntimeError("there is no caller here: this code runs outside an RPC") from None


class acting_as:  # noqa: N801  # used like the function it stands for: `with acting_as(caller):`
    """Makes `caller` the current caller inside the block."""

    # A class: contextlib's generators cost ten times as much, and every call passes here.
    __slots__ = ("_token", "caller")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def __enter__(self) -> Caller:
        self._token: Token[Caller] = _caller.set(self.caller)
        return self.caller

    def __exit__(self, *_: object) -> None:
        _caller.reset(self._token)
