"""What callers ask about connections, in the domain's own terms."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from services.connections.secret import AuthKind, Secret
from services.runtime.jsonvalues import canonical_json


@dataclass(frozen=True, slots=True)
class CreateWanted:
    """What a caller asks to connect."""

    request_id: str
    provider: str
    auth_kind: AuthKind | None
    display_name: str
    labels: Mapping[str, str]
    settings: Mapping[str, Any]
    secret: Secret | None = field(repr=False)
    consent_subjects: tuple[str, ...]
    skip_check: bool

    def hash(self) -> bytes:
        """Stands for the request without its secret, whose hash could be guessed against."""
        return hashlib.sha256(
            canonical_json(
                {
                    "provider": self.provider,
                    "auth_kind": self.auth_kind.value if self.auth_kind else "",
                    "display_name": self.display_name,
                    "labels": dict(self.labels),
                    "settings": dict(self.settings),
                    "secret_kind": self.secret.kind.value if self.secret else "",
                    "consent_subjects": sorted(set(self.consent_subjects)),
                }
            )
        ).digest()


@dataclass(frozen=True, slots=True)
class UpdateWanted:
    """What a caller asks to change: the named fields take these values."""

    connection_id: str
    fields: frozenset[str]
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    consent_subjects: frozenset[str] = frozenset()
    etag: str = ""
    secret: Secret | None = field(default=None, repr=False)
    skip_check: bool = False


@dataclass(frozen=True, slots=True)
class NewConnectionWanted:
    """What a connection made by an authorization will be."""

    provider: str
    display_name: str
    labels: Mapping[str, str]
    settings: Mapping[str, Any]
    client_secret: str = field(repr=False)
    consent_subjects: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything but the client's secret."""
        return {
            "provider": self.provider,
            "display_name": self.display_name,
            "labels": dict(self.labels),
            "settings": dict(self.settings),
            "consent_subjects": sorted(set(self.consent_subjects)),
        }


@dataclass(frozen=True, slots=True)
class ConnectionFilter:
    """Which connections to list; empty fields stand for all."""

    provider: str = ""
    state: str = ""
    owner: str = ""
    grantable_by: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    authorization_id: str = ""
