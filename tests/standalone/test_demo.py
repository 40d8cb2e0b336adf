"""The demo opens one address of its own, and stops with a sentence when an act fails."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cogni.client import to_value
from cogni.egress_rules import EgressRules
from cogni.executor.v1 import grant_service_pb2, run_event_pb2, run_pb2
from cogni.scheduler.v1 import scheduler_service_pb2, slot_pb2
from services.standalone import __main__ as command
from services.standalone.console import Screen
from services.standalone.demo import showing, story
from services.standalone.demo.outside import bluesky
from services.standalone.demo.tenant import Tenant


def test_the_stand_in_alone_is_allowed_and_only_where_it_listens(tmp_path: Path) -> None:
    own = bluesky({}, tmp_path, tmp_path)
    real = bluesky({"BLUESKY_HANDLE": "ann.test", "BLUESKY_APP_PASSWORD": "p"}, tmp_path, tmp_path)

    address = own.service_url.removeprefix("http://")
    assert own.settings == {
        "COGNI_CONNECTIONS_EGRESS_ALLOW": address,
        "COGNI_RUNNER_EGRESS_ALLOW": address,
    }
    assert EgressRules.parse(address).complaint_about_url(own.service_url) is None
    assert real.settings == {}


class EmptyServer:
    """An AT Protocol server that nothing was posted to."""

    service_url = "http://server.test"

    async def posts(self, text: str) -> list[dict[str, Any]]:
        return []


class Client:
    """A stack whose schedule fires these runs, each of which says that it has posted."""

    def __init__(self, *run_ids: str) -> None:
        self.grants = self.scheduler = self
        self._slots = [slot_pb2.Slot(run_id=each) for each in run_ids]

    async def CreateGrant(self, request: object) -> Any:  # noqa: N802
        return grant_service_pb2.CreateGrantResponse()

    async def CreateSchedule(self, request: object) -> Any:  # noqa: N802
        return scheduler_service_pb2.CreateScheduleResponse()

    async def ListSlots(self, request: object) -> Any:  # noqa: N802
        return scheduler_service_pb2.ListSlotsResponse(slots=self._slots)

    async def watch_run(self, run_id: str) -> AsyncIterator[run_event_pb2.RunEvent]:
        output = to_value({"digest": "News", "post": "at://demo/1"})
        finished = run_event_pb2.RunFinished(state=run_pb2.RUN_STATE_SUCCEEDED, output=output)
        yield run_event_pb2.RunEvent(finished=finished)


@pytest.mark.parametrize(
    ("run_ids", "said"),
    [
        ((), "in vain for the schedule to fire"),
        (("run-1",), "Run run-1 succeeded and says of its post 'at://demo/1', which is not once"),
    ],
)
def test_a_schedule_that_fired_or_posted_nothing_fails_the_demo_and_names_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_ids: tuple[str, ...], said: str
) -> None:
    stack: Any = SimpleNamespace(directory=SimpleNamespace(logs=tmp_path / "logs"))
    client: Any = Client(*run_ids)
    server: Any = EmptyServer()

    def show(data_dir: Path, graphs: Path, source: Path) -> None:
        told = story.Story(Screen(), stack, client, server, source)
        asyncio.run(told._scheduled(Tenant("account", "connection", "")))

    monkeypatch.setattr(showing, "show", show)
    monkeypatch.setattr(story, "WAIT_SECONDS", 0.0)

    done = CliRunner().invoke(command.app, ["demo"])

    assert done.exit_code == 1
    assert said in done.stderr
    assert f"the logs in {tmp_path / 'logs'} say more." in done.stderr
