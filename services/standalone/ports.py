"""Finds TCP ports that nobody listens on, and keeps them from other stacks."""

import socket
import sys

from services.standalone.errors import PortInUseError

LOOPBACK = "127.0.0.1"


class PortClaims:
    """Ports that this process has chosen and its children are yet to bind.

    Between choosing and binding lie seconds in which another stack, started at the same time,
    would find the port as free; and gRPC servers would then share it silently. A name in
    Linux's abstract socket namespace, which has the same scope as TCP ports and vanishes with
    the process, keeps them apart. Elsewhere two stacks must not start at the same time.
    """

    def __init__(self) -> None:
        """Claims nothing yet."""
        self._claims: dict[int, socket.socket] = {}

    def require(self, port: int, purpose: str) -> int:
        """Claims exactly this port, or raises PortInUseError."""
        require_free(port, purpose)
        if not self._claim(port):
            raise PortInUseError(
                f"Port {port} for {purpose} is claimed by another stack that is starting; choose "
                f"another port."
            )
        return port

    def prefer(self, port: int) -> int:
        """Claims this port if it can be had, otherwise a free one."""
        candidate = prefer_free(port)
        while not self._claim(candidate):
            candidate = free_port()
        return candidate

    def release(self) -> None:
        """Gives every claim up. Idempotent."""
        for claim in self._claims.values():
            claim.close()
        self._claims.clear()

    def _claim(self, port: int) -> bool:
        if port in self._claims:
            return False
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        if sys.platform == "linux":
            try:
                claim.bind(f"\0cogni-port-{port}")
            except OSError:
                claim.close()
                return False
        self._claims[port] = claim
        return True


def require_free(port: int, purpose: str, host: str = LOOPBACK) -> int:
    """Returns `port` if nobody listens on it.

    Raises PortInUseError otherwise. The probe never sets SO_REUSEPORT: with it, binding a port
    another gRPC server already serves succeeds and the two silently share the callers.
    """
    try:
        _probe(host, port).close()
    except OSError as error:
        raise PortInUseError(
            f"Port {port} for {purpose} is already in use on {host}; stop the process that "
            f"listens there or choose another port."
        ) from error
    return port


def prefer_free(port: int, host: str = LOOPBACK) -> int:
    """Returns `port` if nobody listens on it, otherwise a free one chosen by the kernel."""
    try:
        _probe(host, port).close()
    except OSError:
        return free_port(host)
    return port


def free_port(host: str = LOOPBACK) -> int:
    """Returns a port that was free a moment ago; whoever binds it next must expect a race."""
    with _probe(host, 0) as probe:
        number: int = probe.getsockname()[1]
        return number


def _probe(host: str, port: int) -> socket.socket:
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        # SO_REUSEADDR passes over sockets in TIME_WAIT, as the server itself will; listen() is
        # what then fails when somebody really listens.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(1)
    except OSError:
        probe.close()
        raise
    return probe
