"""Leasing a credential: who does not answer is asked again, who refuses is not."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import grpc
import pytest
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from cogni.connections.v1.connections_service_pb2 import (
    LeaseCredentialRequest,
    LeaseCredentialResponse,
)
from cogni.connections.v1.connections_service_pb2_grpc import (
    ConnectionsServiceServicer,
    add_ConnectionsServiceServicer_to_server,
)
from cogni.connections.v1.credential_pb2 import ApiKeyCredential, Credential
from cogni.graph.guarding import ToolDenied
from cogni.graph.policy import ToolPolicy
from services.executor.runner.credentials import LeasedCredentials
from services.executor.runner.journal import Holding
from services.executor.runner.needs import Need, need_of
from services.executor.runner.tokens import RunTokens
from services.runtime.channels import sync_service_channel
from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.interceptors.status import to_status
from services.runtime.tokens import ServiceTokens

HOLDING = Holding("run", "acme", 1, 1)


class Tokens:
    """Always has a token."""

    async def token(self, holding: Holding) -> str:
        return "token"


@dataclass
class Connections(ConnectionsServiceServicer):
    """Answers with each of the codes in turn, then with a credential."""

    codes: list[grpc.StatusCode] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    providers: dict[str, str] = field(default_factory=lambda: {"c1": "bluesky"})
    requests: list[LeaseCredentialRequest] = field(default_factory=list)
    #: As a server of the release before, which leases whatever the connection is.
    old: bool = False

    def LeaseCredential(  # noqa: N802
        self, request: LeaseCredentialRequest, context: grpc.ServicerContext
    ) -> LeaseCredentialResponse:
        self.metadata.append({str(key): str(value) for key, value in context.invocation_metadata()})
        self.requests.append(request)
        if self.codes:
            context.abort(self.codes.pop(0), "no")
        provider = self.providers[request.connection_id]
        if provider not in request.providers and not self.old:
            error = ServiceError(
                ErrorKind.FAILED_PRECONDITION,
                "PROVIDER_MISMATCH",
                "another's",
                metadata={"provider": provider},
            )
            context.abort_with_status(rpc_status.to_status(to_status(error, "")))
        return LeaseCredentialResponse(
            provider=provider, credential=Credential(api_key=ApiKeyCredential(key="k"))
        )


@dataclass(frozen=True)
class Wired:
    connections: Connections
    credentials: LeasedCredentials


@pytest.fixture
def wired() -> Iterator[Wired]:
    server = grpc.server(ThreadPoolExecutor(2))
    connections = Connections()
    add_ConnectionsServiceServicer_to_server(connections, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    channel = sync_service_channel(
        f"127.0.0.1:{port}", "connections", cast(ServiceTokens, None), safe_methods=[]
    )
    credentials = LeasedCredentials(lambda: channel, cast(RunTokens, Tokens()))
    yield Wired(connections, credentials)
    credentials.close()
    channel.close()
    server.stop(None).wait()


async def lease(wired: Wired) -> str:
    leased = await wired.credentials.lease(HOLDING, ["c1"], Need(("bluesky",)), "post", "i1")
    return leased.credential["key"]


@pytest.mark.parametrize("old", [False, True])
async def test_the_preferred_provider_is_leased_and_what_was_learnt_is_kept(
    wired: Wired, old: bool
) -> None:
    wired.connections.old = old
    wired.connections.providers = {"c1": "bluesky", "c2": "github_oauth", "c3": "github_app"}
    need = Need(("github_app", "github_oauth"), ("issues:write",), ("octo/hello",))

    for invocation_id in ("i1", "i2"):
        leased = await wired.credentials.lease(
            HOLDING, list(wired.connections.providers), need, "comment", invocation_id
        )
        assert leased.connection_id == "c3"
    only = await wired.credentials.lease(HOLDING, ["c1", "c2"], need, "comment", "i3")

    assert only.connection_id == "c2"
    asked = [(each.connection_id, *each.providers) for each in wired.connections.requests]
    assert [each[0] for each in asked] == ["c1", "c2", "c3", "c3", "c2"]
    assert all(
        (list(each.scopes), list(each.resources)) == (["issues:write"], ["octo/hello"])
        for each in wired.connections.requests
    )
    with pytest.raises(ToolDenied, match="'github_app' or 'github_oauth'"):
        await wired.credentials.lease(HOLDING, ["c1"], need, "comment", "i4")


def test_a_tool_that_works_on_a_resource_gets_no_credential_for_everything() -> None:
    policy = ToolPolicy(connection="github_app", scopes=("issues:write",), resource="repository")

    need = need_of(policy, {"repository": "octo/hello"})

    assert need == Need(("github_app",), ("issues:write",), ("octo/hello",))
    assert need_of(ToolPolicy(), {}) is None
    for arguments in ({}, {"repository": ""}, {"repository": ["octo/hello"]}):
        with pytest.raises(ToolDenied, match="repository"):
            need_of(policy, arguments)


async def test_a_server_that_restarts_denies_nothing(wired: Wired) -> None:
    wired.connections.codes = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED]

    assert await lease(wired) == "k"
    assert len(wired.connections.metadata) == 3


async def test_a_refusal_is_final(wired: Wired) -> None:
    wired.connections.codes = [grpc.StatusCode.PERMISSION_DENIED]

    with pytest.raises(ToolDenied, match="No credential for 'post'"):
        await lease(wired)
    assert len(wired.connections.metadata) == 1


async def test_the_call_belongs_to_the_trace_of_the_tool(wired: Wired) -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("tool") as span:
        await lease(wired)

    trace_id = trace.format_trace_id(span.get_span_context().trace_id)
    assert trace_id in wired.connections.metadata[0]["traceparent"]
