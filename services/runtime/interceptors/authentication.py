"""Finds out who calls, and whether this RPC is for them."""

from __future__ import annotations

from services.runtime.access import Access, AccessTable, check_access
from services.runtime.caller import Caller
from services.runtime.errors import denied, unauthenticated
from services.runtime.interceptors.observation import Metadata
from services.runtime.tokens import TokenVerifier

#: Load balancers check health without an identity.
HEALTH_PREFIX = "/grpc.health.v1.Health/"
REFLECTION_PREFIX = "/grpc.reflection."
_SCHEME = "bearer "


class Gatekeeper:
    """Admits a call or refuses it, by the token in its metadata and the access table."""

    def __init__(
        self, verifier: TokenVerifier, table: AccessTable, *, reflection_open: bool
    ) -> None:
        self._verifier = verifier
        self._table = table
        self._reflection_open = reflection_open

    def is_open(self, method: str) -> bool:
        """Whether the method is served to anybody."""
        return method.startswith(HEALTH_PREFIX) or (
            self._reflection_open and method.startswith(REFLECTION_PREFIX)
        )

    def access(self, method: str) -> Access | None:
        """The method's entry; None admits nobody. Closed reflection is for any verified user."""
        if method.startswith(REFLECTION_PREFIX):
            return Access()
        return self._table.get(method)

    async def admit(self, access: Access | None, metadata: Metadata) -> Caller:
        """Raises UNAUTHENTICATED or PERMISSION_DENIED unless the caller may make this call."""
        caller = await self._verifier.verify(_bearer(metadata))
        if access is None:
            # Deny by default (I5); the server refuses to start in this state anyway.
            raise denied("CALLER_NOT_ALLOWED", "This RPC admits nobody.")
        check_access(caller, access)
        return caller


def _bearer(metadata: Metadata) -> str:
    found = [value for key, value in metadata if key == "authorization"]
    if not found:
        raise unauthenticated(
            "TOKEN_MISSING", "Send a bearer token in the metadata key 'authorization'."
        )
    if len(found) > 1 or not isinstance(found[0], str):
        raise unauthenticated("TOKEN_INVALID", "Send exactly one 'authorization' value.")
    if not found[0].lower().startswith(_SCHEME):
        raise unauthenticated("TOKEN_INVALID", "The 'authorization' value must read 'Bearer …'.")
    return found[0][len(_SCHEME) :].strip()
