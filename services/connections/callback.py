"""What is answered to a person whom a provider sends back: completes their authorization.

It knows nobody: what it may complete follows from the single-use state alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

from services.connections.connection import Connection
from services.runtime.caller import Caller, CallerKind
from services.runtime.errors import ServiceError

_log = logging.getLogger(__name__)

PATH = "/callback"
_PARAMETER_LENGTH_MAX = 8192


class Completes(Protocol):
    """What the callback needs of the authorizations."""

    async def owner_of(self, state: str) -> tuple[str, str] | None:
        """Tenant and subject of a state."""
        ...

    async def return_uri_of(self, tenant_id: str, state: str) -> str:
        """Where to send the person afterwards; "" for a plain page."""
        ...

    async def complete(
        self, caller: Caller, state: str, issuer: str, *, code: str, error: str
    ) -> Connection:
        """Complete it. Raises ServiceError."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """What a browser is told."""

    status: int
    text: str = ""
    location: str = ""


class Callback:
    """Answers what providers send."""

    def __init__(self, authorizations: Completes) -> None:
        self._authorizations = authorizations

    async def answer(self, method: str, target: str) -> Page:
        """The page for one request."""
        try:
            parts = urlsplit(target)
        except ValueError:
            return Page(400, "This is no address.")
        if parts.path != PATH:
            return Page(404, "There is nothing here.")
        if method != "GET":
            return Page(405, "Only GET is answered here.")
        try:
            query = parse_qs(parts.query, max_num_fields=20)
        except ValueError:
            return Page(400, "The address has too many parts.")
        given = {name: values[0] for name, values in query.items() if len(values) == 1}
        if any(len(value) > _PARAMETER_LENGTH_MAX for value in given.values()):
            return Page(400, "The address is too long.")
        state, code, error = (given.get(name, "") for name in ("state", "code", "error"))
        if not state or bool(code) == bool(error):
            return Page(400, "This address is incomplete; begin again where you came from.")
        return await self._complete(state, given.get("iss", ""), code, error)

    async def _complete(self, state: str, issuer: str, code: str, error: str) -> Page:
        owner = await self._authorizations.owner_of(state)
        if owner is None:
            return Page(400, "This authorization is unknown or over; begin again.")
        tenant_id, subject = owner
        return_uri = await self._authorizations.return_uri_of(tenant_id, state)
        caller = Caller(CallerKind.USER, subject, tenant_id)
        try:
            made = await self._authorizations.complete(
                caller, state, issuer, code=code, error=error
            )
        except ServiceError as refusal:
            _log.info("an authorization was not completed: %s", refusal.reason)
            return _page(return_uri, 400, refusal.message, {"error": refusal.reason})
        said = f"{made.display_name} is connected. You can close this page."
        return _page(return_uri, 200, said, {"connection_id": made.connection_id})


def _page(return_uri: str, status: int, text: str, outcome: dict[str, str]) -> Page:
    if not return_uri:
        return Page(status, text)
    joint = "&" if urlsplit(return_uri).query else "?"
    return Page(303, text, f"{return_uri}{joint}{urlencode(outcome)}")
