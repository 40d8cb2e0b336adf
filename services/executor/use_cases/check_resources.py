"""Refuses grants that name connections or accounts which their creator has no say over."""

import asyncio
from typing import Protocol

from services.executor.grants import GrantRequest
from services.runtime.caller import Caller
from services.runtime.errors import ErrorKind, PeerError, ServiceError, denied, not_found

# A grant may name a hundred connections; this many are looked up at a time.
_LOOK_UPS_AT_ONCE = 10


class Resources(Protocol):
    """What other services know of the things a grant names. Raises PeerError."""

    async def may_grant(self, tenant_id: str, subject: str, connection_id: str) -> bool:
        """Whether the subject owns the connection or has its owner's consent."""

    async def may_spend(self, tenant_id: str, subject: str, account_id: str) -> bool:
        """Whether the account belongs to the subject."""


async def check_resources(resources: Resources, caller: Caller, request: GrantRequest) -> None:
    """Raise RESOURCE_NOT_OWNED or NOT_FOUND unless the caller may grant all that is named."""
    gate = asyncio.Semaphore(_LOOK_UPS_AT_ONCE)

    async def check_connection(connection_id: str) -> None:
        async with gate:
            try:
                allowed = await resources.may_grant(caller.tenant_id, caller.owner, connection_id)
            except PeerError as error:
                raise _missing(error, "connection", connection_id) from error
        if not allowed:
            raise _not_owned("connection", connection_id)

    await asyncio.gather(*(check_connection(each) for each in request.connection_ids))
    if request.account_id is not None:
        await _check_account(resources, caller, request.account_id)


async def _check_account(resources: Resources, caller: Caller, account_id: str) -> None:
    try:
        allowed = await resources.may_spend(caller.tenant_id, caller.owner, account_id)
    except PeerError as error:
        raise _missing(error, "account", account_id) from error
    # Who administers the Ledger may spend from any of its accounts.
    if not allowed and "ledger:admin" not in caller.scopes:
        raise _not_owned("account", account_id)


def _missing(error: PeerError, resource: str, id: str) -> Exception:
    malformed = error.kind is ErrorKind.INVALID_ARGUMENT
    return not_found(resource, id) if malformed or error.kind is ErrorKind.NOT_FOUND else error


def _not_owned(resource: str, id: str) -> ServiceError:
    return denied(
        "RESOURCE_NOT_OWNED",
        f"You neither own the {resource} {id!r} nor were given it; ask its owner.",
        metadata={"resource": resource, "id": id},
    )
