"""Who may call which RPC of Connections."""

from __future__ import annotations

from services.runtime.access import Access, AccessTable

_SERVICE = "/cogni.connections.v1.ConnectionsService/"
# The Executor looks a connection and its tools up for the person who grants them.
_READ = Access("connections:read", services=frozenset({"executor"}))
_WRITE = Access("connections:write")
_ADMIN = Access("connections:admin")

ACCESS: AccessTable = {
    f"{_SERVICE}ListProviders": Access("connections:read"),
    f"{_SERVICE}CreateConnection": _WRITE,
    f"{_SERVICE}GetConnection": _READ,
    f"{_SERVICE}ListConnections": _READ,
    f"{_SERVICE}UpdateConnection": _WRITE,
    f"{_SERVICE}DeleteConnection": _WRITE,
    f"{_SERVICE}TestConnection": _WRITE,
    f"{_SERVICE}ListConnectionTools": _READ,
    f"{_SERVICE}ListInstallations": _WRITE,
    f"{_SERVICE}RefreshConnection": _WRITE,
    f"{_SERVICE}BeginAuthorization": _WRITE,
    f"{_SERVICE}CompleteAuthorization": _WRITE,
    f"{_SERVICE}LeaseCredential": Access(users=False, runs=True),
    f"{_SERVICE}RevokeLeases": Access("connections:admin", services=frozenset({"executor"})),
    f"{_SERVICE}ListAccessRecords": _ADMIN,
    f"{_SERVICE}RotateKeys": _ADMIN,
    f"{_SERVICE}GetKeyRotation": _ADMIN,
    f"{_SERVICE}WatchConnections": Access("connections:read"),
}
