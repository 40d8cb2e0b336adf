"""Opens provider calls within a grant's budget and a run's own bound, whoever else spends."""

from collections.abc import Sequence
from dataclasses import dataclass

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
# What was committed, and what the newest charge of the tool was. Executions that the Ledger has not
# charged yet count as if at that price.
_COMMITTED_WITH_TOOL = """
SELECT spent + unknown * coalesce(price, 0) AS spent, price FROM (
    SELECT coalesce(sum(figure) FILTER (WHERE asset = $2), 0) AS spent,
        count(*) FILTER (WHERE is_tool AND figure IS NULL) AS unknown,
        (array_agg(figure ORDER BY occur_time DESC)
            FILTER (WHERE is_tool AND asset = $2))[1] AS price
    FROM (SELECT units.occur_time, coalesce(tool = $3, false) AS is_tool,
              CASE WHEN units.state = 'SETTLED' THEN coalesce(cost_value, charge_value)
                   ELSE (estimate -> 'cost' ->> 'value')::numeric END AS figure,
              CASE WHEN units.state = 'SETTLED' THEN coalesce(cost_asset, charge_asset)
                   ELSE estimate -> 'cost' ->> 'asset' END AS asset
          FROM usage_units AS units LEFT JOIN invocations USING (invocation_id)
          WHERE units.{scope} = $1 AND NOT corrected) AS used
) AS sums
"""
_WITH_TOOL_UNDER_GRANT = _COMMITTED_WITH_TOOL.format(scope="grant_id")
_WITH_TOOL_BY_RUN = _COMMITTED_WITH_TOOL.format(scope="run_id")
_COMMITTED_UNDER_GRANT = _COMMITTED.format(scope="grant_id")
_COMMITTED_BY_RUN = _COMMITTED.format(scope="run_id")


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

    By the newest charge of the tool within the limit's scope, since the Ledger alone knows its
    price: None too while there is no charge. Several at once may each find that they fit.
    """
    bounds: Sequence[tuple[Amount | None, str, str]] = (
        (limits.grant_budget, _WITH_TOOL_UNDER_GRANT, grant_id),
        (limits.run_max_cost, _WITH_TOOL_BY_RUN, run_id),
    )
    for limit, committed, scope in bounds:
        if limit is None:
            continue
        row = await tx.fetchrow(committed, scope, limit.asset, tool)
        if row["price"] and row["spent"] + row["price"] > limit.value:
            return Amount(limit.asset, row["price"]), limit
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
