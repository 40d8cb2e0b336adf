"""Owes messages and calls to others, within the transaction that causes them."""

import json
from collections.abc import Mapping

from opentelemetry import propagate

from services.executor.store.events import Connection
from services.runtime.jsonvalues import Json

#: A message to the Dramatiq queue "runs": the run it names can be claimed.
WAKE_UP = "wake_up"
#: A call to Connections: no lease may be given under the grant any more.
REVOKE_LEASES = "revoke_leases"

_OWE = """
INSERT INTO outbox (tenant_id, topic, payload, trace_context) VALUES ($1, $2, $3, $4)
"""


async def owe(tx: Connection, topic: str, tenant_id: str, payload: Mapping[str, Json]) -> None:
    """Owe `payload` to the topic's handler once `tx` commits; kick the relay after that."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    await tx.execute(_OWE, tenant_id, topic, json.dumps(payload), json.dumps(carrier))
