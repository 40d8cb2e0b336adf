"""The server as callers meet it: real gRPC, real tokens, a real AT Protocol server behind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogni.client.access_log import Head, TamperedError, verify_records
from cogni.connections.v1 import access_record_pb2, connection_pb2, credential_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from cogni.egress_rules import EgressRules
from services.connections.composition import Choices, compose
from services.connections.keyring import KeyRing
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from services.standalone import pds
from tests.connections.conftest import CANARY
from tests.databases import DatabaseFactory
from tests.plugins.calls import refused
from tests.plugins.identities import Identities
from tests.plugins.serving import Served, ServeService

PASSWORD = f"{CANARY}-app-password"
ADMIN = ("connections:read", "connections:write", "connections:admin")


@pytest.fixture
def at_server(tmp_path: Path) -> Iterator[str]:
    """host:port of an AT Protocol server with the account ann.test."""
    server = pds.serve(0, tmp_path / "pds.json", "ann.test", PASSWORD)
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Service:
    """A running server and those who call it."""

    served: Served
    database: Database
    identities: Identities
    at_server: str

    def stub(self, token: str | None) -> stubs.ConnectionsServiceStub:
        return stubs.ConnectionsServiceStub(self.served.channel(token))

    def user(self, subject: str = "ann", tenant: str = "t1", scopes: Any = ADMIN) -> Any:
        return self.stub(self.identities.user_token(tenant, subject, scopes))

    def run(self, *connection_ids: str, **claims: Any) -> Any:
        made = self.identities.run_claims(
            claims.pop("tenant", "t1"), connection_ids=connection_ids, **claims
        )
        return self.stub(self.identities.run_token(made))

    def executor(self) -> Any:
        return self.stub(self.identities.service_token("executor", "connections", "t1"))

    def bluesky(self, **changes: Any) -> messages.CreateConnectionRequest:
        request = messages.CreateConnectionRequest(
            request_id=new_id(),
            provider="bluesky",
            secret=credential_pb2.ConnectionSecret(
                app_password=credential_pb2.AppPasswordSecret(
                    identifier="@ann.test", password=PASSWORD
                )
            ),
        )
        request.settings["service_url"] = f"http://{self.at_server}"
        request.MergeFrom(messages.CreateConnectionRequest(**changes))
        return request


@pytest.fixture
async def service(
    database: DatabaseFactory,
    serve_service: ServeService,
    identities: Identities,
    key_ring: KeyRing,
    at_server: str,
) -> AsyncIterator[Service]:
    db = await database("connections")
    drain = Drain()
    parts = compose(db, key_ring, Choices(EgressRules.parse(at_server)), drain)
    served = await serve_service("connections", parts.application, drain=drain)
    yield Service(served, db, identities, at_server)
    await parts.close()


@pytest.fixture
async def bluesky(service: Service) -> connection_pb2.Connection:
    """A connection of ann's, signed in."""
    made = await service.user().CreateConnection(service.bluesky())
    return made.connection  # type: ignore[no-any-return]


def lease_request(connection_id: str, **changes: Any) -> messages.LeaseCredentialRequest:
    request = messages.LeaseCredentialRequest(
        connection_id=connection_id, invocation_id="inv-1", tool="post_to_bluesky"
    )
    request.MergeFrom(messages.LeaseCredentialRequest(**changes))
    return request


async def test_an_account_is_connected_leased_revoked_and_every_step_is_on_record(
    service: Service,
) -> None:
    made = (await service.user().CreateConnection(service.bluesky())).connection
    assert made.state == connection_pb2.CONNECTION_STATE_ACTIVE
    assert made.account.name == "ann.test"
    assert made.display_name == "ann.test"
    assert made.caller_may_grant

    lease = await service.run(made.connection_id).LeaseCredential(lease_request(made.connection_id))
    session = lease.credential.bluesky_session
    assert session.did == made.account.id
    assert session.service_url == f"http://{service.at_server}"
    assert session.access_jwt.count(".") == 2

    revoked = await service.executor().RevokeLeases(
        messages.RevokeLeasesRequest(connection_id=made.connection_id, comment="test")
    )
    assert revoked.revoked_lease_count == 1
    answer = await service.user().ListAccessRecords(
        messages.ListAccessRecordsRequest(oldest_first=True)
    )
    assert [record.sequence for record in answer.records] == [1, 2, 3]
    assert answer.head.hash == answer.records[-1].hash
    assert answer.records[1].actor.startswith("run:")


