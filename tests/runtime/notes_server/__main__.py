"""A whole service process for tests: `python -m tests.runtime.notes_server`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from services.runtime.command import Process, ServiceProcessSettings, service_command
from services.runtime.drain import Drain, stream_drained
from services.runtime.server import Application
from tests.plugins.pets import FeedPetResponse, UnbuiltPets, pet_application


class NotesSettings(ServiceProcessSettings):
    service: ClassVar[str] = "notes"


class Pets(UnbuiltPets):
    """Says which process answers; dies, hangs or streams when asked to."""

    def __init__(self, drain: Drain) -> None:
        self._drain = drain

    async def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.name == "die":
            os._exit(9)
        if request.name == "hang":
            await asyncio.Event().wait()
        return FeedPetResponse(name=str(os.getpid()))

    async def WatchPet(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield FeedPetResponse(name=str(os.getpid()))
        await self._drain.draining.wait()
        if request.name == "late":
            # The rest of some work, which a drain waits for and a hurried stop does not.
            await asyncio.sleep(0.5)
        yield FeedPetResponse(name="resume here")
        raise stream_drained()


@asynccontextmanager
async def compose(process: Process[NotesSettings]) -> AsyncIterator[Application]:
    yield pet_application(Pets(process.drain))


app = service_command(NotesSettings, compose, package="tests.runtime.migrated")

if __name__ == "__main__":
    app()
