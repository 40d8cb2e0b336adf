"""Every RPC of Connections refuses whoever may not call it."""

from __future__ import annotations

from services.connections.composition import Choices, compose
from services.connections.keyring import KeyRing
from services.runtime.drain import Drain
from tests.databases import DatabaseFactory
from tests.plugins.identities import Identities
from tests.plugins.refusals import prove_refusals
from tests.plugins.serving import ServeService


async def test_every_rpc_refuses_whoever_may_not_call_it(
    database: DatabaseFactory,
    serve_service: ServeService,
    identities: Identities,
    key_ring: KeyRing,
) -> None:
    drain = Drain()
    parts = compose(await database("connections"), key_ring, Choices(), drain)
    served = await serve_service("connections", parts.application, drain=drain)
    await prove_refusals("connections", parts.application, served, identities)
    await parts.close()
