"""Tells the Ledger what was used, as the service that may, and asks whose an account is."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

import grpc.aio

from cogni.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc, usage_pb2
from services.executor.adapters.connections import ConnectionsClient
from services.executor.amounts import Amount
from services.executor.convert.usage import unit_to_proto
from services.executor.usage import Closing, SettledUnit
from services.runtime.channels import acting_for

SAFE_METHODS = (
    "/cogni.ledger.v1.LedgerService/RecordUsage",
    "/cogni.ledger.v1.LedgerService/CloseRun",
    "/cogni.ledger.v1.LedgerService/GetAccount",
)


class Recording(StrEnum):
    """What the Ledger answered about one unit."""

    RECORDED = "RECORDED"
    CONFLICT = "CONFLICT"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one unit, and what it was charged: None where nobody could price it."""

    recording: Recording
    charge: Amount | None = None


_RECORDINGS = {
    usage_pb2.USAGE_RESULT_CREATED: Recording.RECORDED,
    usage_pb2.USAGE_RESULT_EXISTS: Recording.RECORDED,
    usage_pb2.USAGE_RESULT_CONFLICT: Recording.CONFLICT,
}


class LedgerClient:
    """The Executor's view of the Ledger. Raises PeerError when it does not answer."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ledger = ledger_service_pb2_grpc.LedgerServiceStub(channel)

    async def record(self, tenant_id: str, units: Sequence[SettledUnit]) -> list[Answer]:
        """Record the units of one tenant; the answers are in their order."""
        request = ledger_service_pb2.RecordUsageRequest(units=[unit_to_proto(u) for u in units])
        with acting_for(tenant_id):
            response = await self._ledger.RecordUsage(request)
        return [_answer(each) for each in response.outcomes]

    async def close_run(self, closing: Closing) -> None:
        """Commit which units the run has."""
        request = ledger_service_pb2.CloseRunRequest(
            run_id=closing.run_id,
            unit_count=len(closing.call_ids),
            units_digest=closing.digest,
        )
        with acting_for(closing.tenant_id):
            await self._ledger.CloseRun(request)

    async def may_spend(self, tenant_id: str, subject: str, account_id: str) -> bool:
        """Whether the account belongs to the subject."""
        request = ledger_service_pb2.GetAccountRequest(account_id=account_id)
        with acting_for(tenant_id, subject):
            response = await self._ledger.GetAccount(request)
        return response.account.owner == subject


def _answer(outcome: usage_pb2.UsageOutcome) -> Answer:
    # A result this release does not know means that nothing may be taken for granted.
    recording = _RECORDINGS.get(outcome.result, Recording.REJECTED)
    charge = outcome.charge
    if (
        not outcome.HasField("charge")
        or charge.price_source == usage_pb2.PriceSource.PRICE_SOURCE_UNPRICED
    ):
        return Answer(recording)
    return Answer(recording, Amount(charge.amount.asset, Decimal(charge.amount.value)))


class GrantableResources:
    """What Connections and the Ledger know of the things a grant names."""

    def __init__(self, connections: ConnectionsClient, ledger: LedgerClient) -> None:
        self.may_grant = connections.may_grant
        self.mcp_tools = connections.mcp_tools
        self.may_spend = ledger.may_spend
