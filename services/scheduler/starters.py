"""Holds what a starter process stands on, made when its first message comes."""

from __future__ import annotations

import asyncio

from services.scheduler.composition import standing
from services.scheduler.settings import JobSettings
from services.scheduler.use_cases.starting import Starter


class Starters:
    """One Starter per process and event loop, made lazily: a channel must not cross a spawn."""

    def __init__(self, settings: JobSettings) -> None:
        self._settings = settings
        self._starter: Starter | None = None
        self._making = asyncio.Lock()

    async def get(self) -> Starter:
        """The process's starter. It lives as long as the process."""
        async with self._making:
            if self._starter is None:
                self._standing = standing(self._settings, "starter")
                on = await self._standing.__aenter__()
                # What a start owes (a turn, a cancellation) the clock's relay sweeps each second.
                self._starter = Starter(on.database, on.executor, lambda: None)
        return self._starter
