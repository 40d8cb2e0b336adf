"""Walks every RPC of a server as another tenant with ids of this one: they are as good as unknown.

Each request is sent twice, with ids of things that are there and with ids that nobody has. The
answers must be the same, so that nothing can be inferred from them, and must hold nothing of ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from services.runtime.ids import new_id
from services.runtime.server import Application
from tests.plugins.calls import method_of, refusal_of
from tests.plugins.identities import Identities
from tests.plugins.mutants import Shapes
from tests.plugins.serving import Served

STRANGERS_TENANT = "strangers"
#: These may answer OK to an id that is not there: with an empty list, by each unit, or because
#: what is gone is gone.
_MAY_FIND_NOTHING = ("List", "Watch", "Export", "RecordUsage", "Delete")
_STREAM_SECONDS = 0.3
_CALL_SECONDS = 60
_UUID = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class _Answer:
    code: str
    reason: str
    text: str
    body: bytes


async def prove_strangers(
    service: str,
    application: Application,
    served: Served,
    identities: Identities,
    known: Mapping[str, Any],
) -> int:
    """Fails with every RPC that tells a stranger of what is there; returns how many took an id.

    `known` makes the requests, as in `prove_bad_input`; each id in it must be of something there.
    """
    walk = _Walk(service, application, served, identities, known)
    for name in application.methods():
        await walk.visit(method_of(name))
    assert not walk.defects, "\n" + "\n".join(walk.defects)
    return walk.count


class _Walk:
    def __init__(
        self,
        service: str,
        application: Application,
        served: Served,
        identities: Identities,
        known: Mapping[str, Any],
    ) -> None:
        self._service = service
        self._access = application.access
        self._identities = identities
        self._channel = served.channel()
        self._scopes = {each.scope for each in application.access.values() if each.scope}
        self._shapes = Shapes(known)
        written = (
            each.SerializeToString() if isinstance(each, Message) else str(each).encode()
            for each in known.values()
        )
        self._ours = {found for each in written for found in _UUID.findall(each)}
        self.defects: list[str] = []
        self.count = 0

    async def visit(self, method: MethodDescriptor) -> None:
        """Call it with our ids and with nobody's, and compare."""
        ours = self._shapes.of(method.input_type).SerializeToString()
        nobodys = self._shapes.of(method.input_type).SerializeToString()
        for found in self._ours:
            nobodys = nobodys.replace(found, new_id().encode())
        of_ours = await self._call(method, ours)
        of_nobodys = await self._call(method, nobodys)
        sent = {found for found in self._ours if found in ours}
        self.count += bool(sent)
        if any(found in of_ours.body for found in self._ours - sent):
            self.defects.append(f"{method.name} answers with an id of ours")
        if (of_ours.code, of_ours.reason, _masked(of_ours)) != (
            of_nobodys.code,
            of_nobodys.reason,
            _masked(of_nobodys),
        ):
            self.defects.append(
                f"{method.name} tells ours from nobody's: {of_ours.code} {of_ours.reason} "
                f"{of_ours.text!r}, {of_nobodys.code} {of_nobodys.reason} {of_nobodys.text!r}"
            )
        if sent and of_ours.code == "OK" and not method.name.startswith(_MAY_FIND_NOTHING):
            self.defects.append(f"{method.name} does it to what is ours")

    async def _call(self, method: MethodDescriptor, request: bytes) -> _Answer:
        name = f"/{method.containing_service.full_name}/{method.name}"
        token = self._identities.allowed(
            self._service, self._access[name], self._scopes, STRANGERS_TENANT
        )
        streams = method.server_streaming
        make = self._channel.unary_stream if streams else self._channel.unary_unary
        call = make(name, request_serializer=bytes, response_deserializer=bytes)(
            request,
            metadata=(("authorization", f"Bearer {token}"),),
            timeout=_STREAM_SECONDS if streams else _CALL_SECONDS,
        )
        body = b""
        try:
            if streams:
                async for part in call:
                    body += part
            else:
                body = await call
        except grpc.aio.AioRpcError as error:
            if streams and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return _Answer("OK", "", "", body)
            reason = refusal_of(error).reason
            return _Answer(error.code().name, reason, error.details() or "", body)
        return _Answer("OK", "", "", body)


def _masked(answer: _Answer) -> str:
    return _UUID.sub(b"ID", answer.text.encode()).decode()
