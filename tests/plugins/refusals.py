"""Walks every RPC of a server and proves that it refuses whoever its access entry does not admit.

A service's test is three lines:

    served = await serve_service("ledger", application)
    await prove_refusals("ledger", application, served, identities)
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import grpc.aio

from services.runtime.access import Access
from services.runtime.server import Application
from tests.plugins.calls import Refusal, method_of, refused
from tests.plugins.identities import SERVICES, Identities
from tests.plugins.serving import Served

UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED

#: The services that run tokens are for; the others must not even believe them.
_RUN_TOKEN_SERVICES = ("connections", "ledger")


@dataclass(frozen=True)
class Wrong:
    """One way to come that must be refused, and how."""

    name: str
    token: str | None
    code: grpc.StatusCode
    reason: str


async def prove_refusals(
    service: str, application: Application, served: Served, identities: Identities
) -> int:
    """Fails with the list of everything wrongly answered; returns the number of refusals seen.

    The calls carry an empty request, so an RPC that validates before it authenticates fails too.
    """
    wrong_answers: list[str] = []
    count = 0
    channel = served.channel()
    for method in application.methods():
        for way in _wrong_ways(service, application.access[method], identities):
            refusal = await _call(channel, method, way.token)
            count += 1
            if (refusal.code, refusal.reason) != (way.code, way.reason):
                wrong_answers.append(
                    f"{method}, {way.name}: {refusal.code.name} {refusal.reason} "
                    f"instead of {way.code.name} {way.reason}"
                )
    assert not wrong_answers, "\n" + "\n".join(wrong_answers)
    assert count >= 5 * len(application.methods()) > 0
    return count


async def _call(channel: grpc.aio.Channel, method: str, token: str | None) -> Refusal:
    descriptor = method_of(method)
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    make = channel.unary_stream if descriptor.server_streaming else channel.unary_unary
    call = make(method, request_serializer=bytes, response_deserializer=bytes)
    return await refused(call(b"", metadata=metadata, timeout=60))


def _wrong_ways(service: str, access: Access, identities: Identities) -> Iterator[Wrong]:
    yield from _unproved(service, access, identities)
    yield from _wrong_people(access, identities)
    yield from _wrong_services(service, access, identities)
    yield from _wrong_runs(service, access, identities)


def _unproved(service: str, access: Access, identities: Identities) -> Iterator[Wrong]:
    right = {access.scope} if access.scope else set[str]()
    another = "ledger" if service != "ledger" else "connections"
    made = {
        "another audience": identities.user_token(scopes=right, aud="somebody"),
        "another key": identities.user_token(scopes=right, secret="x" * 40),
        "no tenant": identities.user_token(scopes=right, tenant=""),
        "a service token for another service": identities.service_token("executor", another),
    }
    yield Wrong("no token", None, UNAUTHENTICATED, "TOKEN_MISSING")
    expired = identities.user_token(scopes=right, exp=int(time.time()) - 3600)
    yield Wrong("expired", expired, UNAUTHENTICATED, "TOKEN_EXPIRED")
    for name, token in made.items():
        yield Wrong(name, token, UNAUTHENTICATED, "TOKEN_INVALID")


def _wrong_people(access: Access, identities: Identities) -> Iterator[Wrong]:
    if not access.users:
        token = identities.user_token(scopes={access.scope} if access.scope else ())
        yield Wrong("a person", token, PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    elif access.scope is not None:
        # A scope that merely begins alike must not do.
        token = identities.user_token(scopes={f"{access.scope}s", "other:read"})
        yield Wrong("without the scope", token, PERMISSION_DENIED, "SCOPE_MISSING")


def _wrong_services(service: str, access: Access, identities: Identities) -> Iterator[Wrong]:
    for caller in sorted(set(SERVICES) - access.services):
        token = identities.service_token(caller, service)
        yield Wrong(f"the service {caller}", token, PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
    for caller in sorted(access.services if not access.cross_tenant else ()):
        token = identities.service_token(caller, service, "*")
        yield Wrong(f"{caller} for all tenants", token, PERMISSION_DENIED, "CALLER_NOT_ALLOWED")


def _wrong_runs(service: str, access: Access, identities: Identities) -> Iterator[Wrong]:
    token = identities.run_token()
    if service not in _RUN_TOKEN_SERVICES:
        yield Wrong("a run token", token, UNAUTHENTICATED, "TOKEN_INVALID")
    elif not access.runs:
        yield Wrong("a run token", token, PERMISSION_DENIED, "CALLER_NOT_ALLOWED")
