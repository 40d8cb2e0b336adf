"""An address is reserved before anything serves on it, or refused in a sentence."""

from __future__ import annotations

import socket

import pytest

from services.runtime.port import ListenError, reserve


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("reuse", [True, False])
def test_a_used_port_is_reported_even_when_its_owner_shares_it(shared: bool, reuse: bool) -> None:
    with socket.socket() as owner:
        if reuse:
            owner.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        owner.bind(("127.0.0.1", 0))
        owner.listen(1)
        address = f"127.0.0.1:{owner.getsockname()[1]}"

        with (
            pytest.raises(ListenError, match=f"Cannot listen on {address}: address already in use"),
            reserve(address, shared=shared),
        ):
            pass


def test_a_reserved_port_can_be_shared_by_children_and_nobody_else() -> None:
    with reserve("127.0.0.1:0", shared=True) as place, socket.socket() as child:
        assert place.port > 0
        child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        child.bind((place.host, place.port))
        child.listen(1)
        with pytest.raises(ListenError), reserve(str(place), shared=False):
            pass


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:99999", ":50051", "nowhere.invalid:1"])
def test_a_malformed_address_is_told_in_a_sentence(address: str) -> None:
    with pytest.raises(ListenError, match=r"\.$"), reserve(address, shared=False):
        pass
