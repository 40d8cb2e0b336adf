"""Only a runner that holds a run's lease gets its token, and never past the lease."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import grpc
import pytest

from cogni.executor.v1.runner_service_pb2 import MintRunTokenRequest
from services.runtime.caller import CallerKind
from services.runtime.ids import new_id
from tests.databases import Clock
from tests.executor.conftest import LEASE, Attempt, World
from tests.plugins.calls import refused


async def test_a_minted_token_says_what_the_attempt_may_do(world: World) -> None:
    connection_id, account_id = new_id(), new_id()
    grant_id = await world.grant(connection_ids=[connection_id], account_id=account_id)
    attempt = await _attempt(world, grant_id)

    minted = await world.runner().MintRunToken(_request(attempt))

    for service in ("connections", "ledger"):
        caller = await world.identities.verifier(service).verify(minted.token)
        assert caller.kind is CallerKind.RUN
        assert caller.run is not None
        assert (caller.run.run_id, caller.run.epoch) == (attempt.run_id, attempt.epoch)
        assert (caller.run.grant_id, caller.run.account_id) == (grant_id, account_id)
        assert caller.run.connection_ids == (connection_id,)
        assert (caller.tenant_id, caller.on_behalf_of) == ("acme", "alice")
        expire_time = minted.expire_time.ToDatetime(tzinfo=UTC)
        assert caller.run.expire_time == expire_time
        assert expire_time <= datetime.now(UTC) + LEASE


async def test_the_lease_remembers_when_its_last_token_ends(world: World) -> None:
    attempt = await _attempt(world, await world.grant())

    minted = await world.runner().MintRunToken(_request(attempt))

    async with world.database.raw_tenant("acme") as tx:
        remembered = await tx.fetchval(
            "SELECT token_expire_time FROM run_leases WHERE run_id = $1", attempt.run_id
        )
    assert remembered == minted.expire_time.ToDatetime(tzinfo=UTC)


@pytest.mark.parametrize("offset", [-1, 1])
async def test_another_epoch_proves_nothing(world: World, offset: int) -> None:
    attempt = await _attempt(world, await world.grant())
    await world.claim(attempt.run_id)
    request = MintRunTokenRequest(run_id=attempt.run_id, epoch=2 + offset)

    refusal = await refused(world.runner().MintRunToken(request))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")


async def test_an_expired_lease_proves_nothing(world: World, clock: Clock) -> None:
    attempt = await _attempt(world, await world.grant())
    await clock.advance(world.database, LEASE + timedelta(seconds=1))

    refusal = await refused(world.runner().MintRunToken(_request(attempt)))

    assert refusal.reason == "LEASE_LOST"


async def test_a_finished_run_has_no_tokens(world: World) -> None:
    attempt = await _attempt(world, await world.grant())
    assert await attempt.succeed()

    refusal = await refused(world.runner().MintRunToken(_request(attempt)))

    assert refusal.reason == "LEASE_LOST"


async def test_a_runner_of_another_tenant_gets_nothing(world: World) -> None:
    attempt = await _attempt(world, await world.grant())

    refusal = await refused(world.runner("other").MintRunToken(_request(attempt)))

    assert refusal.reason == "LEASE_LOST"


@pytest.mark.parametrize("service", ["scheduler", "ledger", "executor"])
async def test_other_services_get_nothing(world: World, service: str) -> None:
    attempt = await _attempt(world, await world.grant())

    refusal = await refused(world.runner(service=service).MintRunToken(_request(attempt)))

    assert refusal.reason == "CALLER_NOT_ALLOWED"


async def _attempt(world: World, grant_id: str) -> Attempt:
    return await world.claim((await world.start(grant_id)).run_id)


def _request(attempt: Attempt) -> MintRunTokenRequest:
    return MintRunTokenRequest(run_id=attempt.run_id, epoch=attempt.epoch)
