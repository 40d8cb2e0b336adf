"""Every RPC of the Ledger refuses whom its access entry does not admit."""

from __future__ import annotations

from services.ledger.composition import compose
from services.runtime.drain import Drain
from tests.databases import DatabaseFactory
from tests.plugins.identities import Identities
from tests.plugins.refusals import prove_refusals
from tests.plugins.serving import ServeService


async def test_every_rpc_refuses_whom_its_entry_does_not_admit(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities
) -> None:
    drain = Drain()
    application = compose(await database("ledger"), drain=drain)
    served = await serve_service("ledger", application, drain=drain)

    await prove_refusals("ledger", application, served, identities)
