"""The one way a Cogni service says no: typed errors that know their reason, and no grpc."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType


class ErrorKind(StrEnum):
    """What sort of refusal it is; each value is the name of the gRPC code it becomes."""

    CANCELLED = "CANCELLED"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ABORTED = "ABORTED"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    INTERNAL = "INTERNAL"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule of a request; `field` is a path such as `units[3].amount.value`."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Precondition:
    """One thing that must hold before the call can succeed: its type, whose it is, what to do."""

    type: str
    subject: str
    description: str


@dataclass(frozen=True, slots=True)
class QuotaViolation:
    """One limit that was reached: whose limit it is, and what it allows."""

    subject: str
    description: str


class ServiceError(Exception):
    """A refusal meant for the caller: everything in it may be shown to them.

    `reason` is a name of `cogni.type.v1.ErrorReason` without its prefix, `message` says what was
    wrong and what to do next. The error interceptor turns it into a `google.rpc.Status`.
    """

    def __init__(
        self,
        kind: ErrorKind,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: tuple[Violation, ...] = (),
        retry_after: timedelta | None = None,
        preconditions: tuple[Precondition, ...] = (),
        quota: tuple[QuotaViolation, ...] = (),
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.violations = tuple(violations)
        self.retry_after = retry_after
        self.preconditions = tuple(preconditions)
        self.quota = tuple(quota)

    def __repr__(self) -> str:
        return f"ServiceError({self.kind}, {self.reason}, {self.message!r})"


def invalid(*violations: Violation) -> ServiceError:
    """The request breaks documented rules; name every one of them at once."""
    listed = "; ".join(f"{each.field}: {each.description}" for each in violations[:3])
    more = f"; and {len(violations) - 3} more" if len(violations) > 3 else ""
    return ServiceError(
        ErrorKind.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        f"The request is not valid: {listed}{more}.",
        violations=violations,
    )


def not_found(resource: str, id: str) -> ServiceError:
    """No such resource in the caller's tenant; another tenant's looks exactly the same."""
    return ServiceError(
        ErrorKind.NOT_FOUND,
        "NOT_FOUND",
        f"There is no {resource} {id!r} in your tenant.",
        metadata={"resource": resource, "id": id},
    )


def already_exists(resource: str, id: str) -> ServiceError:
    """The resource was created before by another request."""
    return ServiceError(
        ErrorKind.ALREADY_EXISTS,
        "ALREADY_EXISTS",
        f"The {resource} {id!r} already exists.",
        metadata={"resource": resource, "id": id},
    )


def reused_request_id(request_id: str) -> ServiceError:
    """The request_id was used before with other content; nothing was changed."""
    return ServiceError(
        ErrorKind.ALREADY_EXISTS,
        "REQUEST_ID_REUSED",
        f"The request_id {request_id!r} was used before with different content; "
        "nothing was changed. Use a new request_id for a new request.",
        metadata={"request_id": request_id},
    )


def etag_mismatch(resource: str, id: str) -> ServiceError:
    """The resource changed since the caller read it."""
    return ServiceError(
        ErrorKind.ABORTED,
        "ETAG_MISMATCH",
        f"The {resource} {id!r} changed since its etag was read; read it again and reapply.",
        metadata={"resource": resource, "id": id},
    )


def limit(subject: str, description: str, *, retry_after: timedelta | None = None) -> ServiceError:
    """A named limit is reached; `description` says what it allows."""
    return ServiceError(
        ErrorKind.RESOURCE_EXHAUSTED,
        "LIMIT_EXCEEDED",
        f"A limit is reached: {description}",
        retry_after=retry_after,
        quota=(QuotaViolation(subject, description),),
    )


def failed_precondition(
    reason: str,
    message: str,
    *preconditions: Precondition,
    metadata: Mapping[str, str] | None = None,
) -> ServiceError:
    """The resource is not in a state that allows the call; retrying alone changes nothing."""
    return ServiceError(
        ErrorKind.FAILED_PRECONDITION,
        reason,
        message,
        metadata=metadata,
        preconditions=preconditions,
    )


def denied(reason: str, message: str, *, metadata: Mapping[str, str] | None = None) -> ServiceError:
    """The caller is known and may not do this."""
    return ServiceError(ErrorKind.PERMISSION_DENIED, reason, message, metadata=metadata)


def unauthenticated(reason: str, message: str) -> ServiceError:
    """The caller did not prove who they are."""
    return ServiceError(ErrorKind.UNAUTHENTICATED, reason, message)


def unavailable(message: str, *, retry_after: timedelta = timedelta(seconds=1)) -> ServiceError:
    """The server cannot serve this now; the same call may succeed after `retry_after`."""
    return ServiceError(ErrorKind.UNAVAILABLE, "UNAVAILABLE", message, retry_after=retry_after)


class PeerError(Exception):
    """Another Cogni service answered with an error, or could not be reached.

    `kind` and `reason` are the peer's ("" when it sent no ErrorInfo). Use cases decide what it
    means to their caller; undecided, an unreachable peer becomes UNAVAILABLE and anything else
    INTERNAL.
    """

    def __init__(
        self,
        service: str,
        kind: ErrorKind,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: timedelta | None = None,
    ) -> None:
        super().__init__(f"{service} answered {kind} {reason}: {message}")
        self.service = service
        self.kind = kind
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.retry_after = retry_after


class StartError(Exception):
    """Raised when a process cannot start; the text is whole sentences for the operator."""
