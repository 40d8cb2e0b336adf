"""The Python client of Cogni: `Client`, `AsyncClient`, their settings and typed errors."""

from cogni.client.aio import AsyncClient
from cogni.client.errors import (
    AlreadyExists,
    Cancelled,
    CogniError,
    Conflict,
    CursorInvalid,
    DeadlineExceeded,
    InvalidRequest,
    LimitExceeded,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    NotImplementedYet,
    NotPossibleNow,
    ServerFault,
    Unavailable,
    Violation,
)
from cogni.client.settings import ClientSettings, SettingsError
from cogni.client.sync import Client
from cogni.client.values import from_json_message, to_struct, to_value

__all__ = [
    "AlreadyExists",
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientSettings",
    "CogniError",
    "Conflict",
    "CursorInvalid",
    "DeadlineExceeded",
    "InvalidRequest",
    "LimitExceeded",
    "NotAllowed",
    "NotAuthenticated",
    "NotFound",
    "NotImplementedYet",
    "NotPossibleNow",
    "ServerFault",
    "SettingsError",
    "Unavailable",
    "Violation",
    "from_json_message",
    "to_struct",
    "to_value",
]
