"""Calls over raw channels, and what their errors carry, for tests of any service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2

from tests.plugins.pets import SERVICE, FeedPetRequest, FeedPetResponse


@dataclass(frozen=True)
class Refusal:
    """One error as a client sees it."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo
    details: list[Any]
    trailers: str

    @property
    def reason(self) -> str:
        return self.info.reason

    def detail(self, kind: type) -> Any:
        """The one detail of that type."""
        [found] = [each for each in self.details if isinstance(each, kind)]
        return found


_KINDS = (
    error_details_pb2.ErrorInfo,
    error_details_pb2.BadRequest,
    error_details_pb2.RetryInfo,
    error_details_pb2.PreconditionFailure,
    error_details_pb2.QuotaFailure,
)


def method_of(name: str) -> MethodDescriptor:
    """The descriptor of "/package.Service/Method"."""
    service, method = name.strip("/").split("/")
    return descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """Reads the error; fails the test unless it has exactly one ErrorInfo of our domain."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    details = []
    for packed in status.details:
        [kind] = [kind for kind in _KINDS if packed.Is(kind.DESCRIPTOR)]
        detail = kind()
        packed.Unpack(detail)
        details.append(detail)
    [info] = [each for each in details if isinstance(each, error_details_pb2.ErrorInfo)]
    assert info.domain == "cogni"
    return Refusal(error.code(), error.details() or "", info, details, repr(trailers))


async def refused(call: Any) -> Refusal:
    """Awaits a unary call, or reads a stream, that must fail; returns how."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await _finish(call)
    return refusal_of(failed.value)


async def _finish(call: Any) -> None:
    if not hasattr(call, "__aiter__"):
        await call
        return
    async for _ in call:
        pass


def feed(channel: grpc.aio.Channel, method: str = "FeedPet") -> Any:
    """The unary stub of a PetService method."""
    return channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=FeedPetRequest.SerializeToString,
        response_deserializer=FeedPetResponse.FromString,
    )


def watch(channel: grpc.aio.Channel) -> Any:
    """The stub of PetService.WatchPet."""
    return channel.unary_stream(
        f"/{SERVICE}/WatchPet",
        request_serializer=FeedPetRequest.SerializeToString,
        response_deserializer=FeedPetResponse.FromString,
    )
