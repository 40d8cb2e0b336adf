"""Walks every RPC of a server with hostile requests and proves that none is answered INTERNAL.

What was written on the way is read back at the end: a value that is taken and cannot be read
again is the worst answer of all.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.runtime.server import Application
from tests.plugins.calls import method_of
from tests.plugins.identities import Identities
from tests.plugins.mutants import DEPTH_MAX, Shapes, is_map, mutants, put
from tests.plugins.serving import Served

_DEFECTS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
#: A stream that has shown all it has goes on for ever; so long it may take to show a defect.
_STREAM_SECONDS = 0.5
_CALL_SECONDS = 60
_AT_ONCE = 16
_HARVEST_MAX = 12
#: What ends a thing comes after all that needs it.
_ENDS = ("Cancel", "Close", "Delete", "Release", "Revoke")
_READS = ("Get", "List", "Preview", "Simulate", "Explain")


async def prove_bad_input(
    service: str,
    application: Application,
    served: Served,
    identities: Identities,
    known: Mapping[str, Any],
) -> int:
    """Fails with every request that was answered INTERNAL or UNKNOWN; returns how many were sent.

    `known` makes the valid-looking requests pass the rules: values by field name (ids of things
    that are there), messages by full name.
    """
    walk = _Walk(service, application, served, identities, known)
    methods = [method_of(name) for name in application.methods()]
    for method in sorted(methods, key=lambda each: each.name.startswith(_ENDS)):
        if not method.server_streaming:
            await walk.mutate(method)
    for method in methods:
        await walk.read_back(method)
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
        self._known = known
        self._scopes = {each.scope for each in application.access.values() if each.scope}
        self._shapes = Shapes(known)
        self._tokens: dict[str, str] = {}
        self._channel = served.channel()
        self._met: dict[str, dict[Any, None]] = defaultdict(dict)
        self.defects: list[str] = []
        self.count = 0

    async def mutate(self, method: MethodDescriptor) -> None:
        """Call the method with every mutant of an empty and of a valid-looking request."""
        empty = GetMessageClass(method.input_type)()
        full = self._shapes.of(method.input_type)
        code = await self._call(method, "as it should be", full)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            self.defects.append(f"{method.name}: say in `known` what makes its request valid")
        waiting: list[Any] = []
        for begun, base, depth in (("empty", empty, 1), ("full", full, DEPTH_MAX)):
            for what, request in mutants(base, self._shapes, method.input_type, depth):
                if begun == "full" and not what.startswith("request_id"):
                    self._renew(request)
                waiting.append(self._call(method, f"{begun}, {what}", request))
        for start in range(0, len(waiting), _AT_ONCE):
            await asyncio.gather(*waiting[start : start + _AT_ONCE])

    async def read_back(self, method: MethodDescriptor) -> None:
        """Call the method as it should be called, and for all that was met on the way."""
        if method.server_streaming:
            await self._call(method, "afterwards", GetMessageClass(method.input_type)())
        await asyncio.gather(
            *(
                self._call(method, f"afterwards, {_short(request)}", request)
                for request in self._rereads(method)
            )
        )

    def _rereads(self, method: MethodDescriptor) -> Iterator[Any]:
        yield self._shapes.of(method.input_type)
        fields = method.input_type.fields_by_name
        if "page_token" in fields:
            yield GetMessageClass(method.input_type)(page_size=1000)
        if not method.server_streaming and method.name.startswith(_READS):
            for name, field in fields.items():
                met = list(self._met[name])
                for value in met[:: 1 + len(met) // _HARVEST_MAX]:
                    request = self._shapes.of(method.input_type)
                    put(request, field, value)
                    yield request

    def _renew(self, request: Any) -> None:
        field = request.DESCRIPTOR.fields_by_name.get("request_id")
        if field is not None:
            request.request_id = self._shapes.of(request.DESCRIPTOR).request_id

    async def _call(self, method: MethodDescriptor, what: str, request: Any) -> grpc.StatusCode:
        name = f"/{method.containing_service.full_name}/{method.name}"
        self.count += 1
        streams = method.server_streaming
        make = self._channel.unary_stream if streams else self._channel.unary_unary
        call = make(
            name,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )(
            request,
            metadata=(("authorization", f"Bearer {self._token(name)}"),),
            timeout=_STREAM_SECONDS if streams else _CALL_SECONDS,
        )
        try:
            if streams:
                async for _ in call:
                    pass
            else:
                self._harvest(await call)
        except grpc.aio.AioRpcError as error:
            code: grpc.StatusCode = error.code()
            if code in _DEFECTS:
                self.defects.append(f"{method.name}, {what}: {code.name} {error.details()}")
            return code
        return grpc.StatusCode.OK

    def _token(self, method: str) -> str:
        if method not in self._tokens:
            self._tokens[method] = self._identities.allowed(
                self._service, self._access[method], self._scopes
            )
        return self._tokens[method]

    def _harvest(self, message: Message) -> None:
        """Remember the ids in an answer, for the reads at the end."""
        for field, value in message.ListFields():
            if field.name.endswith("_id"):
                self._met[field.name][value] = None
            elif field.message_type is not None and not is_map(field):
                for each in value if field.is_repeated else (value,):
                    self._harvest(each)


def _short(message: Message) -> str:
    return str(message).replace("\n", " ")[:120]
