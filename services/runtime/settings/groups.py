"""The settings that services have in common, in the groups they are composed from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from services.runtime.settings.field import own, shared

#: RFC 7518 §3.2: an HS256 key must be at least as long as the hash.
HS256_SECRET_BYTES_MIN = 32


class SettingsGroup(BaseSettings):
    """Settings that belong together. Built with keyword arguments it reads no environment."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what it is given: `load` reads the environment, once and whole."""
        return (init_settings,)

    def contradictions(self) -> Iterator[str]:
        """Sentences about settings that do not go together; override, and yield from super()."""
        yield from ()


class TelemetrySettings(SettingsGroup):
    """Logs, traces and metrics."""

    log_level: Literal["debug", "info", "warning", "error"] = shared(
        "info", "The least severe log records that are written."
    )
    log_format: Literal["text", "json"] = shared(
        "text", "How a log record is written: for people (text) or for collectors (json)."
    )
    otlp_endpoint: str | None = shared(
        None,
        "Base URL of an OTLP/HTTP collector; spans go to <url>/v1/traces, metrics to "
        "<url>/v1/metrics. Unset: nothing is exported.",
        pattern=r"^https?://\S+$",
    )
    otlp_headers: SecretStr | None = shared(
        None,
        "File with the headers the collector wants, one `name: value` a line.",
        file_only=True,
    )
    otlp_metrics: bool = shared(
        True, "Whether metrics are exported too; turn it off for collectors that take only traces."
    )
    trace_url_template: str | None = shared(
        None,
        "Link to a trace in your tracing tool, with {trace_id} where the id goes.",
        pattern=r".*\{trace_id\}.*",
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.otlp_headers is not None and self.otlp_endpoint is None:
            yield "COGNI_OTLP_HEADERS_FILE is set without COGNI_OTLP_ENDPOINT: set both or none."
        if self.otlp_headers is not None:
            lines = self.otlp_headers.get_secret_value().splitlines()
            wrong = [n for n, line in enumerate(lines, 1) if line.strip() and not _is_header(line)]
            if wrong:
                # Sent as they are they would fail at each export, and be logged as header names.
                yield (
                    f"COGNI_OTLP_HEADERS_FILE has no header in line {wrong[0]}: write "
                    "`name: value` in each line."
                )


def _is_header(line: str) -> bool:
    """Whether the line is `name: value`, the name a token of RFC 9110 §5.6.2."""
    return re.fullmatch(r"\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*:.*", line) is not None


def _is_url(setting: SecretStr, schemes: frozenset[str]) -> bool:
    """Whether it is a URL of one of these schemes, with a port that can be."""
    url = setting.get_secret_value()
    try:
        parts = urlsplit(url)
        return parts.scheme in schemes and "://" in url and parts.port != 0
    except ValueError:
        return False


_BROKER_SCHEMES = frozenset({"redis", "rediss", "amqp", "amqps"})
#: The second is SQLAlchemy's name for the driver we use.
_POSTGRES_SCHEMES = frozenset({"postgresql", "postgresql+asyncpg", "postgres"})


class ServiceSettings(TelemetrySettings):
    """What every process reads. A process's own settings class adds the groups it needs.

    `service` gives own settings their prefix; `siblings` are the settings classes of the same
    service's other processes, whose variables may stand in this process's environment.
    """

    service: ClassVar[str]
    siblings: ClassVar[tuple[type[ServiceSettings], ...]] = ()


class DatabaseSettings(SettingsGroup):
    """The service's PostgreSQL."""

    database_url: SecretStr = own(
        ...,
        "postgresql:// URL of the service's database; its login may SET ROLE to the service's "
        "three roles.",
    )
    database_pool_size: int = shared(
        10, "Connections one process keeps to its database at most.", ge=1, le=200
    )
    database_statement_timeout_seconds: float = shared(
        10.0, "A statement that runs longer is cancelled.", gt=0, le=3600
    )
    database_lock_timeout_seconds: float = shared(
        2.0, "A statement that waits longer for a lock is cancelled.", gt=0, le=600
    )
    database_idle_timeout_seconds: float = shared(
        5.0, "A transaction that idles longer is ended by the database.", gt=0, le=600
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        # Read here, because the driver's own complaint would repeat the URL with its password.
        if not _is_url(self.database_url, _POSTGRES_SCHEMES):
            yield (
                f"COGNI_{getattr(self, 'service', '').upper()}_DATABASE_URL is no URL of "
                "PostgreSQL; write postgresql://user:password@host:port/database."
            )


class BrokerSettings(SettingsGroup):
    """The Dramatiq broker."""

    broker_url: SecretStr = shared(
        ..., "redis://, rediss://, amqp:// or amqps:// URL of the broker."
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        # Nothing of it is repeated: without its "//" a URL begins with the password.
        if not _is_url(self.broker_url, _BROKER_SCHEMES):
            yield (
                "COGNI_BROKER_URL is no URL of a broker; write "
                "redis://:password@host:port/0 or amqp://user:password@host:port (rediss and "
                "amqps for TLS), with %2F for / and %23 for # in the password."
            )


class TlsSettings(SettingsGroup):
    """Encryption of gRPC, both as server and towards other services."""

    tls_cert_file: Path | None = shared(
        None, "PEM certificate chain this process shows, as a server and (mTLS) as a client."
    )
    tls_key_file: Path | None = shared(None, "PEM private key of that certificate.")
    tls_client_ca_file: Path | None = shared(
        None, "PEM certificates that must have signed every client's certificate (mTLS)."
    )
    tls_ca_file: Path | None = shared(
        None, "PEM certificates that sign the other services; set it to call them over TLS."
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            yield "COGNI_TLS_CERT_FILE and COGNI_TLS_KEY_FILE belong together: set both or none."
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            yield "COGNI_TLS_CLIENT_CA_FILE needs COGNI_TLS_CERT_FILE and COGNI_TLS_KEY_FILE."
        for name in ("tls_cert_file", "tls_key_file", "tls_client_ca_file", "tls_ca_file"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                yield f"COGNI_{name.upper()} names {str(path)!r}, which is not a readable file."


class AuthSettings(SettingsGroup):
    """Which callers and services are believed, and who this process is."""

    auth_hs256_secret: SecretStr | None = shared(
        None,
        "File with the shared secret that signs caller tokens (HS256). For the embedded stack, on "
        "loopback only: elsewhere use a JWKS.",
        file_only=True,
    )
    auth_jwks_file: Path | None = shared(
        None, "JWKS with the public keys of caller tokens; read again when it changes."
    )
    auth_jwks_url: str | None = shared(
        None,
        "URL of the JWKS with the public keys of caller tokens.",
        pattern=r"^https?://\S+$",
    )
    auth_issuer: str | None = shared(None, "The `iss` that caller tokens must carry; unset: any.")
    auth_audience: str = shared("cogni", "The `aud` that caller tokens must carry.", min_length=1)
    service_key: SecretStr | None = shared(
        None,
        "File with the Ed25519 private key (PEM) by which this process proves to other services "
        "who it is.",
        file_only=True,
    )
    trusted_keys_file: Path | None = shared(
        None,
        "JWKS with the Ed25519 public keys of the services; each key's `kid` is the name of the "
        "service that owns it. Read again when it changes.",
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        ways = {
            "COGNI_AUTH_HS256_SECRET_FILE": self.auth_hs256_secret,
            "COGNI_AUTH_JWKS_FILE": self.auth_jwks_file,
            "COGNI_AUTH_JWKS_URL": self.auth_jwks_url,
        }
        chosen = [name for name, value in ways.items() if value is not None]
        if len(chosen) > 1:
            yield (
                f"{' and '.join(chosen)} contradict each other: caller tokens are checked in "
                "exactly one way."
            )
        secret = self.auth_hs256_secret
        if secret is not None and len(secret.get_secret_value()) < HS256_SECRET_BYTES_MIN:
            yield (
                "The secret in COGNI_AUTH_HS256_SECRET_FILE is too short: it needs at least "
                f"{HS256_SECRET_BYTES_MIN} bytes."
            )
        for name in ("auth_jwks_file", "trusted_keys_file"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                yield f"COGNI_{name.upper()} names {str(path)!r}, which is not a readable file."


class ServerSettings(TlsSettings, AuthSettings):
    """What a gRPC server needs beside its service's own settings."""

    listen: str = own(
        ...,
        "host:port on which the server listens; port 0 takes a free one.",
        pattern=r"(\[[0-9A-Fa-f:]+\]|[^:\s]+):[0-9]{1,5}",
    )
    address: str | None = own(None, "host:port at which other processes reach this service.")
    processes: int = shared(1, "Operating-system processes that share the port.", ge=1, le=128)
    drain_seconds: float = shared(
        20.0, "How long calls under way may go on after the stop signal.", ge=0, le=600
    )
    reflection: Literal["open", "authenticated", "off"] = shared(
        "open", "Who may ask the server for its contract by gRPC reflection."
    )
    max_message_bytes: int = shared(
        4 * 1024 * 1024, "The largest message taken or sent.", ge=64 * 1024, le=256 * 1024 * 1024
    )
    max_concurrent_streams: int = shared(
        1000, "Calls under way on one connection at most.", ge=1, le=100_000
    )
    default_deadline_seconds: float = shared(
        15.0, "The deadline of a unary call that comes without one.", gt=0, le=600
    )
    max_deadline_seconds: float = shared(
        60.0, "The longest a unary call may take, whatever deadline it came with.", gt=0, le=3600
    )
    keepalive_seconds: float = shared(
        30.0, "How often a quiet connection is checked.", ge=1, le=7200
    )
    max_connection_age_seconds: float = shared(
        1800.0, "A connection older than this is asked to reconnect, which spreads load.", ge=1
    )
    max_connection_age_grace_seconds: float = shared(
        300.0, "How long calls may go on upon a connection that was asked to reconnect.", ge=1
    )

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if not (self.auth_hs256_secret or self.auth_jwks_file or self.auth_jwks_url):
            yield (
                "Nothing says how caller tokens are checked: set COGNI_AUTH_JWKS_URL, "
                "COGNI_AUTH_JWKS_FILE, or (embedded stack only) COGNI_AUTH_HS256_SECRET_FILE."
            )
        if self.auth_hs256_secret is not None and not _is_loopback(self.listen):
            # Whoever checks such tokens can also make them, so the secret must not leave a machine.
            yield (
                "COGNI_AUTH_HS256_SECRET_FILE is for servers that listen on loopback, and this "
                f"one listens on {self.listen!r}: listen on 127.0.0.1, or set COGNI_AUTH_JWKS_URL "
                "or COGNI_AUTH_JWKS_FILE instead."
            )
        if self.default_deadline_seconds > self.max_deadline_seconds:
            yield "COGNI_DEFAULT_DEADLINE_SECONDS is longer than COGNI_MAX_DEADLINE_SECONDS."


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


#: Every group of shared settings: their variables are known to all processes, read or not.
SHARED_GROUPS: tuple[type[SettingsGroup], ...] = (
    TelemetrySettings,
    DatabaseSettings,
    BrokerSettings,
    ServerSettings,
)
