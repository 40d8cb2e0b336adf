"""An update changes what its mask names, and a secret goes only where its owner sent it."""

from __future__ import annotations

from cogni.connections.v1 import connection_pb2
from tests.connections.conftest import PASSWORD, Service, lease_request, update_request
from tests.plugins.calls import refused


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


async def test_a_new_secret_is_tried_and_replaces_secret_and_session(
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
