"""An update changes what its mask names, and a secret goes only where its owner sent it."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from cogni.connections.v1 import access_record_pb2, connection_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.egress_rules import EgressRules
from services.connections.connection import Connection
from services.connections.connection_requests import UpdateWanted
from services.connections.keyring import KeyRing
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.provider import ProviderSettings
from services.connections.secret import AuthKind, Secret
from services.connections.store import access_log
from services.connections.store.access_log import LockedHead
from services.connections.use_cases.changes import Changes
from services.runtime.errors import ServiceError
from tests.connections.conftest import (
    PASSWORD,
    NoHttp,
    Service,
    World,
    lease_request,
    make_world,
    scripted_provider,
    update_request,
    user,
)
from tests.databases import DatabaseFactory
from tests.plugins.calls import refused

NEWER = Secret(AuthKind.APP_PASSWORD, {"identifier": "ann", "password": "newer"})


class Aimed(ProviderSettings):
    """Settings that decide where the secret goes."""

    secret_bound: ClassVar[frozenset[str]] = frozenset({"host"})

    host: str = "a.example"


@pytest.fixture
async def aimed(database: DatabaseFactory, key_ring: KeyRing) -> World:
    """One process whose scripted provider sends its secrets to `host`."""
    return make_world(await database("connections"), key_ring, settings=Aimed)


def changes_of(world: World) -> Changes:
    catalogue = Catalogue([scripted_provider(world.sessions, settings=Aimed)])
    return Changes(world.database, world.vault, catalogue, NoHttp(), EgressRules())


def moving(made: Connection) -> UpdateWanted:
    """Another secret, for another host."""
    return UpdateWanted(
        made.connection_id,
        frozenset({"settings"}),
        settings={"host": "b.example"},
        secret=NEWER,
        skip_check=True,
    )


async def host_of(world: World, made: Connection) -> object:
    return (await world.connections.get(user(), made.connection_id)).settings["host"]


async def test_an_update_changes_what_its_mask_names_and_moves_the_etag(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = update_request(
        bluesky, "display_name", "labels", display_name="New", labels={"a": "b"}, owner="eve"
    )
    changed = (await service.user().UpdateConnection(request)).connection
    assert (changed.display_name, dict(changed.labels)) == ("New", {"a": "b"})
    assert changed.owner == "ann"
    assert changed.etag != bluesky.etag

    stale = update_request(bluesky, "display_name", display_name="Late", etag=bluesky.etag)
    assert (await refused(service.user().UpdateConnection(stale))).reason == "ETAG_MISMATCH"


async def test_where_the_secret_goes_changes_only_with_the_secret(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = update_request(bluesky, "settings")
    request.connection.settings["service_url"] = "https://evil.example.com"
    refusal = await refused(service.user().UpdateConnection(request))
    assert "give the secret again" in refusal.message


async def test_consents_are_the_owners_alone_to_give(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = update_request(bluesky, "consents", consents=[connection_pb2.Consent(subject="bea")])
    refusal = await refused(service.user("admin").UpdateConnection(request))
    assert refusal.reason == "NOT_OWNER"
    changed = (await service.user().UpdateConnection(request)).connection
    assert [consent.subject for consent in changed.consents] == ["bea"]
    cleared = (
        await service.user().UpdateConnection(update_request(bluesky, "consents"))
    ).connection
    assert not cleared.consents


async def test_a_new_secret_is_tried_replaces_secret_and_session_and_is_on_record_either_way(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = update_request(bluesky)
    request.secret.app_password.identifier = "ann.test"
    request.secret.app_password.password = "wrong"
    assert (await refused(service.user().UpdateConnection(request))).reason == (
        "CREDENTIAL_REJECTED"
    )
    request.secret.app_password.password = PASSWORD
    await service.user().UpdateConnection(request)
    lease = await service.run(bluesky.connection_id).LeaseCredential(
        lease_request(bluesky.connection_id)
    )
    assert lease.credential.bluesky_session.did == bluesky.account.id
    asked = messages.ListAccessRecordsRequest(
        action=access_record_pb2.ACCESS_ACTION_UPDATE_CONNECTION, oldest_first=True
    )
    records = (await service.user().ListAccessRecords(asked)).records
    assert [(each.connection_id, each.decision, each.reason) for each in records] == [
        (
            bluesky.connection_id,
            access_record_pb2.ACCESS_DECISION_FAILED,
            "CREDENTIAL_REJECTED",
        ),
        (bluesky.connection_id, access_record_pb2.ACCESS_DECISION_ALLOWED, ""),
    ]


async def test_settings_checked_before_another_update_do_not_send_its_secret_elsewhere(
    aimed: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await aimed.connect(user())
    changes, lock_head = changes_of(aimed), access_log.lock_head

    async def overtaken(tx: object, tenant_id: str) -> LockedHead:
        monkeypatch.setattr(access_log, "lock_head", lock_head)
        await changes.update(user(), moving(made))
        return await lock_head(tx, tenant_id)  # type: ignore[arg-type]

    monkeypatch.setattr(access_log, "lock_head", overtaken)
    same = UpdateWanted(made.connection_id, frozenset({"settings"}), settings={"host": "a.example"})
    with pytest.raises(ServiceError, match="give the secret again"):
        await changes.update(user(), same)

    assert await host_of(aimed, made) == "b.example"


async def test_a_secret_is_not_stored_for_a_host_that_it_was_not_tried_at(aimed: World) -> None:
    made = await aimed.connect(user())
    changes = changes_of(aimed)
    aimed.sessions.gate, aimed.sessions.asked = asyncio.Event(), asyncio.Event()
    older = Secret(AuthKind.APP_PASSWORD, {"identifier": "ann", "password": "older"})
    slow = asyncio.create_task(
        changes.update(user(), UpdateWanted(made.connection_id, frozenset(), secret=older))
    )
    await aimed.sessions.asked.wait()
    moved = await changes.update(user(), moving(made))

    aimed.sessions.gate.set()
    with pytest.raises(ServiceError) as caught:
        await slow

    assert (caught.value.kind, caught.value.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert (await aimed.connections.get(user(), made.connection_id)).etag == moved.etag
