"""A secret that came in is told by nothing: no table, log, error, trailer, answer or record."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cogni.connections.v1 import connection_pb2, credential_pb2
from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import connections_service_pb2_grpc as stubs
from cogni.egress_rules import EgressRules
from services.connections.composition import Choices, compose
from services.connections.keyring import KeyRing
from services.connections.webhook import Endpoint
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from services.runtime.logs import quieten_libraries
from services.standalone import pds
from tests.canaries import containing, tables
from tests.connections.conftest import CANARY
from tests.databases import DatabaseFactory
from tests.plugins.calls import refused
from tests.plugins.identities import Identities
from tests.plugins.serving import ServeService

PASSWORD = f"{CANARY}-app-password"
SCOPES = ("connections:read", "connections:write", "connections:admin")


@dataclass
class Echo:
    """A provider that answers as told, with what it was sent in place of SENT."""

    address: str
    status: int = 200
    kind: str = ""
    body: str = ""


@pytest.fixture
def echo() -> Iterator[Echo]:
    script = Echo("")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers.get("content-length", 0)))
            secret = self.headers.get("authorization") or json.loads(sent)["password"]
            answer = script.body.replace("SENT", secret).encode()
            self.send_response(script.status)
            self.send_header("content-type", script.kind.replace("SENT", secret))
            self.send_header("retry-after", secret)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def honest(tmp_path: Path) -> Iterator[str]:
    """host:port of an AT Protocol server that behaves."""
    server = pds.serve(0, tmp_path / "pds.json", "ann.test", PASSWORD)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass
class Office:
    """A running server, and the superuser's way to its database."""

    database_url: str
    people: stubs.ConnectionsServiceStub
    run: Any

    async def everything(self) -> dict[str, bytes]:
        return await tables(self.database_url)


@pytest.fixture(autouse=True)
def as_in_a_process(caplog: pytest.LogCaptureFixture) -> None:
    """Everything is logged, as by a process with COGNI_LOG_LEVEL=debug."""
    caplog.set_level(logging.DEBUG)
    quieten_libraries()


@pytest.fixture
async def office(
    database: DatabaseFactory,
    serve_service: ServeService,
    identities: Identities,
    key_ring: KeyRing,
    postgres: str,
    echo: Echo,
    honest: str,
) -> AsyncIterator[Office]:
    db, drain = await database("connections"), Drain()
    rules = EgressRules.parse(f"{echo.address},{honest}")
    # Nobody may reach it, so that what webhooks would say stays in the outbox and is looked at.
    hook = Endpoint("http://127.0.0.1:1/", ("whsec_" + "A" * 32,))
    parts = compose(db, key_ring, Choices(rules, webhooks={"*": hook}), drain)
    served = await serve_service("connections", parts.application, drain=drain)
    people = stubs.ConnectionsServiceStub(
        served.channel(identities.user_token("t1", "ann", SCOPES))
    )

    def run(*connection_ids: str) -> stubs.ConnectionsServiceStub:
        claims = identities.run_claims("t1", connection_ids=connection_ids)
        return stubs.ConnectionsServiceStub(served.channel(identities.run_token(claims)))

    url = urlsplit(postgres)._replace(path=urlsplit(db.url).path).geturl()
    yield Office(url, people, run)
    await parts.close()


def bluesky(address: str, **changes: Any) -> messages.CreateConnectionRequest:
    secret = credential_pb2.AppPasswordSecret(identifier="ann.test", password=PASSWORD)
    request = messages.CreateConnectionRequest(
        request_id=new_id(),
        provider="bluesky",
        secret=credential_pb2.ConnectionSecret(app_password=secret),
        **changes,
    )
    request.settings["service_url"] = f"http://{address}"
    return request


async def test_the_secret_is_in_no_table_no_log_no_error_and_no_trailer(
    office: Office, honest: str, caplog: pytest.LogCaptureFixture
) -> None:
    made: connection_pb2.Connection
    made = (await office.people.CreateConnection(bluesky(honest))).connection
    run = office.run(made.connection_id)
    wanted = messages.LeaseCredentialRequest(
        connection_id=made.connection_id, invocation_id="inv-1", tool="post_to_bluesky"
    )
    lease = await run.LeaseCredential(wanted)
    jwt = lease.credential.bluesky_session.access_jwt
    wanted.connection_id = new_id()
    refusal = await refused(run.LeaseCredential(wanted))

    stored = await office.everything()
    told = {"log": caplog.text.encode(), "answers": f"{made} {refusal}".encode()}

    secrets = [PASSWORD, jwt, jwt.rpartition(".")[2]]
    assert containing(secrets, stored) == []
    assert containing(secrets, told) == []
    assert made.connection_id.encode() in stored["connections.connections.connection_id"]
    assert made.connection_id.encode() in stored["connections.outbox.payload"]


async def test_a_provider_that_repeats_the_secret_in_its_errors_has_it_told_to_nobody(
    office: Office, echo: Echo, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[object] = []
    for echo.status, echo.kind, echo.body in (
        (400, "application/json", '{"error": "SENT", "message": "SENT"}'),
        (429, "application/json", '{"error": "SENT"}'),
        (500, "text/html", "<h1>SENT</h1>"),
        (200, "text/SENT", "<h1>SENT</h1>"),
        (200, "application/json", '{"accessJwt": 1, "did": "SENT", "SENT": "SENT"}'),
        (302, "text/html", "SENT"),
    ):
        told.append(await refused(office.people.CreateConnection(bluesky(echo.address))))
        stored = await office.people.CreateConnection(bluesky(echo.address, skip_check=True))
        id = stored.connection.connection_id
        tried = await office.people.TestConnection(messages.TestConnectionRequest(connection_id=id))
        told.append(tried)
        assert not tried.passed
        assert tried.checks[-1].message
        refresh = messages.RefreshConnectionRequest(connection_id=id, force=True)
        told.append(await refused(office.people.RefreshConnection(refresh)))
        lease = messages.LeaseCredentialRequest(connection_id=id, invocation_id="i", tool="t")
        told.append(await refused(office.run(id).LeaseCredential(lease)))
    told.append(await office.people.ListConnections(messages.ListConnectionsRequest()))
    told.append(await office.people.ListAccessRecords(messages.ListAccessRecordsRequest()))

    blobs = await office.everything()
    blobs |= {"log": caplog.text.encode(), "told": repr(told).encode()}

    assert containing([PASSWORD], blobs) == []
