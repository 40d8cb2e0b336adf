"""Creates grants, and ends them so that nothing happens under them afterwards."""

import logging
from typing import Protocol

from services.executor.audit import AuditKind, AuditRecord
from services.executor.grants import Grant, GrantRequest
from services.executor.permissions import permissions_to_json
from services.executor.runs import Cancellation, CancelReason
from services.executor.store import audit, events, grants, owed
from services.executor.use_cases.backing import Backing, current_traceparent, trace_id_of
from services.executor.use_cases.check_resources import Resources, check_resources
from services.executor.use_cases.pin_tools import ToolLists, pin_tools
from services.executor.use_cases.stop_run import stop_runs_under
from services.runtime.caller import Caller
from services.runtime.errors import PeerError, not_found, reused_request_id, unavailable
from services.runtime.ids import new_id

_log = logging.getLogger(__name__)


class Grantable(Resources, ToolLists, Protocol):
    """What other services know of everything a grant names."""


class Leases(Protocol):
    """Who gives credentials to runs. Raises PeerError."""

    async def revoke_leases(self, tenant_id: str, grant_id: str) -> None:
        """End every lease under the grant, for good."""


async def create_grant(
    on: Backing, resources: Grantable, caller: Caller, request_id: str, request: GrantRequest
) -> Grant:
    """Create a grant owned by the caller, or return the one of an earlier same call.

    Raises RESOURCE_NOT_OWNED when it names what the caller has no say over, TOOL_CHANGED when an
    MCP server does not have a tool that it names, or not as it was reviewed.
    """
    grant_id = new_id()
    content_hash = request.content_hash(caller.owner, permissions_to_json(request.tools))
    async with on.database.raw_tenant(caller.tenant_id) as tx:
        known_before = await grants.by_request(tx, caller.tenant_id, request_id)
    pinned = request.tools
    if known_before is None:
        # Outside the transaction, which must not wait for another service; and not for repeats,
        # which succeed whatever has become of the resources.
        await check_resources(resources, caller, request)
        pinned = await pin_tools(resources, caller, request)
    async with on.database.raw_tenant(caller.tenant_id) as tx:
        known = await grants.create(
            tx, grant_id, caller.tenant_id, request_id, caller.owner, request, pinned
        )
        if known.content_hash != content_hash:
            raise reused_request_id(request_id)
        if known.grant.grant_id == grant_id:
            await _record(tx, caller, grant_id, "grant.create")
    return known.grant


async def revoke_grant(
    on: Backing, leases: Leases, caller: Caller, grant_id: str, comment: str
) -> Grant:
    """End the grant, stop its runs, and end its leases; all has happened when this returns.

    The first transaction waits for the decisions under way, so none that allows something
    commits after it. What a crash leaves undone is made good by the reaper and the relay. Raises
    UNAVAILABLE when Connections has not confirmed: the grant is revoked all the same, and a
    repeat confirms.
    """
    async with on.database.raw_tenant(caller.tenant_id) as tx:
        revoked = await grants.revoke(tx, grant_id, comment, caller.owner)
        if revoked is not None:
            await owed.owe(tx, owed.REVOKE_LEASES, caller.tenant_id, {"grant_id": grant_id})
            await _record(tx, caller, grant_id, "grant.revoke")
    on.kick()
    grant = revoked or await get_grant(on, caller.tenant_id, grant_id)
    reason = CancelReason.GRANT_REVOKED if grant.revoke_time else CancelReason.GRANT_EXPIRED
    cancellation = Cancellation(reason, comment, caller.owner)
    await stop_runs_under(on, caller.tenant_id, grant_id, cancellation)
    # Beside the outbox, and not instead of it: until Connections knows, an invocation that was
    # allowed a moment ago could still lease a credential.
    try:
        await leases.revoke_leases(caller.tenant_id, grant_id)
    except PeerError as error:
        _log.warning("the leases of grant %s are not revoked yet: %s", grant_id, error)
        raise unavailable(
            "The grant is revoked and its runs are being stopped, but Connections has not "
            "confirmed that no credential is leased any more; call again to be sure."
        ) from error
    return grant


async def get_grant(on: Backing, tenant_id: str, grant_id: str) -> Grant:
    """Return the grant. Raises ServiceError NOT_FOUND."""
    async with on.database.raw_tenant(tenant_id) as tx:
        grant = await grants.get(tx, grant_id)
    if grant is None:
        raise not_found("grant", grant_id)
    return grant


async def _record(tx: events.Connection, caller: Caller, grant_id: str, action: str) -> None:
    record = AuditRecord(
        audit_record_id=new_id(),
        kind=AuditKind.EVENT,
        action=action,
        actor=caller.subject,
        grant_id=grant_id,
        details={"owner": caller.owner},
        trace_id=trace_id_of(current_traceparent()),
    )
    await audit.write(tx, caller.tenant_id, record)
