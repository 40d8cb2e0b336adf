"""Ports are found free by really listening on them."""

import socket

import pytest

from services.standalone.errors import PortInUseError
from services.standalone.ports import PortClaims, free_port, prefer_free, require_free


@pytest.fixture
def shared_listener():
    """A listener that would let another one share its port, as gRPC's do."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_shared_by_so_reuseport_counts_as_taken(shared_listener: int) -> None:
    with pytest.raises(PortInUseError, match=f"Port {shared_listener} for the Executor is already"):
        require_free(shared_listener, "the Executor")


def test_another_port_is_preferred_to_a_taken_one(shared_listener: int) -> None:
    assert prefer_free(shared_listener) != shared_listener


def test_a_free_port_is_kept() -> None:
    port = free_port()

    assert prefer_free(port) == port
    assert require_free(port, "anything") == port


def test_a_port_that_another_stack_has_claimed_but_not_bound_is_not_chosen() -> None:
    port, one, other = free_port(), PortClaims(), PortClaims()

    assert one.prefer(port) == port
    assert other.prefer(port) != port
    with pytest.raises(PortInUseError, match=f"Port {port} for x is claimed by another stack"):
        other.require(port, "x")

    one.release()
    assert other.require(port, "x") == port
    other.release()
