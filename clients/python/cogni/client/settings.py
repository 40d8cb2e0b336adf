"""Where the services are and who calls them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

SERVICES = ("executor", "scheduler", "connections", "ledger")
DEFAULT_ADDRESSES = {
    "executor": "127.0.0.1:7401",
    "scheduler": "127.0.0.1:7402",
    "connections": "127.0.0.1:7403",
    "ledger": "127.0.0.1:7404",
}
DEFAULT_TIMEOUT_SECONDS = 30.0


class SettingsError(ValueError):
    """The settings do not make sense; the message says which and what to do."""


@dataclass(frozen=True)
class ClientSettings:
    """How to reach the services.

    `token` gives the caller's JWT and is asked before every call, so that it may return a fresh
    one. `ca_certificate`, `certificate` and `private_key` are PEM bytes; with none of them and
    `tls` False the connection is plain, which is right only on one machine.
    """

    addresses: Mapping[str, str] = field(default_factory=lambda: dict(DEFAULT_ADDRESSES))
    token: Callable[[], str] | None = None
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    tls: bool = False
    ca_certificate: bytes | None = None
    certificate: bytes | None = None
    private_key: bytes | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ClientSettings:
        """Reads COGNI_{EXECUTOR,SCHEDULER,CONNECTIONS,LEDGER}_ADDRESS, COGNI_TOKEN or
        COGNI_TOKEN_FILE (read again at each call), COGNI_TIMEOUT_SECONDS, and for TLS
        COGNI_CLIENT_CA_FILE, COGNI_CLIENT_CERT_FILE, COGNI_CLIENT_KEY_FILE.

        Raises SettingsError.
        """
        addresses = {
            name: environment.get(f"COGNI_{name.upper()}_ADDRESS") or DEFAULT_ADDRESSES[name]
            for name in SERVICES
        }
        timeout = environment.get("COGNI_TIMEOUT_SECONDS", str(DEFAULT_TIMEOUT_SECONDS))
        try:
            timeout_seconds = float(timeout)
        except ValueError:
            raise SettingsError(f"COGNI_TIMEOUT_SECONDS is {timeout!r}; give a number") from None
        if not timeout_seconds > 0:
            raise SettingsError(f"COGNI_TIMEOUT_SECONDS is {timeout!r}; give a positive number")
        ca = _read("COGNI_CLIENT_CA_FILE", environment)
        certificate = _read("COGNI_CLIENT_CERT_FILE", environment)
        private_key = _read("COGNI_CLIENT_KEY_FILE", environment)
        if (certificate is None) != (private_key is None):
            raise SettingsError("COGNI_CLIENT_CERT_FILE and COGNI_CLIENT_KEY_FILE go together")
        return cls(
            addresses=addresses,
            token=_token_source(environment),
            timeout_seconds=timeout_seconds,
            tls=ca is not None or certificate is not None,
            ca_certificate=ca,
            certificate=certificate,
            private_key=private_key,
        )


def _token_source(environment: Mapping[str, str]) -> Callable[[], str] | None:
    text, path = environment.get("COGNI_TOKEN"), environment.get("COGNI_TOKEN_FILE")
    if text and path:
        raise SettingsError("set COGNI_TOKEN or COGNI_TOKEN_FILE, not both")
    if text:
        token = _checked(text, "COGNI_TOKEN")
        return lambda: token
    if path:
        return lambda: _checked(_read_text(Path(path)), f"the token file {path}")
    return None


def _checked(token: str, where: str) -> str:
    """The token, which must be fit for a header: gRPC would say so in the words of its core."""
    token = token.strip()
    if not all("!" <= character <= "~" for character in token):
        raise SettingsError(f"{where} holds characters that no token has; copy it again")
    return token


def _read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(f"cannot read the token file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the token file {path} is not text; name another") from None


def _read(name: str, environment: Mapping[str, str]) -> bytes | None:
    path = environment.get(name)
    if not path:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: cannot read {path}: {error.strerror}") from None
