"""Keeps one tenant's streams from taking all the calls that a server process can carry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from services.runtime.caller import ALL_TENANTS
from services.runtime.errors import limit


class StreamShare:
    """What one process carries at most for each tenant. For one event loop."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self._held: Counter[str] = Counter()

    @contextmanager
    def held(self, tenant_id: str) -> Iterator[None]:
        """Count a stream while the block lasts. Raises LIMIT_EXCEEDED when the tenant has too many.

        Our own services' streams across tenants are not counted.
        """
        if tenant_id == ALL_TENANTS:
            yield
            return
        if self._held[tenant_id] >= self._streams_max:
            raise limit(
                "streams of a tenant", f"{self._streams_max} streams per tenant and server process"
            )
        self._held[tenant_id] += 1
        try:
            yield
        finally:
            self._held[tenant_id] -= 1
            if not self._held[tenant_id]:
                del self._held[tenant_id]