async def test_a_wrong_password_is_refused_at_creation_without_repeating_it(
    service: Service,
) -> None:
    request = service.bluesky()
    request.secret.app_password.password = f"{CANARY}-wrong"
    refusal = await refused(service.user().CreateConnection(request))
    assert refusal.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refusal.reason == "CREDENTIAL_REJECTED"
    assert CANARY not in refusal.message + refusal.trailers


async def test_a_private_address_is_refused_unless_the_operator_allows_it(
    service: Service,
) -> None:
    request = service.bluesky()
    request.settings["service_url"] = "http://127.0.0.1:1"
    refusal = await refused(service.user().CreateConnection(request))
    assert refusal.reason == "INVALID_REQUEST"
    request.settings["service_url"] = "https://169.254.169.254"
    refusal = await refused(service.user().CreateConnection(request))
    assert "private or local" in refusal.message


async def test_everything_wrong_with_a_request_is_told_at_once(service: Service) -> None:
    request = messages.CreateConnectionRequest(request_id=new_id(), provider="api_key")
    request.settings["allowed_origins"] = ["https://api.example.com/path"]
    request.settings["surprise"] = 1
    refusal = await refused(service.user().CreateConnection(request))
    [bad] = [each for each in refusal.details if hasattr(each, "field_violations")]
    fields = {violation.field for violation in bad.field_violations}
    assert {"secret", "settings.allowed_origins", "settings.surprise"} <= fields


@pytest.mark.parametrize("provider", ["nope", "mcp", "bluesky:x"])
async def test_an_unknown_provider_is_named(service: Service, provider: str) -> None:
    refusal = await refused(
        service.user().CreateConnection(
            messages.CreateConnectionRequest(request_id=new_id(), provider=provider)
        )
    )
    assert refusal.reason == "PROVIDER_UNKNOWN"


async def test_a_provider_that_the_operator_has_not_configured_says_so(service: Service) -> None:
    request = messages.CreateConnectionRequest(request_id=new_id(), provider="github_app")
    assert (await refused(service.user().CreateConnection(request))).reason == (
        "PROVIDER_NOT_CONFIGURED"
    )
    begin = messages.BeginAuthorizationRequest(
        request_id=new_id(),
        new_connection=messages.NewConnection(provider="twitter"),
        redirect_uri="https://ui.example.com",
    )
    assert (await refused(service.user().BeginAuthorization(begin))).reason == "INVALID_REQUEST"


async def test_a_retried_create_makes_one_connection_and_a_changed_one_is_refused(
    service: Service,
) -> None:
    request = service.bluesky()
    first = await service.user().CreateConnection(request)
    again = await service.user().CreateConnection(request)
    assert again.connection.connection_id == first.connection.connection_id
    request.secret.app_password.password += "x"
    assert (await refused(service.user().CreateConnection(request))).reason == "REQUEST_ID_REUSED"
    request = service.bluesky(request_id=request.request_id, display_name="other")
    assert (await refused(service.user().CreateConnection(request))).reason == "REQUEST_ID_REUSED"


async def test_another_tenant_sees_and_deletes_nothing(service: Service) -> None:
    made = (await service.user().CreateConnection(service.bluesky())).connection
    stranger = service.user(tenant="t2")
    get = messages.GetConnectionRequest(connection_id=made.connection_id)
    delete = messages.DeleteConnectionRequest(connection_id=made.connection_id)
    assert (await refused(stranger.GetConnection(get))).reason == "NOT_FOUND"
    assert (await refused(stranger.DeleteConnection(delete))).reason == "NOT_FOUND"
    assert not (await stranger.ListConnections(messages.ListConnectionsRequest())).connections


async def test_a_colleague_reads_a_connection_but_may_neither_grant_nor_delete_it(
    service: Service,
) -> None:
    made = (
        await service.user().CreateConnection(service.bluesky(consent_subjects=["bea"]))
    ).connection
    get = messages.GetConnectionRequest(connection_id=made.connection_id)
    cleo = service.user("cleo", scopes=("connections:read", "connections:write"))
    bea = service.user("bea", scopes=("connections:read",))
    assert not (await cleo.GetConnection(get)).connection.caller_may_grant
    assert (await bea.GetConnection(get)).connection.caller_may_grant
    delete = messages.DeleteConnectionRequest(connection_id=made.connection_id)
    assert (await refused(cleo.DeleteConnection(delete))).reason == "NOT_OWNER"


