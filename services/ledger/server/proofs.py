"""RPCs that prove what the log says."""

from __future__ import annotations

from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.convert import proofs as proof_messages
from services.ledger.server.parts import Context, Parts
from services.ledger.units import Key
from services.runtime.caller import current_caller


class ProofRpcs:
    """GetReceipt, GetTreeHead, GetInclusionProof, GetConsistencyProof."""

    _parts: Parts

    async def GetReceipt(
        self, request: pb.GetReceiptRequest, context: Context
    ) -> pb.GetReceiptResponse:
        key = Key(current_caller().tenant_id, request.source_system, request.source_reference)
        receipt = await self._parts.proving.receipt(key)
        return pb.GetReceiptResponse(receipt=proof_messages.receipt(receipt))

    async def GetTreeHead(
        self, request: pb.GetTreeHeadRequest, context: Context
    ) -> pb.GetTreeHeadResponse:
        head = await self._parts.proving.head(current_caller().tenant_id)
        return pb.GetTreeHeadResponse(tree_head=proof_messages.tree_head(head))

    async def GetInclusionProof(
        self, request: pb.GetInclusionProofRequest, context: Context
    ) -> pb.GetInclusionProofResponse:
        proof = await self._parts.proving.inclusion(
            current_caller().tenant_id, request.sequence, request.tree_size
        )
        return pb.GetInclusionProofResponse(inclusion_proof=proof_messages.inclusion(proof))

    async def GetConsistencyProof(
        self, request: pb.GetConsistencyProofRequest, context: Context
    ) -> pb.GetConsistencyProofResponse:
        proof = await self._parts.proving.consistency(
            current_caller().tenant_id, request.first_tree_size, request.second_tree_size
        )
        return pb.GetConsistencyProofResponse(consistency_proof=proof_messages.consistency(proof))
