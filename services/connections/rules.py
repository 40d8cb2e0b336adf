"""What every request must satisfy before a use case sees it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from cogni.connections.v1 import connections_service_pb2 as messages
from cogni.connections.v1 import credential_pb2 as credential_messages
from services.runtime.errors import Violation
from services.runtime.validation import (
    RuleTable,
    custom,
    duration,
    each,
    enum_known,
    integer,
    items,
    keys,
    mask,
    nested,
    one_of_set,
    page,
    required,
    struct,
    text,
    timestamp,
    uuid,
)

UPDATABLE = frozenset({"display_name", "labels", "settings", "consents"})
SETTINGS_BYTES_MAX = 16 * 1024
_PROVIDER = r"[a-z0-9_]{1,63}(:[a-z0-9][a-z0-9._-]{0,62})?"
# Ids of other services are opaque here; this only bounds them.
_OPAQUE = r"[\x21-\x7e]{1,128}"
_NAME = r"[^\x00-\x1f\x7f]*"
_PROVIDER_SAYS = 'must be an id from ListProviders, or "mcp:" and a name, for example "mcp:linear"'
_VISIBLE_SAYS = "must be visible ASCII characters without spaces"
_NAME_SAYS = "must not contain control characters or line breaks"


def _secret_kinds(secret: credential_messages.ConnectionSecret) -> Iterator[Violation]:
    if secret.WhichOneof("kind") is None:
        yield Violation("kind", "one of api_key, app_password, oauth_tokens is required")


_LABELS = (
    items("labels", max_items=32),
    keys("labels", text(max_length=63, min_length=1, pattern=_NAME, says=_NAME_SAYS)),
    each("labels", text(max_length=255, pattern=_NAME, says=_NAME_SAYS)),
)
_ID = (required("connection_id"), uuid("connection_id"))
_SECRET = nested("secret", custom(_secret_kinds), nested("oauth_tokens", timestamp("expire_time")))
_CONSENTS = (
    items("consent_subjects", max_items=100),
    each("consent_subjects", text(max_length=255, min_length=1, pattern=_NAME, says=_NAME_SAYS)),
)
_SCOPES = (
    items("scopes", max_items=64),
    each("scopes", text(max_length=255, min_length=1, pattern=r"[\x21-\x7e]+", says=_VISIBLE_SAYS)),
)


def _consents_are_unique(request: messages.UpdateConnectionRequest) -> Iterator[Violation]:
    subjects = [consent.subject for consent in request.connection.consents]
    if len(set(subjects)) != len(subjects):
        yield Violation("connection.consents", "must name each subject once")


def _mask_or_secret(request: messages.UpdateConnectionRequest) -> Iterator[Violation]:
    if not request.HasField("update_mask") and not request.HasField("secret"):
        yield Violation("update_mask", "is required unless a secret is given")


RULES: RuleTable = {
    messages.ListProvidersRequest: page(),
    messages.CreateConnectionRequest: (
        required("request_id"),
        uuid("request_id"),
        required("provider"),
        text("provider", max_length=127, pattern=_PROVIDER, says=_PROVIDER_SAYS),
        enum_known("auth_kind"),
        text("display_name", max_length=200, pattern=_NAME, says=_NAME_SAYS),
        *_LABELS,
        struct("settings", max_bytes=SETTINGS_BYTES_MAX),
        _SECRET,
        *_CONSENTS,
    ),
    messages.GetConnectionRequest: _ID,
    messages.ListConnectionsRequest: (
        *page(),
        text("provider", max_length=127, pattern=_PROVIDER, says=_PROVIDER_SAYS),
        enum_known("state"),
        text("owner", max_length=255, pattern=_NAME, says=_NAME_SAYS),
        *_LABELS,
        uuid("authorization_id"),
    ),
    messages.UpdateConnectionRequest: (
        required("connection"),
        nested(
            "connection",
            *_ID,
            text("display_name", max_length=200, pattern=_NAME, says=_NAME_SAYS),
            *_LABELS,
            struct("settings", max_bytes=SETTINGS_BYTES_MAX),
            items("consents", max_items=100),
            each(
                "consents",
                required("subject"),
                text("subject", max_length=255, pattern=_NAME, says=_NAME_SAYS),
            ),
            text("etag", max_length=64),
        ),
        mask("update_mask", UPDATABLE),
        custom(_mask_or_secret),
        custom(_consents_are_unique),
        _SECRET,
    ),
    messages.DeleteConnectionRequest: (*_ID, text("etag", max_length=64)),
    messages.TestConnectionRequest: (
        *_ID,
        items("required_scopes", max_items=64),
        each(
            "required_scopes",
            text(max_length=255, min_length=1, pattern=r"[\x21-\x7e]+", says=_VISIBLE_SAYS),
        ),
    ),
    messages.ListConnectionToolsRequest: _ID,
    messages.RefreshConnectionRequest: _ID,
    messages.ListInstallationsRequest: (
        text("provider", max_length=127, pattern=f"({_PROVIDER})?"),
        required("settings"),
        struct("settings", max_bytes=SETTINGS_BYTES_MAX),
        *page(),
    ),
    messages.BeginAuthorizationRequest: (
        required("request_id"),
        uuid("request_id"),
        one_of_set("target"),
        uuid("connection_id"),
        nested(
            "new_connection",
            required("provider"),
            text("provider", max_length=127, pattern=_PROVIDER, says=_PROVIDER_SAYS),
            text("display_name", max_length=200, pattern=_NAME, says=_NAME_SAYS),
            *_LABELS,
            struct("settings", max_bytes=SETTINGS_BYTES_MAX),
            text("client_secret", max_length=4096, pattern=r"[\x20-\x7e]*"),
            *_CONSENTS,
        ),
        *_SCOPES,
        text("redirect_uri", max_length=2048, pattern=r"[\x21-\x7e]*", says=_VISIBLE_SAYS),
        text("return_uri", max_length=2048, pattern=r"[\x21-\x7e]*", says=_VISIBLE_SAYS),
    ),
    messages.CompleteAuthorizationRequest: (
        required("state"),
        text("state", max_length=512),
        text("issuer", max_length=2048),
        one_of_set("result"),
        text("code", max_length=8192, min_length=1),
        text("error", max_length=255, min_length=1),
    ),
    messages.LeaseCredentialRequest: (
        *_ID,
        required("invocation_id"),
        text("invocation_id", max_length=128, pattern=_OPAQUE, says=_VISIBLE_SAYS),
        required("tool"),
        text("tool", max_length=128, pattern=_OPAQUE, says=_VISIBLE_SAYS),
        *_SCOPES,
        items("resources", max_items=64),
        each("resources", text(max_length=255, min_length=1, pattern=_OPAQUE, says=_VISIBLE_SAYS)),
        duration("ttl", min=timedelta(seconds=1), max=timedelta(hours=1)),
        items("providers", max_items=8),
        each("providers", text(max_length=127, pattern=_PROVIDER)),
    ),
    messages.RevokeLeasesRequest: (
        one_of_set("target"),
        text("grant_id", max_length=128, min_length=1, pattern=_OPAQUE, says=_VISIBLE_SAYS),
        nested(
            "run",
            required("run_id"),
            text("run_id", max_length=128, pattern=_OPAQUE, says=_VISIBLE_SAYS),
            integer("up_to_epoch", min=0),
        ),
        uuid("connection_id"),
        text("comment", max_length=500, pattern=_NAME, says=_NAME_SAYS),
    ),
    messages.ListAccessRecordsRequest: (
        *page(),
        uuid("connection_id"),
        text("run_id", max_length=128, pattern=_OPAQUE, says=_VISIBLE_SAYS),
        text("grant_id", max_length=128, pattern=_OPAQUE, says=_VISIBLE_SAYS),
        enum_known("action"),
        enum_known("decision"),
        timestamp("start_time"),
        timestamp("end_time"),
    ),
    messages.RotateKeysRequest: (
        required("request_id"),
        uuid("request_id"),
        text("key_id", max_length=63, pattern=r"[A-Za-z0-9._-]*"),
    ),
    messages.GetKeyRotationRequest: (uuid("rotation_id"),),
    messages.WatchConnectionsRequest: (
        text("cursor", max_length=2048),
        text("provider", max_length=127, pattern=_PROVIDER, says=_PROVIDER_SAYS),
        items("connection_ids", max_items=1000),
        each("connection_ids", uuid()),
    ),
}
