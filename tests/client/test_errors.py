"""What a refused call raises, from the status and details that came with it."""

from __future__ import annotations

from datetime import timedelta

import grpc
import grpc.aio
import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from cogni.client.errors import (
    STATUS_TRAILER,
    Cancelled,
    CogniError,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    ServerFault,
    Unavailable,
    Violation,
    from_rpc_error,
)


def raised(code: grpc.StatusCode, message: str, *details: Message) -> CogniError:
    trailers = grpc.aio.Metadata()
    if details:
        status = status_pb2.Status(code=code.value[0], message=message)
        for detail in details:
            packed = Any()
            packed.Pack(detail)
            status.details.append(packed)
        trailers.add(STATUS_TRAILER, status.SerializeToString())
    return from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, message))


def info(reason: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="cogni", metadata={"id": "7"})


def test_reason_and_metadata_come_from_the_error_info() -> None:
    error = raised(grpc.StatusCode.NOT_FOUND, "No such run.", info("NOT_FOUND"))

    assert isinstance(error, NotFound)
    assert (error.reason, error.metadata, str(error)) == ("NOT_FOUND", {"id": "7"}, "No such run.")


def test_every_violated_field_is_listed() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="a", description="is required")
    bad.field_violations.add(field="b", description="is too long")

    error = raised(grpc.StatusCode.INVALID_ARGUMENT, "wrong", info("INVALID_REQUEST"), bad)

    assert isinstance(error, InvalidRequest)
    assert error.violations == (Violation("a", "is required"), Violation("b", "is too long"))


def test_the_delay_before_a_retry_is_read() -> None:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromTimedelta(timedelta(seconds=3))

    error = raised(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", info("LIMIT_EXCEEDED"), retry)

    assert isinstance(error, LimitExceeded)
    assert error.retry_after == timedelta(seconds=3)


def test_an_answer_that_is_not_cognis_has_no_reason() -> None:
    foreign = error_details_pb2.ErrorInfo(reason="QUOTA", domain="elsewhere.example")

    assert raised(grpc.StatusCode.INTERNAL, "oops", foreign).reason == ""
    assert isinstance(raised(grpc.StatusCode.INTERNAL, "oops"), ServerFault)


def test_nobody_listening_is_said_in_a_sentence() -> None:
    error = raised(grpc.StatusCode.UNAVAILABLE, "Connection refused")

    assert isinstance(error, Unavailable)
    assert "is it running" in str(error)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("CANCELLED", Unavailable),
        ("Locally cancelled by application!", Cancelled),
        ("Stream removed (Channel closed!)", Cancelled),
    ],
)
def test_a_call_that_a_stopping_server_dropped_is_unavailable(
    message: str, kind: type[CogniError]
) -> None:
    assert type(raised(grpc.StatusCode.CANCELLED, message)) is kind
