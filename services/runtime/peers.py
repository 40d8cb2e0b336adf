"""Reads what another Cogni service answered: its status becomes a typed PeerError."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from services.runtime.errors import ErrorKind, PeerError

_DETAILS_KEY = "grpc-status-details-bin"


def peer_error(service: str, error: grpc.RpcError) -> PeerError:
    """The error with the peer's kind, reason, metadata and retry delay.

    Errors gRPC made by itself (nobody answered, the deadline passed) carry no reason.
    """
    code, details, trailers = _parts(error)
    info, retry_after = _details(trailers)
    return PeerError(
        service,
        _kind(code, info.reason),
        info.reason,
        details or code.name,
        metadata=dict(info.metadata),
        retry_after=retry_after,
    )


def _parts(error: Any) -> tuple[grpc.StatusCode, str, Iterable[tuple[str, Any]]]:
    # AioRpcError and the synchronous stub's error have these by duck typing only.
    return error.code(), error.details() or "", error.trailing_metadata() or ()


def _kind(code: grpc.StatusCode, reason: str) -> ErrorKind:
    if code is grpc.StatusCode.CANCELLED and not reason:
        # Nobody here cancelled (that would not be an RpcError): a stopping server answers so to
        # calls that it never began.
        return ErrorKind.UNAVAILABLE
    # UNKNOWN and DATA_LOSS are never sent by our servers: to us they are defects of the peer.
    return ErrorKind.__members__.get(code.name, ErrorKind.INTERNAL)


def _details(
    trailers: Iterable[tuple[str, Any]],
) -> tuple[error_details_pb2.ErrorInfo, timedelta | None]:
    info, retry_after = error_details_pb2.ErrorInfo(), None
    status = status_pb2.Status()
    for key, value in trailers:
        if key == _DETAILS_KEY:
            try:
                status.ParseFromString(value)
            except DecodeError:
                # A proxy in between may have cut it; the code alone still says something.
                continue
    for detail in status.details:
        # Unpack answers False, and changes nothing, when the detail is of another type.
        retry = error_details_pb2.RetryInfo()
        if not detail.Unpack(info) and detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta()
    return info, retry_after
