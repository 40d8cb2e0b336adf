"""Puts several keepers of keys in line: the first wraps, whichever has the key unwraps."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta

from services.connections.keyring import KeyEncryption, KeyRing, UnwrappableError

CACHED_KEYS_MAX = 10_000
CACHED_FOR = timedelta(minutes=5)


class KeyChain:
    """A key management service with the file's ring behind it, so that one can be left for the
    other by a rotation. What the service unwrapped is kept in memory for some minutes: a lease
    must not cost a call to it."""

    def __init__(
        self,
        service: KeyEncryption,
        ring: KeyRing | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._ring = ring
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()

    @property
    def active_key_id(self) -> str:
        """The service's key."""
        return self._service.active_key_id

    async def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
        """Wrap by the service."""
        return await self._service.wrap(data_key, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        """Unwrap by whichever has the key. Raises UnwrappableError."""
        if self._ring is not None and self._ring.holds(key_id):
            return await self._ring.unwrap(key_id, wrapped, context)
        if key_id != self.active_key_id:
            raise UnwrappableError(f"key {key_id!r} is not in use here")
        name = hashlib.sha256(len(context).to_bytes(8, "big") + context + wrapped).digest()
        kept = self._kept.get(name)
        if kept is not None and kept[0] > self._clock():
            return kept[1]
        data_key = await self._service.unwrap(key_id, wrapped, context)
        self._kept[name] = (self._clock() + CACHED_FOR.total_seconds(), data_key)
        while len(self._kept) > CACHED_KEYS_MAX:
            self._kept.popitem(last=False)
        return data_key
