"""A GitHub App's installations: listed, connected, and followed as they change at GitHub."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from cogni.cli.connections import app
from cogni.connections.v1 import access_record_pb2, connection_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from cogni.egress_rules import EgressRules
from services.connections.composition import Choices, compose
from services.connections.keyring import KeyRing
from services.connections.providers.catalogue import Catalogue, built_in
from services.connections.providers.github_installations import AppKey
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from tests.databases import DatabaseFactory
from tests.github_server import APP_ID, PEM, GitHub, serving
from tests.plugins.calls import refused
from tests.plugins.identities import Identities
from tests.plugins.serving import Served, ServeService

SCOPES = ("connections:read", "connections:write", "connections:admin")


@dataclass
class Office:
    """A Connections server that may call our GitHub, and those who call it."""

    served: Served
    identities: Identities
    github: GitHub
    url: str

    def user(self, tenant: str = "t1") -> Any:
        token = self.identities.user_token(tenant, "ann", SCOPES)
        return stubs.ConnectionsServiceStub(self.served.channel(token))

    def run(self, connection_id: str) -> Any:
        claims = self.identities.run_claims("t1", connection_ids=(connection_id,))
        return stubs.ConnectionsServiceStub(self.served.channel(self.identities.run_token(claims)))

    def listing(self, **changes: Any) -> messages.ListInstallationsRequest:
        request = messages.ListInstallationsRequest(**changes)
        request.settings.update({"app_id": str(APP_ID), "private_key": "main", "api_url": self.url})
        return request

    async def connect(self, installation_id: str) -> Any:
        request = messages.CreateConnectionRequest(request_id=new_id(), provider="github_app")
        request.settings.update(self.listing().settings)
        request.settings["installation_id"] = installation_id
        return (await self.user().CreateConnection(request)).connection

    async def refresh(self, connection_id: str) -> Any:
        request = messages.RefreshConnectionRequest(connection_id=connection_id, force=True)
        return (await self.user().RefreshConnection(request)).connection

    async def state(self, connection_id: str) -> tuple[str, str]:
        get = messages.GetConnectionRequest(connection_id=connection_id)
        found = (await self.user().GetConnection(get)).connection
        return (
            connection_pb2.ConnectionState.Name(found.state).removeprefix("CONNECTION_STATE_"),
            connection_pb2.ConnectionStateReason.Name(found.state_reason).removeprefix(
                "CONNECTION_STATE_REASON_"
            ),
        )


@pytest.fixture
async def office(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities
) -> AsyncIterator[Office]:
    github = GitHub()
    async with serving(github) as address:
        keys = {"main": AppKey(PEM, frozenset({"t1"}), f"http://{address}")}
        drain = Drain()
        parts = compose(
            await database("connections"),
            KeyRing("k1", {"k1": bytes(range(32))}),
            Choices(EgressRules.parse(address)),
            drain,
            catalogue=Catalogue(built_in(github_keys=keys)),
        )
        served = await serve_service("connections", parts.application, drain=drain)
        yield Office(served, identities, github, f"http://{address}")
        await parts.close()


async def test_installations_are_listed_in_pages_with_what_stands_for_them_here(
    office: Office,
) -> None:
    for number in range(1, 6):
        office.github.install(number, f"org-{number}", issues="write")
    office.github.installations[2].suspended = True
    made = await office.connect("3")

    found, request = [], office.listing(page_size=2)
    while True:
        page = await office.user().ListInstallations(request)
        assert len(page.installations) <= 2
        found += page.installations
        if not page.next_page_token:
            break
        request = office.listing(page_size=2, page_token=page.next_page_token)

    assert [(each.installation_id, each.account.name) for each in found] == [
        (str(number), f"org-{number}") for number in range(1, 6)
    ]
    assert [each.HasField("suspend_time") for each in found] == [False, True, *[False] * 3]
    assert [list(each.connection_ids) for each in found] == [[], [], [made.connection_id], [], []]
    assert list(found[0].scopes) == ["issues:write", "metadata:read"]
    assert made.account.name == "org-3"
    records = await office.user().ListAccessRecords(
        messages.ListAccessRecordsRequest(action=access_record_pb2.ACCESS_ACTION_LIST_INSTALLATIONS)
    )
    assert len(records.records) == 3


async def test_a_key_that_the_operator_keeps_for_others_is_refused_and_on_record(
    office: Office,
) -> None:
    office.github.install(1, "org-1")
    stranger = office.user("t2")

    listing = await refused(stranger.ListInstallations(office.listing()))
    request = messages.CreateConnectionRequest(request_id=new_id(), provider="github_app")
    request.settings.update(office.listing().settings)
    request.settings["installation_id"] = "1"
    creating = await refused(stranger.CreateConnection(request))
    records = await stranger.ListAccessRecords(messages.ListAccessRecordsRequest())

    assert (listing.reason, creating.reason) == ("APP_KEY_NOT_ALLOWED", "APP_KEY_NOT_ALLOWED")
    assert [(each.action, each.reason) for each in records.records] == [
        (access_record_pb2.ACCESS_ACTION_CREATE_CONNECTION, "APP_KEY_NOT_ALLOWED"),
        (access_record_pb2.ACCESS_ACTION_LIST_INSTALLATIONS, "APP_KEY_NOT_ALLOWED"),
    ]
    assert office.github.exchanges == []


async def test_an_apps_proof_goes_to_the_api_that_its_key_is_for_and_nowhere_else(
    office: Office,
) -> None:
    office.github.install(1, "org-1")
    listing = office.listing()
    listing.settings["api_url"] = f"{office.url}/another"
    request = messages.CreateConnectionRequest(request_id=new_id(), provider="github_app")
    request.settings.update(listing.settings)
    request.settings["installation_id"] = "1"

    refusals = [
        await refused(office.user().ListInstallations(listing)),
        await refused(office.user().CreateConnection(request)),
    ]

    assert [each.reason for each in refusals] == ["APP_KEY_NOT_ALLOWED"] * 2
    assert refusals[0].info.metadata["api_url"] == office.url
    assert office.github.exchanges == []


async def test_a_connection_of_an_app_stays_with_its_installation(office: Office) -> None:
    office.github.install(1, "org-1")
    office.github.install(2, "org-2")
    made = await office.connect("1")
    changed = messages.UpdateConnectionRequest(connection=made)
    changed.update_mask.paths.append("settings")

    complaints = []
    for name, value in (("installation_id", "2"), ("api_url", "https://api.github.com")):
        changed.connection.CopyFrom(made)
        changed.connection.settings[name] = value
        complaints.append(await refused(office.user().UpdateConnection(changed)))

    assert [each.reason for each in complaints] == ["INVALID_REQUEST"] * 2
    assert "connect it anew" in str(complaints[0])


async def test_a_use_of_an_apps_key_that_makes_no_connection_is_on_record(office: Office) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await office.connect("404")

    records = await office.user().ListAccessRecords(messages.ListAccessRecordsRequest())

    assert len(office.github.exchanges) == 1
    [record] = records.records
    assert (record.action, record.decision, record.provider, record.reason) == (
        access_record_pb2.ACCESS_ACTION_CREATE_CONNECTION,
        access_record_pb2.ACCESS_DECISION_FAILED,
        "github_app",
        "CREDENTIAL_REJECTED",
    )


async def test_a_listing_that_cannot_be_made_says_why(office: Office) -> None:
    wrong = office.listing()
    wrong.settings["installation_id"] = "1"
    unknown = office.listing()
    unknown.settings["private_key"] = "other"
    elsewhere = office.listing()
    elsewhere.settings["api_url"] = "http://127.0.0.1:1"

    reasons = [
        (await refused(office.user().ListInstallations(request))).reason
        for request in (wrong, unknown, elsewhere, office.listing(provider="bluesky"))
    ]

    assert reasons == [
        "INVALID_REQUEST",
        "PROVIDER_ANSWER_INVALID",
        "INVALID_REQUEST",
        "INSTALLATIONS_NOT_SUPPORTED",
    ]


async def test_a_connection_follows_its_installation_and_comes_back_with_it(
    office: Office,
) -> None:
    installed = office.github.install(1, "org-1", issues="read")
    made = (await office.connect("1")).connection_id

    installed.login, installed.permissions["issues"] = "renamed", "write"
    renamed = await office.refresh(made)
    installed.suspended = True
    suspended = await refused(
        office.user().RefreshConnection(
            messages.RefreshConnectionRequest(connection_id=made, force=True)
        )
    )
    state = await office.state(made)
    installed.suspended = False
    await office.refresh(made)

    assert renamed.account.name == "renamed"
    assert "issues:write" in renamed.scopes
    assert suspended.reason == "CREDENTIAL_REJECTED"
    assert state == ("NEEDS_REAUTH", "ACCOUNT_SUSPENDED")
    assert (await office.state(made))[0] == "ACTIVE"


async def test_a_connection_whose_installation_was_removed_is_revoked_for_good(
    office: Office,
) -> None:
    office.github.install(1, "org-1")
    made = (await office.connect("1")).connection_id
    refresh = messages.RefreshConnectionRequest(connection_id=made, force=True)

    del office.github.installations[1]
    removed = await refused(office.user().RefreshConnection(refresh))
    state = await office.state(made)
    asked = len(office.github.exchanges)
    again = await refused(office.user().RefreshConnection(refresh))

    assert (removed.reason, again.reason) == ("CREDENTIAL_REJECTED", "CONNECTION_REVOKED")
    assert state == ("REVOKED", "WITHDRAWN_AT_PROVIDER")
    assert len(office.github.exchanges) == asked


async def test_the_command_line_lists_connects_and_renews(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.github.install(7, "octo", issues="write").suspended = True
    office.github.install(8, "other")
    monkeypatch.setenv("COGNI_CONNECTIONS_ADDRESS", office.served.address)
    monkeypatch.setenv("COGNI_TOKEN", office.identities.user_token("t1", "ann", SCOPES))
    which = ("--app-id", str(APP_ID), "--key", "main", "--api-url", office.url)

    async def cogni(*words: str) -> str:
        done = await asyncio.to_thread(CliRunner().invoke, app, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    made = await cogni("add-github-app", *which, "--installation", "8", "--id")
    listed = await cogni("installations", *which, "--json")
    shown = await cogni("installations", *which)
    renewed = await cogni("refresh", made.strip(), "--json")

    found = [json.loads(line) for line in listed.splitlines()]
    assert [each["installation_id"] for each in found] == ["7", "8"]
    assert found[1]["connection_ids"] == [made.strip()]
    assert "suspended" in shown
    assert json.loads(renewed)["account"]["name"] == "other"


async def test_a_lease_is_cut_down_and_one_for_another_provider_refused(office: Office) -> None:
    office.github.install(1, "octo", "octo/hello", "octo/other", issues="write", contents="write")
    made = (await office.connect("1")).connection_id
    request = messages.LeaseCredentialRequest(
        connection_id=made,
        invocation_id="inv-1",
        tool="post_github_comment",
        scopes=["issues:write"],
        resources=["octo/hello"],
        providers=["github_app", "github_oauth"],
    )
    lease = await office.run(made).LeaseCredential(request)
    request.providers[:] = ["bluesky"]
    other = await refused(office.run(made).LeaseCredential(request))
    request.providers[:] = []
    request.scopes[:] = ["pull_requests:write"]
    missing = await refused(office.run(made).LeaseCredential(request))

    token = office.github.tokens[lease.credential.bearer.access_token]
    assert (token.permissions, token.repositories) == ({"issues": "write"}, ["octo/hello"])
    assert other.reason == "PROVIDER_MISMATCH"
    assert missing.reason == "SCOPES_MISSING"
