"""Finds TCP ports that nobody listens on."""

import socket

from services.standalone.errors import PortInUseError

LOOPBACK = "127.0.0.1"


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
