"""The public keys tokens are verified with: from a secret, a JWKS file, or a JWKS URL."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.request
from collections.abc import Awaitable, Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from services.runtime.errors import unavailable

_log = logging.getLogger(__name__)

#: Asymmetric only: with HS256 in this list a public key could be used as a shared secret.
CALLER_ALGORITHMS = frozenset({"EdDSA", "ES256", "RS256"})
SERVICE_ALGORITHMS = frozenset({"EdDSA"})

#: NIST SP 800-131A: shorter RSA keys are no longer acceptable.
RSA_BITS_MIN = 2048
#: A larger answer is not a key set.
JWKS_BYTES_MAX = 1024 * 1024
#: How often a key file is looked at for changes.
FILE_CHECK_SECONDS = 1.0
#: How long a fetched key set is used before it is fetched anew, so that withdrawn keys die.
URL_FRESH_SECONDS = 600.0
#: An unknown kid causes a fetch, but never more often than this, whoever sends them.
URL_REFRESH_SECONDS_MIN = 10.0
FETCH_TIMEOUT_SECONDS = 5.0


class KeysError(Exception):
    """Raised when a key set cannot be used; the text is a sentence for the operator."""


class KeySource(Protocol):
    """Where verification keys come from."""

    def generation(self) -> int:
        """Changes whenever the keys change, so that what was verified before is verified anew."""

    async def find(self, kid: str | None, algorithm: str) -> Any | None:
        """The key to verify with, or None. Without a kid only a sole key of that kind will do."""


class SecretKey:
    """One shared secret, HS256 only: the embedded stack's way."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def generation(self) -> int:
        return 0

    async def find(self, kid: str | None, algorithm: str) -> bytes | None:
        return self._secret if algorithm == "HS256" else None


class KeySet:
    """The usable public keys of one JWKS document."""

    def __init__(self, keys: list[jwt.PyJWK]) -> None:
        self._keys = keys

    @classmethod
    def parse(cls, document: bytes, allowed: frozenset[str]) -> KeySet:
        """Keeps the signature keys of the allowed algorithms.

        Raises KeysError when the document is no JWKS, holds a private key, or no usable key.
        """
        try:
            entries = json.loads(document)["keys"]
            entries = [dict(entry) for entry in entries]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise KeysError('is not a JWKS: it must be a JSON object {"keys": […]}') from None
        if any("d" in entry for entry in entries):
            raise KeysError("holds a private key; publish the public part only")
        keys = [key for entry in entries if (key := _usable(entry, allowed)) is not None]
        if not keys:
            raise KeysError(f"holds no usable key; usable are {', '.join(sorted(allowed))}")
        return cls(keys)

    def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """The key of that kid and algorithm; without a kid, the only one of that algorithm."""
        fitting = [
            key
            for key in self._keys
            if key.algorithm_name == algorithm and (kid is None or key.key_id == kid)
        ]
        return fitting[0] if len(fitting) == 1 or (fitting and kid is not None) else None


def _usable(entry: dict[str, Any], allowed: frozenset[str]) -> jwt.PyJWK | None:
    if entry.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK(entry)
    except (jwt.PyJWTError, TypeError, ValueError):
        return None
    if key.algorithm_name not in allowed:
        return None
    if key.algorithm_name == "EdDSA" and not isinstance(key.key, Ed25519PublicKey):
        return None
    if isinstance(key.key, RSAPublicKey) and key.key.key_size < RSA_BITS_MIN:
        return None
    return key


class FileKeys:
    """A JWKS file, read again when it changes. A broken new version leaves the old one in force."""

    def __init__(
        self,
        path: Path,
        allowed: frozenset[str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads the file; raises KeysError when it cannot be used."""
        self._path = path
        self._allowed = allowed
        self._monotonic = monotonic
        self._generation = 0
        self._mark = self._fingerprint()
        self._keys = self._read()
        self._checked = monotonic()

    def generation(self) -> int:
        self._refresh()
        return self._generation

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        self._refresh()
        return self._keys.find(kid, algorithm)

    def _refresh(self) -> None:
        now = self._monotonic()
        if now - self._checked < FILE_CHECK_SECONDS:
            return
        self._checked = now
        try:
            mark = self._fingerprint()
            if mark == self._mark:
                return
            # Remembered before reading: a broken version is complained about once.
            self._mark = mark
            self._keys = self._read()
        except KeysError as error:
            _log.error("the keys read before stay in force: %s", error)
            return
        self._generation += 1

    def _fingerprint(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError as error:
            raise KeysError(f"{self._path} cannot be read: {error.strerror}") from None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> KeySet:
        try:
            return KeySet.parse(self._path.read_bytes(), self._allowed)
        except OSError as error:
            raise KeysError(f"{self._path} cannot be read: {error.strerror}") from None
        except KeysError as error:
            raise KeysError(f"{self._path} {error}") from None


async def fetch(url: str) -> bytes:
    """Downloads a JWKS; raises OSError or HTTPException when that fails."""
    return await asyncio.to_thread(_fetch, url)


def _fetch(url: str) -> bytes:
    # Settings admit http and https only.
    with urllib.request.urlopen(url, timeout=FETCH_TIMEOUT_SECONDS) as answer:  # noqa: S310
        document: bytes = answer.read(JWKS_BYTES_MAX + 1)
    return document


class UrlKeys:
    """A JWKS behind a URL, fetched when first needed, when stale, and for unknown kids."""

    def __init__(
        self,
        url: str,
        allowed: frozenset[str],
        fetch: Callable[[str], Awaitable[bytes]] = fetch,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._allowed = allowed
        self._fetch = fetch
        self._monotonic = monotonic
        self._lock = asyncio.Lock()
        self._generation = 0
        self._keys: KeySet | None = None
        self._tried: float | None = None
        self._fetched = 0.0
        self._failing = False
        self._retrying: asyncio.Task[None] | None = None

    def generation(self) -> int:
        return self._generation

    async def find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        """Raises UNAVAILABLE when no key set could be fetched yet."""
        if self._keys is None:
            await self._refresh()
        elif self._age() > URL_FRESH_SECONDS:
            await self._renew()
        found = self._find(kid, algorithm)
        if found is None:
            await self._refresh()
            found = self._find(kid, algorithm)
        return found

    async def _renew(self) -> None:
        if not self._failing:
            await self._refresh()
        elif self._retrying is None or self._retrying.done():
            # A provider that hangs held up every caller for five seconds out of ten.
            self._retrying = asyncio.create_task(self._refresh())

    def _find(self, kid: str | None, algorithm: str) -> jwt.PyJWK | None:
        if self._keys is None:
            raise unavailable("The keys that verify caller tokens cannot be fetched at present.")
        return self._keys.find(kid, algorithm)

    def _age(self) -> float:
        return self._monotonic() - self._fetched

    async def _refresh(self) -> None:
        # One fetch at a time; whoever waited for it finds the rate bound reached and goes on.
        async with self._lock:
            now = self._monotonic()
            if self._tried is not None and now - self._tried < URL_REFRESH_SECONDS_MIN:
                return
            self._tried = now
            try:
                self._keys = KeySet.parse(await self._fetch(self._url), self._allowed)
            except (OSError, HTTPException, KeysError) as error:
                self._failing = True
                _log.error("fetching caller keys from %s failed: %s", self._url, error)
                return
            self._failing = False
            self._fetched = self._monotonic()
            self._generation += 1