async def test_lists_are_paged_and_filtered(service: Service) -> None:
    ids = [
        (
            await service.user().CreateConnection(
                service.bluesky(skip_check=True, labels={"n": str(number)})
            )
        ).connection.connection_id
        for number in range(5)
    ]
    seen: list[str] = []
    token = ""
    while True:
        page = await service.user().ListConnections(
            messages.ListConnectionsRequest(page_size=2, page_token=token)
        )
        seen += [connection.connection_id for connection in page.connections]
        token = page.next_page_token
        if not token:
            break
    assert seen == ids[::-1]
    one = await service.user().ListConnections(
        messages.ListConnectionsRequest(labels={"n": "3"}, provider="bluesky", owner="ann")
    )
    assert [connection.connection_id for connection in one.connections] == [ids[3]]


async def test_only_a_run_leases_and_only_what_its_token_names(service: Service) -> None:
    made = (await service.user().CreateConnection(service.bluesky())).connection
    request = lease_request(made.connection_id)
    refusal = await refused(service.user().LeaseCredential(request))
    assert refusal.reason == "CALLER_NOT_ALLOWED"
    refusal = await refused(service.run(new_id()).LeaseCredential(request))
    assert refusal.reason == "CONNECTION_NOT_GRANTED"


async def test_an_api_key_goes_out_with_where_it_may_go(service: Service) -> None:
    request = messages.CreateConnectionRequest(request_id=new_id(), provider="api_key")
    request.secret.api_key.key = f"{CANARY}-key"
    request.settings["allowed_origins"] = ["https://api.example.com"]
    made = (await service.user().CreateConnection(request)).connection
    lease = await service.run(made.connection_id).LeaseCredential(lease_request(made.connection_id))
    key = lease.credential.api_key
    assert (key.key, key.header_name, key.header_prefix) == (
        f"{CANARY}-key",
        "Authorization",
        "Bearer ",
    )
    assert list(key.allowed_origins) == ["https://api.example.com"]


async def test_the_providers_are_listed_with_the_schema_of_their_settings(
    service: Service,
) -> None:
    answer = await service.user().ListProviders(messages.ListProvidersRequest())
    found = {provider.provider_id: provider for provider in answer.providers}
    assert {"bluesky", "api_key"} <= set(found)
    assert "service_url" in found["bluesky"].settings_schema["properties"]


async def test_the_log_that_callers_read_is_verified_by_whoever_reads_it(
    service: Service,
) -> None:
    made = (await service.user().CreateConnection(service.bluesky())).connection
    with contextlib.suppress(grpc.aio.AioRpcError):
        await service.run(made.connection_id).LeaseCredential(lease_request(new_id()))
    await service.run(made.connection_id).LeaseCredential(lease_request(made.connection_id))
    request = messages.ListAccessRecordsRequest(oldest_first=True)
    answer = await service.user().ListAccessRecords(request)
    records = list(answer.records)
    assert len(records) == 3

    end = verify_records(records)

    assert (end.sequence, end.hash) == (answer.head.sequence, answer.head.hash)
    assert Head.parse(str(end)) == end
    assert verify_records(records, kept=Head(1, records[0].hash)) == end
    for place, change in (
        (1, {"actor": "user:eve"}),
        (2, {"decision": 1}),
        (2, {"epoch": 99}),
        (3, {"details": {"generation": "9"}}),
        (3, {"record_time": {"seconds": 1}}),
    ):
        forged = access_record_pb2.AccessRecord()
        forged.CopyFrom(records[place - 1])
        forged.MergeFrom(access_record_pb2.AccessRecord(**change))
        with pytest.raises(TamperedError) as caught:
            verify_records([*records[: place - 1], forged, *records[place:]])
        assert caught.value.sequence == place
    for wrong in (records[1:], [records[0], records[2]], [records[1], records[0], records[2]]):
        with pytest.raises(TamperedError):
            verify_records(wrong)
    # Cut off at its end, or made up anew: only a head that was kept shows it.
    for kept in (end, Head(2, bytes(32))):
        with pytest.raises(TamperedError):
            verify_records(records[:2], kept=kept)


