"""The key ring's file: what is right is read, what is wrong is named and never shown."""

from __future__ import annotations

import base64
import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.connections.keyring import KeyRing, KeyRingError, parse_key_ring, read_key_ring

KEY = base64.b64encode(bytes(32)).decode()


def test_a_written_ring_is_read_with_its_active_key(tmp_path: Path) -> None:
    path = tmp_path / "ring.json"
    path.write_text(json.dumps({"active": "k2", "keys": {"k1": KEY, "k2": KEY}}))
    assert read_key_ring(path).active_key_id == "k2"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyRingError, match="cannot be read"):
        read_key_ring(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("nonsense", "not JSON"),
        ("[]", "must look like"),
        ('{"active": "k1"}', "must look like"),
        ('{"active": "k1", "keys": []}', "must look like"),
        ('{"active": "k1", "keys": {}}', "1 to 64 keys"),
        ('{"active": "k1", "keys": {"k1": "!"}}', "not base64"),
        ('{"active": "k1", "keys": {"k1": 5}}', "not base64"),
        ('{"active": "k1", "keys": {"k1": "c2hvcnQ="}}', "32 bytes"),
        (json.dumps({"active": "k9", "keys": {"k1": KEY}}), "not among the keys"),
        (json.dumps({"active": "k 1", "keys": {"k 1": KEY}}), "must match"),
    ],
)
def test_a_wrong_ring_is_refused_with_what_to_change(content: str, complaint: str) -> None:
    with pytest.raises(KeyRingError, match=complaint):
        parse_key_ring(content, source="ring.json")


@given(st.text(max_size=200))
def test_no_text_makes_the_parser_fail_otherwise(text: str) -> None:
    with contextlib.suppress(KeyRingError):
        parse_key_ring(text, source="ring.json")


def test_a_ring_prints_its_ids_and_no_key() -> None:
    ring = KeyRing("k1", {"k1": b"K" * 32})
    assert repr(ring) == "KeyRing(active='k1', keys=['k1'])"
