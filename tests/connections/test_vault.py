"""The vault: an envelope opens for the row it was sealed for, unchanged, and for nothing else."""

from __future__ import annotations

import asyncio
import os
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.connections.keyring import KeyRing
from services.connections.vault import Binding, Envelope, UnreadableError, rewrap, seal, unseal

RING = KeyRing("k1", {"k1": bytes(range(32))})
BINDING = Binding("t1", "0190-c", "bluesky", "secret", 1)

texts = st.text(max_size=20)
bindings = st.builds(Binding, texts, texts, texts, texts, st.integers(0, 2**31))
BLOBS = ("wrapped_key", "nonce", "ciphertext", "commitment")


def sealed(
    plaintext: bytes = b"hunter2", binding: Binding = BINDING, ring: KeyRing = RING
) -> Envelope:
    return asyncio.run(seal(plaintext, binding, ring))


def opened(envelope: Envelope, binding: Binding = BINDING, ring: KeyRing = RING) -> bytes:
    return asyncio.run(unseal(envelope, binding, ring))


@given(st.binary(max_size=4000), bindings)
@settings(max_examples=60)
def test_what_was_sealed_comes_back(plaintext: bytes, binding: Binding) -> None:
    assert opened(sealed(plaintext, binding), binding) == plaintext


@given(st.sampled_from(BLOBS), st.data())
@settings(max_examples=200)
def test_no_flipped_bit_anywhere_goes_unnoticed(field: str, data: st.DataObject) -> None:
    envelope = sealed()
    blob = bytearray(getattr(envelope, field))
    position = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[position // 8] ^= 1 << (position % 8)

    with pytest.raises(UnreadableError):
        opened(replace(envelope, **{field: bytes(blob)}))


@given(st.sampled_from(BLOBS), st.data())
@settings(max_examples=80)
def test_no_truncated_or_extended_part_opens(field: str, data: st.DataObject) -> None:
    envelope = sealed()
    blob = getattr(envelope, field)
    cut = data.draw(st.integers(0, len(blob) - 1))

    for changed in (blob[:cut], blob + b"\0"):
        with pytest.raises(UnreadableError):
            opened(replace(envelope, **{field: changed}))


@given(bindings, bindings)
@settings(max_examples=60)
def test_an_envelope_moved_to_another_row_stays_shut(home: Binding, other: Binding) -> None:
    if home == other:
        return
    with pytest.raises(UnreadableError):
        opened(sealed(binding=home), other)


@pytest.mark.parametrize("field", [f.name for f in fields(Binding)])
def test_each_part_of_the_binding_counts(field: str) -> None:
    moved = replace(BINDING, **{field: 2 if field == "generation" else "elsewhere"})
    with pytest.raises(UnreadableError):
        opened(sealed(), moved)


@pytest.mark.parametrize("field", BLOBS)
def test_no_part_of_one_envelope_fits_another(field: str) -> None:
    mine, foreign = sealed(b"mine"), sealed(b"foreign")
    with pytest.raises(UnreadableError):
        opened(replace(mine, **{field: getattr(foreign, field)}))


def test_a_key_that_left_the_ring_opens_nothing() -> None:
    with pytest.raises(UnreadableError, match="'k1' is not in the ring"):
        opened(sealed(), ring=KeyRing("k2", {"k2": os.urandom(32)}))


def test_a_different_key_of_the_same_name_opens_nothing() -> None:
    with pytest.raises(UnreadableError):
        opened(sealed(), ring=KeyRing("k1", {"k1": os.urandom(32)}))


def test_a_renamed_key_does_not_open_what_another_name_wrapped() -> None:
    twin = KeyRing("k1", {"k1": bytes(range(32)), "k2": bytes(range(32))})
    with pytest.raises(UnreadableError):
        opened(replace(sealed(), key_id="k2"), ring=twin)


def test_rewrapping_changes_the_key_and_nothing_inside() -> None:
    both = KeyRing("k2", {"k1": bytes(range(32)), "k2": os.urandom(32)})
    before = sealed()

    after = asyncio.run(rewrap(before, BINDING, both))

    assert after.key_id == "k2"
    assert (after.nonce, after.ciphertext, after.commitment) == (
        before.nonce,
        before.ciphertext,
        before.commitment,
    )
    assert opened(after, ring=both) == opened(before, ring=both) == b"hunter2"


@pytest.mark.parametrize("field", ["wrapped_key", "commitment"])
def test_a_damaged_row_is_not_rewrapped_into_a_valid_one(field: str) -> None:
    damaged = replace(sealed(), **{field: os.urandom(len(getattr(sealed(), field)))})
    with pytest.raises(UnreadableError):
        asyncio.run(rewrap(damaged, BINDING, RING))


def test_two_envelopes_of_one_secret_have_nothing_in_common() -> None:
    one, two = sealed(), sealed()
    assert all(getattr(one, field) != getattr(two, field) for field in BLOBS)


def test_an_oversized_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        sealed(bytes(256 * 1024 + 1))
