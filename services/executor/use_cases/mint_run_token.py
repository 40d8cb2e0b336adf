"""Mints the token that one attempt of a run acts with."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.executor.grants import Grant, refusal, refusal_to_act
from services.executor.store import grants, minting
from services.runtime.caller import Caller, RunClaims
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError

#: Signs the claims; the time is when the token is made.
Sign = Callable[[RunClaims, datetime], str]

# A stolen token dies this soon even when leases are longer.
_LIFETIME_MAX = timedelta(minutes=2)


@dataclass(frozen=True)
class RunToken:
    """A signed token and the end of its life."""

    token: str
    expire_time: datetime


async def mint_run_token(
    database: Database, sign: Sign, caller: Caller, run_id: str, epoch: int
) -> RunToken:
    """Return a token for the attempt that holds `epoch`. Raises LEASE_LOST when it does not.

    The token ends no later than the lease, and the lease remembers its end.
    """
    async with database.raw_tenant(caller.tenant_id) as tx:
        proof = await minting.prove(tx, caller.tenant_id, run_id, epoch, _LIFETIME_MAX)
        if proof is None or proof.expire_time <= proof.now:
            raise ServiceError(
                ErrorKind.ABORTED,
                "LEASE_LOST",
                f"The attempt with epoch {epoch} does not hold the lease of run {run_id!r}; "
                "stop it at once.",
                metadata={"run_id": run_id},
            )
        held = await grants.hold(tx, proof.grant_id)
        assert held is not None, "runs reference grants, which are never deleted"
        grant, now = held
        decision = refusal_to_act(grant, now)
        if not decision.allowed:
            raise refusal(decision, grant.grant_id, "")
    claims = _claims(grant, run_id, epoch, proof.expire_time)
    return RunToken(sign(claims, proof.now), proof.expire_time)


def _claims(grant: Grant, run_id: str, epoch: int, expire_time: datetime) -> RunClaims:
    return RunClaims(
        run_id=run_id,
        epoch=epoch,
        tenant_id=grant.tenant_id,
        grant_id=grant.grant_id,
        connection_ids=grant.connection_ids,
        account_id=grant.account_id or "",
        expire_time=expire_time,
        owner=grant.owner,
    )
