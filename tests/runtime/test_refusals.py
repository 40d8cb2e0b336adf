"""The walk over every RPC refuses whom it should, and notices a server that does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.runtime.access import Access
from tests.plugins.identities import Identities
from tests.plugins.pets import ACCESS, SERVICE, UnbuiltPets, pet_application
from tests.plugins.refusals import prove_refusals
from tests.plugins.serving import ServeService


@pytest.mark.parametrize("service", ["ledger", "executor"])
async def test_every_rpc_refuses_whom_its_entry_does_not_admit(
    serve_service: ServeService, identities: Identities, service: str
) -> None:
    application = pet_application(UnbuiltPets())
    served = await serve_service(service, application)

    count = await prove_refusals(service, application, served, identities)

    assert count >= 3 * 9


@pytest.mark.parametrize(
    "too_open",
    [
        Access(None),
        Access("pets:write", services=frozenset({"executor", "runner"}), runs=True),
        Access("pets:write", services=frozenset({"executor"}), runs=True, cross_tenant=True),
    ],
)
async def test_the_walk_notices_a_server_that_is_too_open(
    serve_service: ServeService, identities: Identities, too_open: Access
) -> None:
    intended = pet_application(UnbuiltPets())
    method = f"/{SERVICE}/FeedPet"
    served = await serve_service("ledger", replace(intended, access={**ACCESS, method: too_open}))

    with pytest.raises(AssertionError, match=method):
        await prove_refusals("ledger", intended, served, identities)
