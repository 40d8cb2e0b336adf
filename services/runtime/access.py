"""Who may call which RPC: the declarative table, and the check made before every handler."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.runtime.caller import ALL_TENANTS, Caller, CallerKind
from services.runtime.errors import ServiceError, denied


@dataclass(frozen=True, slots=True)
class Access:
    """One RPC's entry.

    `scope` is what a USER needs (None: any verified user). `users=False` makes the RPC internal.
    `services` are the services that may call it, `runs` admits run tokens, and `cross_tenant`
    lets those services come with tenant "*".
    """

    scope: str | None = None
    users: bool = True
    services: frozenset[str] = frozenset()
    runs: bool = False
    cross_tenant: bool = False

    def __post_init__(self) -> None:
        if self.cross_tenant and not self.services:
            raise ValueError("cross_tenant is for services: name the ones that may call")
        if not (self.users or self.services or self.runs):
            raise ValueError("an entry that admits nobody makes its RPC dead")


#: Keyed by full method name, for example "/cogni.ledger.v1.LedgerService/Transfer".
AccessTable = Mapping[str, Access]


def check_access(caller: Caller, access: Access) -> None:
    """Raises PERMISSION_DENIED (CALLER_NOT_ALLOWED or SCOPE_MISSING) unless `caller` may call."""
    match caller.kind:
        case CallerKind.USER:
            if not access.users:
                raise _not_allowed("This RPC is internal to Cogni; it takes no caller tokens.")
            if access.scope is not None and access.scope not in caller.scopes:
                raise denied(
                    "SCOPE_MISSING",
                    f"The token lacks the scope {access.scope!r}.",
                    metadata={"scope": access.scope},
                )
        case CallerKind.SERVICE:
            if caller.service not in access.services:
                raise _not_allowed("This service may not call this RPC.")
        case CallerKind.RUN:
            if not access.runs:
                raise _not_allowed("This RPC takes no run tokens.")
    if caller.tenant_id == ALL_TENANTS and not (
        caller.kind is CallerKind.SERVICE and access.cross_tenant
    ):
        raise _not_allowed("This RPC works for one tenant; the token names none.")


def _not_allowed(message: str) -> ServiceError:
    return denied("CALLER_NOT_ALLOWED", message)


def missing_entries(methods: Iterable[str], table: AccessTable) -> list[str]:
    """The registered RPCs without an entry: a server that has any must refuse to start."""
    return sorted(set(methods) - set(table))


def stale_entries(methods: Iterable[str], table: AccessTable) -> list[str]:
    """Entries that name no registered RPC, usually a misspelt or renamed method."""
    return sorted(set(table) - set(methods))
