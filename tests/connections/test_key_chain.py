"""A key management service before the file's ring: one is left for the other, calls are few."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from services.connections.key_chain import CACHED_FOR, KeyChain
from services.connections.keyring import KeyRing, UnwrappableError
from services.connections.vault import Binding, UnreadableError, seal, unseal

BINDING = Binding("t1", "c1", "bluesky", "secret", 1)
OLD = KeyRing("k1", {"k1": bytes(32)})


@dataclass
class Service:
    """Counts what it is asked; wraps with a ring of its own."""

    ring: KeyRing = field(default_factory=lambda: KeyRing("arn", {"arn": bytes(range(32))}))
    unwrapped: int = 0

    @property
    def active_key_id(self) -> str:
        return self.ring.active_key_id

    async def wrap(self, data_key: bytes, context: bytes) -> tuple[str, bytes]:
        return await self.ring.wrap(data_key, context)

    async def unwrap(self, key_id: str, wrapped: bytes, context: bytes) -> bytes:
        self.unwrapped += 1
        return await self.ring.unwrap(key_id, wrapped, context)


async def test_what_the_service_unwrapped_is_asked_for_again_only_after_a_while() -> None:
    now = 0.0
    service = Service()
    chain = KeyChain(service, clock=lambda: now)
    envelope = await seal(b"hunter2", BINDING, chain)
    for _ in range(3):
        assert await unseal(envelope, BINDING, chain) == b"hunter2"
    assert service.unwrapped == 1
    now = CACHED_FOR.total_seconds() + 1
    assert await unseal(envelope, BINDING, chain) == b"hunter2"
    assert service.unwrapped == 2


async def test_a_cached_data_key_opens_no_other_row() -> None:
    chain = KeyChain(Service())
    envelope = await seal(b"hunter2", BINDING, chain)
    await unseal(envelope, BINDING, chain)
    with pytest.raises(UnreadableError):
        await unseal(envelope, Binding("t2", "c1", "bluesky", "secret", 1), chain)


async def test_rows_under_the_old_ring_open_and_new_ones_go_to_the_service() -> None:
    before = await seal(b"hunter2", BINDING, OLD)
    chain = KeyChain(Service(), OLD)
    assert await unseal(before, BINDING, chain) == b"hunter2"
    assert (await seal(b"hunter2", BINDING, chain)).key_id == "arn"


async def test_a_key_that_neither_has_is_named() -> None:
    with pytest.raises(UnwrappableError, match="'k9'"):
        await KeyChain(Service(), OLD).unwrap("k9", b"", b"")
