"""Translates heads, proofs and receipts."""

from __future__ import annotations

from cogni.ledger.v1 import proof_pb2
from services.ledger.convert.entries import charge
from services.ledger.convert.scalars import timestamp
from services.ledger.proving import Consistency, Head, Inclusion, Receipt


def tree_head(head: Head) -> proof_pb2.TreeHead:
    """Return the message of a signed head."""
    of = head.checkpoint
    return proof_pb2.TreeHead(
        origin=of.origin,
        tree_size=of.tree_size,
        root_hash=of.root_hash,
        note=of.note,
        verifier_key=of.verifier_key,
        sign_time=timestamp(head.sign_time),
    )


def inclusion(proof: Inclusion) -> proof_pb2.InclusionProof:
    """Return the message of an inclusion proof."""
    return proof_pb2.InclusionProof(
        leaf_index=proof.leaf_index,
        tree_size=proof.tree_size,
        leaf_hash=proof.leaf_hash,
        hashes=proof.hashes,
    )


def consistency(proof: Consistency) -> proof_pb2.ConsistencyProof:
    """Return the message of a consistency proof."""
    return proof_pb2.ConsistencyProof(
        first_tree_size=proof.first, second_tree_size=proof.second, hashes=proof.hashes
    )


def receipt(receipt: Receipt) -> proof_pb2.Receipt:
    """Return the message of a receipt."""
    return proof_pb2.Receipt(
        charge=charge(receipt.charge),
        entries=[
            proof_pb2.ProvenEntry(
                sequence=entry.sequence, leaf=entry.leaf, inclusion_proof=inclusion(proof)
            )
            for entry, proof in receipt.entries
        ],
        tree_head=tree_head(receipt.head),
    )
