"""Waits for the Ledger's word on a run, and shows it."""

import asyncio
import time
from typing import Final

from google.protobuf.json_format import MessageToDict

from cogni.client import AsyncClient, NotFound, NotImplementedYet, NotPossibleNow
from cogni.client.ledger_verify import verify_receipt
from cogni.ledger.v1.ledger_service_pb2 import GetReceiptRequest, GetRunStatementRequest
from cogni.ledger.v1.statement_pb2 import RunStatement
from cogni.ledger.v1.usage_pb2 import Charge
from services.standalone.console import Screen
from services.standalone.errors import StandaloneError

SETTLE_SECONDS: Final = 60.0
POLL_SECONDS: Final = 0.1


async def statement(client: AsyncClient, run_id: str, *, units: int) -> RunStatement:
    """The run's statement once it has at least `units` units; usage arrives after the run ends.

    Raises StandaloneError when it does not arrive.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        try:
            answer = await client.ledger.GetRunStatement(GetRunStatementRequest(run_id=run_id))
        except NotFound:
            answer = None
        if answer is not None and answer.statement.unit_count >= units:
            return answer.statement
        await asyncio.sleep(POLL_SECONDS)
    raise StandaloneError(f"The Ledger had no statement of run {run_id} with {units} units.")


def show(screen: Screen, found: RunStatement) -> None:
    """Prints the charges and their sum."""
    for charge in found.charges:
        marks = "".join(
            f" ({word})"
            for word, on in (("rework", charge.unit.rework), ("estimated", charge.unit.estimated))
            if on
        )
        amount = f"{charge.amount.value} {charge.amount.asset}"
        screen.say(f"  charge {charge.unit.source_reference}  {_what(charge)}{marks}  {amount}")
    for total in found.totals:
        screen.say(f"  in all {total.charged.value} {total.charged.asset}")


async def receipt(client: AsyncClient, charge: Charge) -> str:
    """A sentence about the proof that a charge stands in the tenant's log.

    Raises VerificationError when the proof does not hold.
    """
    try:
        answer = await client.ledger.GetReceipt(
            GetReceiptRequest(
                source_system=charge.unit.source_system,
                source_reference=charge.unit.source_reference,
            )
        )
    except NotImplementedYet:
        return "This Ledger gives no receipts yet."
    except NotPossibleNow as error:
        return f"No receipt: {error.message}"
    # An auditor needs this much: the receipt, the key, and a file of plain Python.
    head = verify_receipt(MessageToDict(answer.receipt), key=answer.receipt.tree_head.verifier_key)
    return (
        f"Its receipt, verified offline: the charge is in the signed log of {head.tree_size} "
        f"entries with root {head.root_hash.hex()[:16]}…"
    )


def _what(charge: Charge) -> str:
    unit = charge.unit
    if unit.HasField("llm_call"):
        tokens = sum(each.count for each in unit.llm_call.token_counts)
        return f"{unit.llm_call.model}, {tokens} tokens"
    if unit.HasField("tool_call"):
        return f"tool {unit.tool_call.tool}"
    return str(unit.WhichOneof("kind"))
