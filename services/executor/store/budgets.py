"""Opens provider calls within a grant's budget and a run's own bound, whoever else spends."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from services.executor.amounts import Amount
from services.executor.store.events import Connection
from services.executor.store.journal import Write

# Calls under one grant are opened one after another: two that each fit must not both be sent
# when only one does. Calls under grants without a budget never come here.
_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('budget:' || $1::text, 0))"
_HELD = """
SELECT 1 FROM run_leases WHERE run_id = $1 AND epoch = $2 AND holder IS NOT NULL AND NOT sealed
FOR SHARE
"""
# A pending call counts with the most it can cost, a settled one with what it did cost; an estimate
# that was corrected counts no more. A tool counts with what it was charged, once it was: nobody
# here knows its price before.
_COMMITTED = """
SELECT coalesce(sum(CASE WHEN state = 'SETTLED' THEN coalesce(cost_value, charge_value)
                         ELSE (estimate -> 'cost' ->> 'value')::numeric END), 0)
FROM usage_units
WHERE {scope} = $1 AND call_id <> $2 AND NOT corrected
    AND $3 = CASE WHEN state = 'SETTLED' THEN coalesce(cost_asset, charge_asset)
                  ELSE estimate -> 'cost' ->> 'asset' END
"""
_COMMITTED_UNDER_GRANT = _COMMITTED.format(scope="grant_id")
_COMMITTED_BY_RUN = _COMMITTED.format(scope="run_id")
_PRICE = """
SELECT charge_value FROM usage_units
WHERE grant_id = $1 AND tool = $2 AND charge_asset = $3 ORDER BY occur_time DESC LIMIT 1
"""
_UNCHARGED = """
SELECT count(*) FROM usage_units WHERE {scope} = $1 AND tool = $2 AND charge_value IS NULL
"""
_UNCHARGED_UNDER_GRANT = _UNCHARGED.format(scope="grant_id")
_UNCHARGED_BY_RUN = _UNCHARGED.format(scope="run_id")
#: Where what is about to be opened is no call that could be among the committed ones.
_NO_CALL = UUID(int=0)


@dataclass(frozen=True)
class Limits:
    """The most that a grant's runs together, and one of them alone, may spend."""

    grant_budget: Amount | None
    run_max_cost: Amount | None

    @property
    def binding(self) -> bool:
        """Whether there is any limit."""
        return self.grant_budget is not None or self.run_max_cost is not None

    @property
    def assets(self) -> frozenset[str]:
        """What the limits are counted in."""
        return frozenset(each.asset for each in (self.grant_budget, self.run_max_cost) if each)


NO_LIMITS = Limits(None, None)


@dataclass(frozen=True)
class Opening:
    """A call to open: under which grant and lease, and the most it can cost."""

    call_id: str
    grant_id: str
    run_id: str
    epoch: int
    upper_cost: Amount


async def tool_passes(
    tx: Connection, grant_id: str, run_id: str, tool: str, limits: Limits
) -> tuple[Amount, Amount] | None:
    """Return what the tool costs and the limit that one more of it would pass, or None.

    By the tool's newest charge under the grant, since the Ledger alone knows its price: None too
    while there is no charge, and for a tool that is free, which is found out at no cost. Executions
    that are not charged yet count at that price. Several at once may each find that they fit.
    """
    bounds = (
        (limits.grant_budget, _COMMITTED_UNDER_GRANT, _UNCHARGED_UNDER_GRANT, grant_id),
        (limits.run_max_cost, _COMMITTED_BY_RUN, _UNCHARGED_BY_RUN, run_id),
    )
    for limit, committed, uncharged, scope in bounds:
        if limit is None:
            continue
        price = await tx.fetchval(_PRICE, grant_id, tool, limit.asset)
        if not price:
            continue
        spent = await tx.fetchval(committed, scope, _NO_CALL, limit.asset)
        more = 1 + await tx.fetchval(uncharged, scope, tool)
        if spent + more * price > limit.value:
            return Amount(limit.asset, price), limit
    return None


async def open_within(
    tx: Connection, opening: Opening, limits: Limits, open_call: Write
) -> Amount | None:
    """Write the pending call if it fits; return the limit that it would pass, or None.

    Needs a jobs transaction; repeating it is harmless. Raises LookupError when the lease is lost.
    """
    await tx.execute(_TURN, opening.grant_id)
    if await tx.fetchval(_HELD, opening.run_id, opening.epoch) is None:
        raise LookupError(opening.run_id)
    asset = opening.upper_cost.asset
    bounds: Sequence[tuple[Amount | None, str, str]] = (
        (limits.grant_budget, _COMMITTED_UNDER_GRANT, opening.grant_id),
        (limits.run_max_cost, _COMMITTED_BY_RUN, opening.run_id),
    )
    for limit, committed, scope in bounds:
        if limit is None:
            continue
        spent = await tx.fetchval(committed, scope, opening.call_id, asset)
        if spent + opening.upper_cost.value > limit.value:
            return limit
    await tx.execute(open_call.statement, *open_call.arguments)
    return None
