"""A connection: what it is, who may do what with it, and what state lets agents use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from services.connections.secret import AuthKind
from services.runtime.errors import ErrorKind, ServiceError, denied, etag_mismatch

ADMIN_SCOPE = "connections:admin"


class State(StrEnum):
    """Whether agents can use a connection; the contract's ConnectionState."""

    ACTIVE = "ACTIVE"
    REFRESHING = "REFRESHING"
    NEEDS_REAUTH = "NEEDS_REAUTH"
    REVOKED = "REVOKED"


class StateReason(StrEnum):
    """Why it is in its state; the contract's ConnectionStateReason."""

    NONE = ""
    CREDENTIAL_REJECTED = "CREDENTIAL_REJECTED"
    LOST_ROTATION = "LOST_ROTATION"
    WITHDRAWN_AT_PROVIDER = "WITHDRAWN_AT_PROVIDER"
    EXPIRED = "EXPIRED"
    CREDENTIAL_UNREADABLE = "CREDENTIAL_UNREADABLE"
    REVOKED_BY_CALLER = "REVOKED_BY_CALLER"
    ACCOUNT_SUSPENDED = "ACCOUNT_SUSPENDED"


@dataclass(frozen=True, slots=True)
class Consent:
    """The owner's word that `subject` may grant the connection too."""

    subject: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection without its secret. `revision` counts what callers can change."""

    tenant_id: str
    connection_id: str
    provider: str
    auth_kind: AuthKind
    display_name: str
    labels: Mapping[str, str]
    settings: Mapping[str, Any]
    owner: str
    account_id: str
    account_name: str
    scopes: tuple[str, ...]
    state: State
    state_reason: StateReason
    state_message: str
    state_change_time: datetime
    expire_time: datetime | None
    last_refresh_time: datetime | None
    last_lease_time: datetime | None
    create_time: datetime
    update_time: datetime
    revision: int
    consents: tuple[Consent, ...] = ()

    @property
    def etag(self) -> str:
        """Changes with every change that a caller can make."""
        return f"r{self.revision}"

    def may_be_granted_by(self, subject: str) -> bool:
        """Whether `subject` owns it or has the owner's consent."""
        return subject == self.owner or any(each.subject == subject for each in self.consents)


@dataclass(frozen=True, slots=True)
class Change:
    """A connection now; None when it was deleted."""

    connection_id: str
    provider: str
    connection: Connection | None


def check_may_change(connection: Connection, subject: str, scopes: frozenset[str]) -> None:
    """Raise NOT_OWNER unless the subject owns the connection or is an administrator."""
    if subject != connection.owner and ADMIN_SCOPE not in scopes:
        raise denied(
            "NOT_OWNER",
            f"Only the owner, or a caller with {ADMIN_SCOPE}, may change this connection.",
            metadata={"id": connection.connection_id},
        )


def check_may_share(connection: Connection, subject: str) -> None:
    """Raise NOT_OWNER unless the subject owns the connection: nobody else can consent for them."""
    if subject != connection.owner:
        raise denied(
            "NOT_OWNER",
            "Only the owner may say who else grants this connection.",
            metadata={"id": connection.connection_id},
        )


def check_may_grant(connection: Connection, subject: str, scopes: frozenset[str]) -> None:
    """Raise NOT_OWNER unless the subject may name it in a grant or is an administrator."""
    if not connection.may_be_granted_by(subject) and ADMIN_SCOPE not in scopes:
        raise denied(
            "NOT_OWNER",
            "Only the owner, those the owner has consented to, and callers with "
            f"{ADMIN_SCOPE} may use this connection.",
            metadata={"id": connection.connection_id},
        )


def check_etag(connection: Connection, etag: str) -> None:
    """Raise ETAG_MISMATCH when an etag was given and is not the present one."""
    if etag and etag != connection.etag:
        raise etag_mismatch("connection", connection.connection_id)


def check_usable(connection: Connection) -> None:
    """Raise unless leases of the connection can be given."""
    if connection.state is State.NEEDS_REAUTH:
        raise ServiceError(
            ErrorKind.FAILED_PRECONDITION,
            "CONNECTION_NEEDS_REAUTH",
            "A person must connect again before this connection can be used.",
            metadata={
                "id": connection.connection_id,
                "state_reason": connection.state_reason.value,
            },
        )
    check_not_revoked(connection)


def check_renewable(connection: Connection, *, by_itself: bool) -> None:
    """Raise unless the connection's session can be renewed. `by_itself` says that it takes no
    person: then one that needed somebody, at the provider perhaps, is tried again when asked."""
    if by_itself:
        check_not_revoked(connection)
    else:
        check_usable(connection)


def check_not_revoked(connection: Connection) -> None:
    """Raise CONNECTION_REVOKED for one that was withdrawn for good."""
    if connection.state is State.REVOKED:
        raise ServiceError(
            ErrorKind.FAILED_PRECONDITION,
            "CONNECTION_REVOKED",
            "The connection was revoked.",
            metadata={"id": connection.connection_id},
        )


STATE_MESSAGES: Mapping[StateReason, str] = {
    StateReason.CREDENTIAL_REJECTED: "The provider refuses the stored credential: connect again.",
    StateReason.LOST_ROTATION: (
        "The provider's answer to a refresh was lost, and it no longer honours the refresh token "
        "stored here: connect again."
    ),
    StateReason.WITHDRAWN_AT_PROVIDER: "The right was withdrawn at the provider: connect again.",
    StateReason.EXPIRED: "The right's lifetime is over: connect again.",
    StateReason.CREDENTIAL_UNREADABLE: (
        "The stored credential cannot be decrypted: tell the operator, then connect again."
    ),
    StateReason.ACCOUNT_SUSPENDED: (
        "The account or installation is suspended or deactivated at the provider."
    ),
}
