"""What is sealed in a row: the secret a person gave, and the session a provider gave for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

SECRET = "secret"  # noqa: S105 - the name of a kind of row
SESSION = "session"


class AuthKind(StrEnum):
    """How a connection was proven; the names of the contract's AuthKind without prefix."""

    NONE = "NONE"
    API_KEY = "API_KEY"
    APP_PASSWORD = "APP_PASSWORD"  # noqa: S105 - the name of a kind
    OAUTH2 = "OAUTH2"
    GITHUB_APP = "GITHUB_APP"


@dataclass(frozen=True, slots=True)
class Secret:
    """What a person gave, by field name; its text form never shows a value."""

    kind: AuthKind
    values: Mapping[str, str] = field(repr=False)

    def to_bytes(self) -> bytes:
        """The secret as it is sealed."""
        return _dump({"kind": self.kind.value, "values": dict(self.values)})

    @classmethod
    def from_bytes(cls, content: bytes) -> Secret:
        """The secret that was sealed."""
        parsed = json.loads(content.decode())
        return cls(AuthKind(parsed["kind"]), parsed["values"])


@dataclass(frozen=True, slots=True)
class Session:
    """What a provider gave: tokens by name, until when the access token works, and its scopes.

    `expire_time` None means it does not expire by itself.
    """

    values: Mapping[str, str] = field(repr=False)
    expire_time: datetime | None
    scopes: tuple[str, ...] = ()
    account_id: str = ""
    account_name: str = ""

    def to_bytes(self) -> bytes:
        """The session as it is sealed."""
        return _dump(
            {
                "values": dict(self.values),
                "expire_time": self.expire_time.isoformat() if self.expire_time else None,
                "scopes": list(self.scopes),
                "account_id": self.account_id,
                "account_name": self.account_name,
            }
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> Session:
        """The session that was sealed."""
        parsed = json.loads(content.decode())
        expire_time = parsed["expire_time"]
        return cls(
            values=parsed["values"],
            expire_time=datetime.fromisoformat(expire_time).astimezone(UTC)
            if expire_time
            else None,
            scopes=tuple(parsed["scopes"]),
            account_id=parsed["account_id"],
            account_name=parsed["account_name"],
        )


def _dump(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
