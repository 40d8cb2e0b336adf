"""RPCs of holds."""

from __future__ import annotations

from cogni.ledger.v1 import hold_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.convert import entries as entry_messages
from services.ledger.convert import holds as hold_messages
from services.ledger.holds import Hold
from services.ledger.server.parts import Context, Parts
from services.runtime.caller import current_caller


class HoldRpcs:
    """PlaceHold, TopUpHold, SettleHold, ReleaseHold."""

    _parts: Parts

    async def PlaceHold(
        self, request: pb.PlaceHoldRequest, context: Context
    ) -> pb.PlaceHoldResponse:
        wanted = hold_messages.placement(request)
        hold = await self._parts.holding.place(current_caller(), wanted)
        return pb.PlaceHoldResponse(hold=await self._message(hold))

    async def TopUpHold(
        self, request: pb.TopUpHoldRequest, context: Context
    ) -> pb.TopUpHoldResponse:
        hold = await self._parts.holding.top_up(current_caller(), hold_messages.top_up(request))
        return pb.TopUpHoldResponse(hold=await self._message(hold))

    async def SettleHold(
        self, request: pb.SettleHoldRequest, context: Context
    ) -> pb.SettleHoldResponse:
        wanted = hold_messages.settlement(request)
        settled = await self._parts.holding.settle(current_caller(), wanted)
        assert settled.entry is not None
        return pb.SettleHoldResponse(
            hold=await self._message(settled.hold), entry=entry_messages.entry(settled.entry)
        )

    async def ReleaseHold(
        self, request: pb.ReleaseHoldRequest, context: Context
    ) -> pb.ReleaseHoldResponse:
        hold = await self._parts.holding.release(current_caller(), hold_messages.release(request))
        return pb.ReleaseHoldResponse(hold=await self._message(hold))

    async def _message(self, hold: Hold) -> hold_pb2.Hold:
        account = await self._parts.directory.need(hold.tenant_id, hold.account_id)
        return hold_messages.hold(hold, account.asset)