def update(made: connection_pb2.Connection, *paths: str, **changes: Any) -> Any:
    request = messages.UpdateConnectionRequest()
    request.connection.connection_id = made.connection_id
    request.connection.MergeFrom(connection_pb2.Connection(**changes))
    if paths:
        request.update_mask.paths.extend(paths)
    return request


async def test_an_update_changes_what_its_mask_names_and_moves_the_etag(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = update(
        bluesky, "display_name", "labels", display_name="New", labels={"a": "b"}, owner="eve"
    )
    changed = (await service.user().UpdateConnection(request)).connection
    assert (changed.display_name, dict(changed.labels)) == ("New", {"a": "b"})
    assert changed.owner == "ann"
    assert changed.etag != bluesky.etag

    stale = update(bluesky, "display_name", display_name="Late", etag=bluesky.etag)
    assert (await refused(service.user().UpdateConnection(stale))).reason == "ETAG_MISMATCH"


async def test_where_the_secret_goes_changes_only_with_the_secret(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = update(bluesky, "settings")
    request.connection.settings["service_url"] = "https://evil.example.com"
    refusal = await refused(service.user().UpdateConnection(request))
    assert "give the secret again" in refusal.message


async def test_consents_are_the_owners_alone_to_give(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = update(bluesky, "consents", consents=[connection_pb2.Consent(subject="bea")])
    refusal = await refused(service.user("admin").UpdateConnection(request))
    assert refusal.reason == "NOT_OWNER"
    changed = (await service.user().UpdateConnection(request)).connection
    assert [consent.subject for consent in changed.consents] == ["bea"]
    cleared = (await service.user().UpdateConnection(update(bluesky, "consents"))).connection
    assert not cleared.consents


async def test_a_new_secret_is_tried_and_replaces_secret_and_session(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = update(bluesky)
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


async def test_a_connection_is_tried_out_at_its_provider(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    answer = await service.user().TestConnection(
        messages.TestConnectionRequest(
            connection_id=bluesky.connection_id, required_scopes=["post"]
        )
    )
    assert [check.passed for check in answer.checks] == [True] * 4
    assert answer.checks[-1].message == "Signed in as ann.test."
    assert (answer.passed, list(answer.missing_scopes)) == (False, ["post"])


async def test_a_fresh_credential_is_renewed_only_by_force(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    request = messages.RefreshConnectionRequest(connection_id=bluesky.connection_id)
    assert not (await service.user().RefreshConnection(request)).refreshed
    request.force = True
    answer = await service.user().RefreshConnection(request)
    assert answer.refreshed
    assert answer.connection.HasField("last_refresh_time")


async def test_watchers_see_what_exists_and_then_every_change_and_can_resume(
    service: Service, bluesky: connection_pb2.Connection
) -> None:
    stream = service.user().WatchConnections(messages.WatchConnectionsRequest())
    snapshot = await anext(aiter(stream))
    assert [c.connection.connection_id for c in snapshot.changes] == [bluesky.connection_id]
    begin = await anext(aiter(stream))
    assert begin.cursor

    await service.user().UpdateConnection(update(bluesky, "display_name", display_name="X"))
    news = await anext(aiter(stream))
    # Transactions of other tests hold a stream back: what the snapshot told may come once more.
    while [c.connection.display_name for c in news.changes] != ["X"]:
        assert {c.connection.connection_id for c in news.changes} <= {bluesky.connection_id}
        news = await anext(aiter(stream))
    stream.cancel()

    await service.user().DeleteConnection(
        messages.DeleteConnectionRequest(connection_id=bluesky.connection_id)
    )
    resumed = service.user().WatchConnections(messages.WatchConnectionsRequest(cursor=news.cursor))
    gone = await anext(aiter(resumed))
    assert [(c.connection.connection_id, c.deleted) for c in gone.changes] == [
        (bluesky.connection_id, True)
    ]
    resumed.cancel()


async def test_a_stopping_server_ends_watches_with_a_place_to_resume(service: Service) -> None:
    stream = service.user().WatchConnections(messages.WatchConnectionsRequest())
    await anext(aiter(stream))
    service.served.drain.begin()
    message = await anext(aiter(stream))
    while not message.resume:
        message = await anext(aiter(stream))
    assert message.cursor
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await anext(aiter(stream))
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_foreign_cursor_is_refused(service: Service) -> None:
    request = messages.WatchConnectionsRequest(cursor="bm9uc2Vuc2U=")
    assert (await refused(service.user().WatchConnections(request))).reason == "CURSOR_INVALID"
