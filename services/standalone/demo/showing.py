"""Starts a stack for the demo, tells the story on it, and says how to go on."""

import asyncio
import os
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Final

from cogni.client import AsyncClient, ClientSettings, CogniError
from services.standalone.callers import ALL_SCOPES
from services.standalone.console import Screen, program
from services.standalone.datadir import DataDir
from services.standalone.demo.outside import bluesky
from services.standalone.demo.story import Story
from services.standalone.errors import StandaloneError
from services.standalone.keys import now_utc
from services.standalone.programs import SERVICES
from services.standalone.running import run_on
from services.standalone.stack import Stack, StackOptions

SUBJECT: Final = "demo"
TENANT: Final = "demo"
TOKEN_TTL: Final = timedelta(hours=1)
#: A killed runner is noticed when its lease ends; nobody wants to watch the usual ten seconds.
QUICK_TAKEOVER: Final = {"COGNI_RUNNER_LEASE_SECONDS": "5"}


def show(data_dir: Path, graphs: Path, source: Path) -> None:
    """Plays the demo. Raises StandaloneError with a sentence when something goes wrong."""
    screen = Screen()
    screen.title("Cogni: the main job, end to end, on this machine")
    screen.say(f"  data in {data_dir}\n")
    directory, source = DataDir(data_dir), source.resolve()
    outside = bluesky(os.environ, directory.path, directory.logs)
    companions = [] if outside.stand_in is None else [outside.stand_in]
    options = StackOptions(data_dir, graphs, settings={**outside.settings, **QUICK_TAKEOVER})
    stack = Stack(options, screen.report, companions=companions)
    last_run_id = ""

    async def tell(stack: Stack) -> None:
        nonlocal last_run_id
        screen.say(f"  everything is healthy after {screen.seconds():.1f} s")
        async with AsyncClient(_settings(stack)) as client:
            story = Story(screen, stack, client, outside, source)
            try:
                last_run_id = await story.tell()
            except CogniError as error:
                raise StandaloneError(f"A call was refused: {error.message}") from error

    try:
        asyncio.run(run_on(stack, tell))
    finally:
        screen.say()
    if last_run_id:
        _how_to_go_on(screen, data_dir, last_run_id)


def _settings(stack: Stack) -> ClientSettings:
    token = stack.directory.keys.mint_caller_token(
        subject=SUBJECT, tenant=TENANT, scopes=ALL_SCOPES, ttl=TOKEN_TTL, now=now_utc()
    )
    addresses = {service: stack.address(service) for service in SERVICES}
    return ClientSettings(addresses=addresses, token=lambda: token)


def _how_to_go_on(screen: Screen, data_dir: Path, run_id: str) -> None:
    where = shlex.quote(str(data_dir))
    screen.say(
        f"Done in {screen.seconds():.0f} s; everything is stopped, the data stay in {data_dir}.\n\n"
        "Go on with the same data:\n\n"
        f"  {program('python')} -m services.standalone up --data-dir {where}\n\n"
        "and in another terminal:\n\n"
        f'  eval "$({program("python")} -m services.standalone env --data-dir {where})"\n'
        f"  {program('cogni')} runs watch {run_id}\n"
        f"  {program('cogni')} ledger statement {run_id}\n"
        f"  {program('cogni')} runs list\n\n"
        "The graph is examples/digest.py; README.md shows grpcurl and the Python client."
    )
