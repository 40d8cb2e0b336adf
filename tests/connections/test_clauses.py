"""What is promised of connections beyond single calls: consent, thrift with sign-ins, scopes."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cogni.egress_rules import EgressRules
from services.connections.connection_requests import UpdateWanted
from services.connections.keyring import KeyRing
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.github_app import missing_permissions
from services.connections.providers.github_oauth import github_oauth
from services.connections.providers.provider import LeaseWish
from services.connections.use_cases.changes import Changes
from services.connections.use_cases.checkups import Checkups
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from tests.connections.conftest import (
    NoHttp,
    ScriptedSessions,
    World,
    lease_wanted,
    make_world,
    runner,
    scripted_provider,
    user,
)
from tests.databases import Clock, DatabaseFactory


async def test_a_run_uses_anothers_connection_only_while_its_owner_consents(
    world: World, key_ring: KeyRing
) -> None:
    made = await world.connect(user("ann"), consent_subjects=("bea",))
    catalogue = Catalogue([scripted_provider(world.sessions)])
    changes = Changes(world.database, world.vault, catalogue, NoHttp(), EgressRules())

    async def lease(creator: str) -> str:
        caller = replace(runner(made.connection_id), on_behalf_of=creator)
        wanted = lease_wanted(made.connection_id, invocation_id=new_id())
        try:
            await world.leases.lease(caller, wanted)
        except ServiceError as error:
            return error.reason
        return "leased"

    assert [await lease(each) for each in ("ann", "bea", "eve")] == [
        "leased",
        "leased",
        "CONSENT_WITHDRAWN",
    ]
    withdrawn = UpdateWanted(made.connection_id, frozenset({"consents"}))
    await changes.update(user("ann"), withdrawn)
    assert [await lease(each) for each in ("ann", "bea")] == ["leased", "CONSENT_WITHDRAWN"]


async def test_half_a_day_of_leases_signs_in_once_and_renews_no_more_than_its_sessions_end(
    world: World, clock: Clock
) -> None:
    """createSession is limited to 30 in 5 minutes and 300 a day for an account."""
    made = await world.connect(user())
    for _ in range(6):
        for _ in range(3):
            wanted = lease_wanted(made.connection_id, invocation_id=new_id())
            await world.leases.lease(runner(made.connection_id), wanted)
        await world.renewals.renew_due()
        await clock.advance(world.database, timedelta(hours=2))

    assert world.sessions.begun == 1
    assert world.sessions.renewed <= 6


async def test_a_checkup_counts_a_higher_permission_as_the_lower_one(
    database: DatabaseFactory, key_ring: KeyRing
) -> None:
    sessions = ScriptedSessions(scopes=("issues:write",))
    world = make_world(
        await database("connections"), key_ring, sessions, missing_scopes=missing_permissions
    )
    made = await world.connect(user())
    catalogue = Catalogue([scripted_provider(sessions, missing_scopes=missing_permissions)])
    checkups = Checkups(world.database, world.vault, catalogue, NoHttp(), world.renewals)

    found = await checkups.test(user(), made.connection_id, ("issues:read", "contents:read"))

    assert found.missing_scopes == ("contents:read",)
    assert not found.passed


async def test_a_checkup_says_which_scopes_a_provider_does_not_tell_of(
    database: DatabaseFactory, key_ring: KeyRing
) -> None:
    untold = github_oauth(None).missing_scopes
    sessions = ScriptedSessions(scopes=())
    world = make_world(await database("connections"), key_ring, sessions, missing_scopes=untold)
    made = await world.connect(user())
    catalogue = Catalogue([scripted_provider(sessions, missing_scopes=untold)])
    checkups = Checkups(world.database, world.vault, catalogue, NoHttp(), world.renewals)

    found = await checkups.test(user(), made.connection_id, ("issues:read",))

    assert (found.missing_scopes, found.unknown_scopes) == ((), ("issues:read",))
    assert found.passed
    wanted = lease_wanted(made.connection_id, wish=LeaseWish(("issues:read",)))
    assert await world.leases.lease(runner(made.connection_id), wanted)


@pytest.mark.parametrize("failing", [RuntimeError("a defect of ours"), None])
async def test_one_connection_that_meets_a_defect_holds_no_other_renewal_up(
    world: World, clock: Clock, failing: Exception | None
) -> None:
    for number in range(3):
        await world.connect(user(), request_id=new_id(), display_name=str(number))
    await clock.advance(world.database, timedelta(hours=2))
    world.sessions.next_failure = failing

    assert await world.renewals.renew_due() == 3

    assert world.sessions.renewed == 3
    due_again = await world.renewals.renew_due()
    assert due_again == 0, "the failed one is claimed until its time is over"
