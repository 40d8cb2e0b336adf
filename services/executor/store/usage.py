"""Usage of provider calls: pending before a call is sent, settled once when it is known."""

import json
from dataclasses import asdict, dataclass
from decimal import Decimal

from services.executor.amounts import Amount
from services.executor.store.events import Connection
from services.executor.store.journal import Write
from services.executor.store.rows import json_of
from services.runtime.ids import derive_id

_OPEN = """
INSERT INTO usage_units (call_id, tenant_id, run_id, attempt, grant_id, account_id, kind, node,
    model, provider, state, estimate, rework, occur_time)
VALUES ($1, $2, $3, $4, $5, $6, 'LLM_CALL', $7, $8, $9, 'PENDING', $10, $11, cogni_now())
ON CONFLICT (call_id) DO NOTHING
"""
# By call id and state and not by the lease: what was used is a fact, whoever reports it. One that
# comes after the call was settled from its estimate becomes a unit of its own that corrects it,
# since the Ledger may have the estimate already; the run is then closed once more. The row is
# locked first: whoever settles it at the same time is seen.
_SETTLE = """
WITH known AS (
    SELECT call_id, state, estimated AND NOT corrected AS correctable FROM usage_units
    WHERE call_id = $1 FOR UPDATE
), settled AS (
    UPDATE usage_units SET state = 'SETTLED', actual = $2, cost_asset = $3, cost_value = $4,
        estimated = $5, provider_response_id = $6, settle_time = cogni_now()
    FROM known WHERE usage_units.call_id = known.call_id AND known.state = 'PENDING'
), corrected AS (
    UPDATE usage_units SET corrected = true
    FROM known WHERE usage_units.call_id = known.call_id AND known.state = 'SETTLED'
        AND known.correctable AND NOT $5
    RETURNING usage_units.*
), correction AS (
    INSERT INTO usage_units (call_id, tenant_id, run_id, attempt, grant_id, account_id, kind, node,
        model, provider, provider_response_id, invocation_id, state, estimate, actual, cost_asset,
        cost_value, rework, occur_time, settle_time, corrects_call_id)
    SELECT $7, tenant_id, run_id, attempt, grant_id, account_id, kind, node, model, provider, $6,
        invocation_id, 'SETTLED', estimate, $2, $3, $4, rework, occur_time, cogni_now(), call_id
    FROM corrected
    RETURNING run_id
)
UPDATE runs SET close_time = NULL FROM correction WHERE runs.run_id = correction.run_id
"""
# Tools have no figure: the Ledger alone knows what they cost, and takes it from what is unheld.
_OUTSTANDING = """
SELECT coalesce(sum(figure) FILTER (WHERE charge IS NOT NULL), 0) AS recorded,
    coalesce(sum(charge), 0) AS charged,
    json_object_agg(call_id, figure::text) FILTER (WHERE NOT pending AND NOT recorded) AS settled,
    json_object_agg(call_id, figure::text) FILTER (WHERE pending) AS pending
FROM (SELECT call_id, record_time IS NOT NULL AS recorded, state = 'PENDING' AS pending,
          CASE WHEN charge_asset = cost_asset THEN charge_value END AS charge,
          CASE WHEN state = 'SETTLED' THEN cost_value
               ELSE (estimate -> 'cost' ->> 'value')::numeric END AS figure
      FROM usage_units WHERE run_id = $1) AS units
WHERE figure IS NOT NULL
"""
_STALE = """
SELECT usage_units.call_id, usage_units.estimate FROM usage_units
LEFT JOIN run_leases USING (run_id)
LEFT JOIN runs USING (run_id)
WHERE usage_units.state = 'PENDING'
    AND usage_units.occur_time < cogni_now() - make_interval(secs => $1)
    AND NOT coalesce(run_leases.holder IS NOT NULL AND run_leases.expire_time > cogni_now()
        AND runs.attempt = usage_units.attempt, false)
ORDER BY usage_units.occur_time LIMIT $2 FOR UPDATE OF usage_units SKIP LOCKED
"""


@dataclass(frozen=True)
class Tokens:
    """Tokens of a call by kind, as they are stored in `estimate` and `actual`."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def stored(self) -> str:
        """The JSON that is stored."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class PendingCall:
    """A provider call that is about to be sent, with the most it can use and cost."""

    call_id: str
    tenant_id: str
    run_id: str
    attempt: int
    grant_id: str
    account_id: str
    node: str
    model: str
    provider: str
    upper_bound: Tokens
    upper_cost: Amount | None
    rework: bool


def open_call(call: PendingCall) -> Write:
    """Write the call as PENDING; needs the lease."""
    estimate: dict[str, object] = dict(asdict(call.upper_bound))
    if call.upper_cost is not None:
        estimate["cost"] = {"asset": call.upper_cost.asset, "value": call.upper_cost.plain}
    return Write(
        _OPEN,
        (
            call.call_id,
            call.tenant_id,
            call.run_id,
            call.attempt,
            call.grant_id,
            call.account_id,
            call.node,
            call.model,
            call.provider,
            json.dumps(estimate),
            call.rework,
        ),
    )


def settle_call(
    call_id: str,
    used: Tokens,
    cost: Amount | None,
    *,
    estimated: bool,
    provider_response_id: str,
) -> Write:
    """Write what the call used; needs no lease.

    A call that is settled stays as it is, and one that was settled from its estimate is corrected,
    once.
    """
    return Write(_SETTLE, _settling(call_id, used.stored, cost, estimated, provider_response_id))


def _settling(
    call_id: str, used: str, cost: Amount | None, estimated: bool, provider_response_id: str
) -> tuple[object, ...]:
    asset, value = (cost.asset, cost.value) if cost else (None, None)
    correction_id = derive_id("correction", call_id)
    return (call_id, used, asset, value, estimated, provider_response_id, correction_id)


@dataclass(frozen=True)
class Outstanding:
    """A run's calls by call id, as far as the Ledger is not known to have charged them.

    The most that each pending one can cost, and what each settled one did cost; `recorded` is
    what those come to whose charges are known, and `charged` what these come to. Calls of unknown
    price are in none of them, and no tools.
    """

    pending: dict[str, Decimal]
    settled: dict[str, Decimal]
    recorded: Decimal
    charged: Decimal


async def outstanding(tx: Connection, run_id: str) -> Outstanding:
    """Return what the run's calls of all attempts come to."""
    row = await tx.fetchrow(_OUTSTANDING, run_id)
    assert row is not None, "an aggregate has a row"
    pending, settled = _figures(row["pending"]), _figures(row["settled"])
    return Outstanding(pending, settled, row["recorded"], row["charged"])


def _figures(stored: str | None) -> dict[str, Decimal]:
    figures: dict[str, str] = json_of(stored) or {}
    return {call_id: Decimal(figure) for call_id, figure in figures.items()}


async def settle_stale(tx: Connection, older_than_seconds: float, limit: int) -> int:
    """Settle from their estimates calls whose attempt is gone; returns how many.

    Needs a jobs transaction. Calls are left alone while the attempt that made them holds its
    lease, and until they are older than a drain may take.
    """
    rows = await tx.fetch(_STALE, older_than_seconds, limit)
    for row in rows:
        estimate = json.loads(row["estimate"])
        cost = estimate.pop("cost", None)
        most = Amount(cost["asset"], Decimal(cost["value"])) if cost else None
        used = _settling(str(row["call_id"]), json.dumps(estimate), most, True, "")
        await tx.execute(_SETTLE, *used)
    return len(rows)
