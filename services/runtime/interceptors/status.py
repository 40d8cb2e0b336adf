"""Turns whatever a handler raised into a google.rpc.Status that tells the caller, and no more."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from sqlalchemy.exc import DBAPIError

from services.runtime.errors import (
    ErrorKind,
    PeerError,
    QuotaViolation,
    ServiceError,
    Violation,
    unavailable,
)

_log = logging.getLogger(__name__)

ERROR_DOMAIN = "cogni"
STATUS_DETAILS_KEY = "grpc-status-details-bin"

#: gRPC clients refuse trailers above 8 KiB by default, and then show none of the error. The status
#: travels in base64 beside a percent-encoded copy of the message.
STATUS_BYTES_MAX = 4 * 1024
_MESSAGE_LENGTH_MAX = 500
_DESCRIPTION_LENGTH_MAX = 300
_METADATA_LENGTH_MAX = 256
_METADATA_ENTRIES_MAX = 16
_RETRY_AFTER = timedelta(seconds=1)


def service_error(error: BaseException) -> ServiceError | None:
    """The refusal that `error` means, or None when nobody foresaw it."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, PeerError):
        return _peer_failure(error)
    # Sockets, name resolution, timeouts of the operating system: what the server stands on.
    if isinstance(error, OSError) or (
        isinstance(error, DBAPIError) and error.connection_invalidated
    ):
        # One line, no traceback: while the database is away every call ends here.
        _log.warning("unreachable: %s: %s", type(error).__name__, error)
        return unavailable("Something this server stands on cannot be reached; retry.")
    return None


def _peer_failure(error: PeerError) -> ServiceError | None:
    if error.kind not in {
        ErrorKind.UNAVAILABLE,
        ErrorKind.DEADLINE_EXCEEDED,
        ErrorKind.RESOURCE_EXHAUSTED,
    }:
        # The peer refused something this server asked of its own accord: our defect, not theirs.
        return None
    return unavailable(
        f"The {error.service} service cannot be reached at present; retry.",
        retry_after=error.retry_after or _RETRY_AFTER,
    )


def unforeseen(trace_id: str) -> ServiceError:
    """The fixed answer to everything nobody foresaw."""
    return ServiceError(
        ErrorKind.INTERNAL,
        "INTERNAL",
        f"Something unforeseen failed; give the operator this trace id: {trace_id}",
    )


def not_implemented() -> ServiceError:
    """The fixed answer of methods that are not built, or not known."""
    return ServiceError(
        ErrorKind.UNIMPLEMENTED, "NOT_IMPLEMENTED", "This RPC is not built in this release."
    )


def deadline_exceeded(seconds: float) -> ServiceError:
    """The call took longer than its deadline, or than the server's own bound."""
    return ServiceError(
        ErrorKind.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        f"The call did not finish within {seconds:g} seconds.",
    )


def to_status(error: ServiceError, trace_id: str) -> status_pb2.Status:
    """A Status with exactly one ErrorInfo and each other detail at most once, of bounded size."""
    status = status_pb2.Status(
        code=code_of(error).value[0], message=_cut(error.message, _MESSAGE_LENGTH_MAX)
    )
    _attach(status, _error_info(error, trace_id))
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromTimedelta(error.retry_after)
        _attach(status, retry)
    for detail in _listed_details(error):
        _attach(status, detail)
    return status


def code_of(error: ServiceError) -> grpc.StatusCode:
    """The gRPC code of the error's kind."""
    return grpc.StatusCode[error.kind.value]


def _attach(status: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    if status.ByteSize() + packed.ByteSize() <= STATUS_BYTES_MAX:
        status.details.append(packed)


def _error_info(error: ServiceError, trace_id: str) -> error_details_pb2.ErrorInfo:
    metadata = {
        key: _cut(value, _METADATA_LENGTH_MAX)
        for key, value in list(error.metadata.items())[:_METADATA_ENTRIES_MAX]
    }
    if trace_id:
        metadata["trace_id"] = trace_id
    return error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata)


def _listed_details(error: ServiceError) -> Iterator[Message]:
    if error.violations:
        yield _bad_request(error.violations)
    if error.preconditions:
        yield error_details_pb2.PreconditionFailure(
            violations=[
                error_details_pb2.PreconditionFailure.Violation(
                    type=each.type, subject=each.subject, description=each.description
                )
                for each in error.preconditions
            ]
        )
    if error.quota:
        yield error_details_pb2.QuotaFailure(violations=[_quota(each) for each in error.quota])


def _quota(violation: QuotaViolation) -> error_details_pb2.QuotaFailure.Violation:
    return error_details_pb2.QuotaFailure.Violation(
        subject=violation.subject, description=violation.description
    )


def _bad_request(violations: tuple[Violation, ...]) -> error_details_pb2.BadRequest:
    """As many violations as fit; the last entry then says how many do not."""
    detail = error_details_pb2.BadRequest()
    budget = STATUS_BYTES_MAX - 2 * _MESSAGE_LENGTH_MAX - 512
    for index, violation in enumerate(violations):
        entry = detail.field_violations.add(
            field=_cut(violation.field, _DESCRIPTION_LENGTH_MAX),
            description=_cut(violation.description, _DESCRIPTION_LENGTH_MAX),
        )
        if detail.ByteSize() > budget:
            entry.field = ""
            entry.description = f"and {len(violations) - index} more violations"
            break
    return detail


def _cut(text: str, length_max: int) -> str:
    return text if len(text) <= length_max else text[: length_max - 1] + "…"
