"""The server as callers meet it: real gRPC, real tokens, a real AT Protocol server behind."""

from __future__ import annotations

import contextlib

import grpc
import pytest

from cogni.client.access_log import Head, TamperedError, verify_records
from cogni.connections.v1 import access_record_pb2, connection_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from services.runtime.ids import new_id
from tests.connections.conftest import CANARY, Service, lease_request
from tests.plugins.calls import refused


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
    assert session.service_url == f"http://{service.outside}"
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
