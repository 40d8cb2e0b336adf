"""RPCs of price cards."""

from __future__ import annotations

from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.convert import price_cards as card_messages
from services.ledger.price_list import prices_of
from services.ledger.server.parts import Context, Parts, time_and_id
from services.runtime.caller import current_caller
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


class PriceCardRpcs:
    """CreatePriceCard, GetPriceCard, ListPriceCards."""

    _parts: Parts

    async def CreatePriceCard(
        self, request: pb.CreatePriceCardRequest, context: Context
    ) -> pb.CreatePriceCardResponse:
        wanted = card_messages.new_card(request)
        card = await self._parts.price_list.create(current_caller(), wanted)
        return pb.CreatePriceCardResponse(
            price_card=card_messages.card_message(card, prices_of(card))
        )

    async def GetPriceCard(
        self, request: pb.GetPriceCardRequest, context: Context
    ) -> pb.GetPriceCardResponse:
        card = await self._parts.price_list.read(current_caller().tenant_id, request.price_card_id)
        return pb.GetPriceCardResponse(price_card=card_messages.card_message(card, prices_of(card)))

    async def ListPriceCards(
        self, request: pb.ListPriceCardsRequest, context: Context
    ) -> pb.ListPriceCardsResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["price_cards", tenant_id, request.asset]
        before = time_and_id(decode_page_token(request.page_token, bound_to=bound_to))
        limit = page_limit(request.page_size)
        found = await self._parts.price_list.list_page(
            tenant_id, asset=request.asset, before=before, limit=limit + 1
        )
        response = pb.ListPriceCardsResponse(
            price_cards=[card_messages.card_message(each, {}) for each in found[:limit]]
        )
        if len(found) > limit:
            last = found[limit - 1]
            key = [last.create_time.isoformat(), last.price_card_id]
            response.next_page_token = encode_page_token(key, bound_to=bound_to)
        return response
