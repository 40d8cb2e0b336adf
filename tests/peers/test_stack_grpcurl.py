"""The services as grpcurl sees them: reflection, a run started and watched, errors that say why."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from bench.embedded import embedded
from cogni.executor.v1.executor_service_pb2 import StartRunResponse, WatchRunResponse
from cogni.executor.v1.grant_service_pb2 import CreateGrantResponse
from cogni.executor.v1.run_pb2 import RunState
from tools.peers import ROOT, go_program

GRAPHS = ROOT / "examples" / "langgraph.json"
CALL_SECONDS_MAX = 120
EXECUTOR = "cogni.executor.v1.ExecutorService"
GRANTS = "cogni.executor.v1.GrantService"
#: What each server must offer besides the standard health and reflection services.
SERVICES = {
    "EXECUTOR": {EXECUTOR, GRANTS, "cogni.executor.v1.RunnerService"},
    "SCHEDULER": {"cogni.scheduler.v1.SchedulerService", "cogni.scheduler.v1.TriggerService"},
    "CONNECTIONS": {"cogni.connections.v1.ConnectionsService"},
    "LEDGER": {"cogni.ledger.v1.LedgerService"},
}

Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True)
class Grpcurl:
    """The program, and where it calls as whom."""

    program: Path
    environment: dict[str, str]

    def __call__(
        self,
        *words: str,
        service: str = "EXECUTOR",
        options: tuple[str, ...] = (),
        data: dict[str, Any] | None = None,
        token: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        bearer = self.environment["COGNI_TOKEN"] if token is None else token
        given = () if data is None else ("-d", json.dumps(data))
        return subprocess.run(
            [
                *(str(self.program), "-plaintext", "-H", f"authorization: Bearer {bearer}"),
                *(*options, *given, self.environment[f"COGNI_{service}_ADDRESS"], *words),
            ],
            capture_output=True,
            text=True,
            timeout=CALL_SECONDS_MAX,
            cwd=ROOT,
        )

    def answer(self, method: str, data: dict[str, Any], kind: type[Answer], **how: Any) -> Answer:
        done = self(method, data=data, **how)
        assert done.returncode == 0, done.stderr
        # Fields have the contract's names when reflection told them, JSON's when files did.
        return json_format.Parse(done.stdout, kind())


@pytest.fixture(scope="module")
def grpcurl() -> Iterator[Grpcurl]:
    program = go_program("github.com/fullstorydev/grpcurl/cmd/grpcurl", "v1.9.4")
    with embedded(GRAPHS) as stack:
        yield Grpcurl(program, stack.environment("peers"))


def _messages(text: str) -> list[Any]:
    """The JSON objects that grpcurl printed one after the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        message, at = decoder.raw_decode(text, at)
        found.append(message)
    return found


def _grant(grpcurl: Grpcurl, **how: Any) -> str:
    request = {"request_id": str(uuid.uuid4()), "graphs": ["graph:execute:noop"]}
    answer = grpcurl.answer(f"{GRANTS}/CreateGrant", request, CreateGrantResponse, **how)
    return answer.grant.grant_id


def _start(grpcurl: Grpcurl, grant_id: str, **how: Any) -> str:
    request = {
        "request_id": str(uuid.uuid4()),
        "graph_id": "noop",
        "grant_id": grant_id,
        "input": {"note": "by hand"},
    }
    return grpcurl.answer(f"{EXECUTOR}/StartRun", request, StartRunResponse, **how).run.run_id


@pytest.mark.parametrize("service", SERVICES)
def test_every_server_lists_its_services_by_reflection(grpcurl: Grpcurl, service: str) -> None:
    listed = grpcurl("list", service=service)

    assert SERVICES[service] <= set(listed.stdout.split()), listed.stderr
    assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(
        listed.stdout.split()
    )


def test_a_service_and_a_message_are_described(grpcurl: Grpcurl) -> None:
    service = grpcurl("describe", EXECUTOR)
    message = grpcurl("describe", "cogni.executor.v1.StartRunRequest")

    assert "rpc WatchRun" in service.stdout, service.stderr
    assert "string request_id = 1;" in message.stdout, message.stderr


def test_a_run_is_started_and_watched_to_its_end(grpcurl: Grpcurl) -> None:
    run_id = _start(grpcurl, _grant(grpcurl))

    watched = grpcurl(f"{EXECUTOR}/WatchRun", data={"run_id": run_id})

    assert watched.returncode == 0, watched.stderr
    batches = [
        json_format.ParseDict(each, WatchRunResponse()) for each in _messages(watched.stdout)
    ]
    events = [event for batch in batches for event in batch.events]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[-1].finished.state == RunState.RUN_STATE_SUCCEEDED
    assert json_format.MessageToDict(events[-1].finished.output) == {"note": "by hand"}


def test_bad_input_is_answered_with_every_violation(grpcurl: Grpcurl) -> None:
    refused = grpcurl(f"{EXECUTOR}/StartRun", data={"graph_id": "noop"})

    assert refused.returncode != 0
    assert "Code: InvalidArgument" in refused.stderr
    assert "request_id" in refused.stderr
    assert "grant_id" in refused.stderr
    assert '"reason": "INVALID_REQUEST"' in refused.stderr


def test_a_refusal_says_what_was_wrong(grpcurl: Grpcurl) -> None:
    absent = grpcurl(f"{EXECUTOR}/GetRun", data={"run_id": str(uuid.uuid4())})
    stranger = grpcurl(f"{EXECUTOR}/ListRuns", data={}, token="nonsense")

    assert "Code: NotFound" in absent.stderr
    assert '"reason": "NOT_FOUND"' in absent.stderr
    assert "Code: Unauthenticated" in stranger.stderr


def test_the_protos_alone_are_enough(grpcurl: Grpcurl) -> None:
    from_files = (
        *("-use-reflection=false", "-import-path", "proto"),
        *("-proto", "cogni/executor/v1/executor_service.proto"),
        *("-proto", "cogni/executor/v1/grant_service.proto"),
    )

    run_id = _start(grpcurl, _grant(grpcurl, options=from_files), options=from_files)
    watched = grpcurl(f"{EXECUTOR}/WatchRun", data={"run_id": run_id}, options=from_files)

    assert watched.returncode == 0, watched.stderr
    assert "RUN_STATE_SUCCEEDED" in watched.stdout
