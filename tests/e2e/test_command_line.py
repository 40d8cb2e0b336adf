"""The `cogni` command as a person types it, against the running stack."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cogni.cli.__main__ import main
from cogni.client import AsyncClient
from services.standalone.demo import tenant
from tests.e2e.waiting import WAIT_SECONDS_MAX, bill, until
from tests.e2e.world import HANDLE, World

COMMAND_SECONDS_MAX = 120
EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_RUN_FAILED = 3
EXIT_NOT_PROVEN = 4


@dataclass(frozen=True)
class Typed:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def object(self) -> dict[str, Any]:
        [found] = self.objects
        return found


Cogni = Callable[..., Typed]


@pytest.fixture
def cogni_process(command_line: dict[str, str]) -> Cogni:
    """The command in a process of its own, as a shell starts it."""

    def type_it(*words: str) -> Typed:
        done = subprocess.run(
            [sys.executable, "-m", "cogni.cli", *words],
            env=command_line,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
        )
        return Typed(done.returncode, done.stdout, done.stderr)

    return type_it


@pytest.fixture
def cogni(command_line: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Cogni:
    """The command's own main, in this process: a new one each time costs a second of imports."""

    def type_it(*words: str, stdin: str = "", **environment: str) -> Typed:
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if "COGNI" in name]:
                patch.delenv(name)
            for name, value in {**command_line, **environment}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["cogni", *words])
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    main()
                except SystemExit as ended:
                    code = ended.code if isinstance(ended.code, int) else 0
        return Typed(code, out.getvalue(), err.getvalue())

    return type_it


def test_a_run_is_started_watched_listed_and_shown(cogni: Cogni, cogni_process: Cogni) -> None:
    label = f"cli={uuid.uuid4().hex}"
    grant = cogni("grants", "create", "--graph", "noop", "--name", "CLI", "--json").object
    grant_id = grant["grant_id"]

    watched = cogni_process(
        "runs", "start", "noop", "--grant", grant_id, "--watch", "--label", label
    )
    [listed] = cogni("runs", "list", "--label", label, "--json").objects
    shown = cogni("runs", "get", listed["run_id"], "--json").object
    again = cogni("runs", "watch", listed["run_id"], "--json")

    assert watched.code == 0
    assert watched.out.splitlines()[0] == listed["run_id"]
    assert "succeeded" in watched.out
    assert shown["state"] == "RUN_STATE_SUCCEEDED"
    assert [int(event["seq"]) for event in again.objects] == list(range(1, len(again.objects) + 1))
    assert "finished" in again.objects[-1]


def test_a_grant_is_created_listed_and_revoked_and_then_starts_nothing(cogni: Cogni) -> None:
    grant_id = cogni("grants", "create", "--graph", "noop", "--json").object["grant_id"]
    active = cogni("grants", "list", "--state", "active", "--json").objects

    revoked = cogni("grants", "revoke", grant_id, "--comment", "enough", "--json").object
    refused = cogni("runs", "start", "noop", "--grant", grant_id)

    assert grant_id in {grant["grant_id"] for grant in active}
    assert revoked["state"] == "GRANT_STATE_REVOKED"
    assert (refused.code, refused.out) == (EXIT_REFUSED, "")
    assert "[GRANT_REVOKED]" in refused.err


def test_a_waiting_run_is_answered_and_another_is_cancelled(cogni: Cogni) -> None:
    grant_id = cogni("grants", "create", "--graph", "approval", "--json").object["grant_id"]
    first, second = (
        cogni("runs", "start", "approval", "--grant", grant_id, "--json").object["run_id"]
        for _ in range(2)
    )
    _await_state(cogni, first, "RUN_STATE_WAITING")

    answered = cogni("runs", "answer", first, "true", "--json")
    ended = cogni("runs", "watch", first)
    cogni("runs", "cancel", second, "--comment", "not today")
    cancelled = cogni("runs", "watch", second)
    last = cogni("runs", "watch", second, "--json").objects[-1]
    from_its_end = cogni("runs", "watch", second, "--after-seq", last["seq"])

    assert answered.code == 0, answered.err
    assert ended.code == 0
    assert '"approved": true' in ended.out
    assert cancelled.code == EXIT_RUN_FAILED
    assert "cancelled" in cancelled.out
    assert (from_its_end.code, from_its_end.out) == (EXIT_RUN_FAILED, "")


async def test_a_schedule_is_created_fires_is_listed_and_paused(
    cogni: Cogni, client: AsyncClient
) -> None:
    grant_id = cogni("grants", "create", "--graph", "noop", "--json").object["grant_id"]
    created = cogni(
        *("schedules", "create", "noop", "--grant", grant_id),
        *("--every", "1s", "--json"),
    ).object
    schedule_id = created["schedule_id"]

    async def started() -> list[dict[str, Any]]:
        return cogni("schedules", "slots", schedule_id, "--state", "started", "--json").objects

    slots = await until("a slot that started", started)
    paused = cogni("schedules", "pause", schedule_id, "--note", "enough", "--json").object
    listed = cogni("schedules", "list", "--json").objects
    preview = cogni("schedules", "preview", "--cron", "0 9 * * 1", "--count", "3", "--json")
    cogni("schedules", "delete", schedule_id)

    assert slots[0]["run_id"]
    assert paused["state"] == "SCHEDULE_STATE_PAUSED"
    assert schedule_id in {schedule["schedule_id"] for schedule in listed}
    assert len(preview.objects) == 3


def test_a_connection_is_added_from_a_pipe_tried_listed_and_deleted(
    cogni: Cogni, world: World
) -> None:
    added = cogni(
        *("connections", "add-app-password", "bluesky", "--identifier", HANDLE, "--name", "CLI"),
        *("--settings", json.dumps({"service_url": world.bluesky.service_url}), "--json"),
        stdin=f"{world.bluesky.app_password}\n",
    )
    connection_id = added.object["connection_id"]

    tried = cogni("connections", "test", connection_id, "--json")
    listed = cogni("connections", "list", "--json").objects
    deleted = cogni("connections", "delete", connection_id)
    gone = cogni("connections", "get", connection_id)

    assert world.bluesky.app_password not in added.out + added.err
    assert tried.code == 0, tried.err
    assert connection_id in {each["connection_id"] for each in listed}
    assert deleted.code == 0, deleted.err
    assert gone.code in (0, EXIT_REFUSED)


async def test_money_moves_between_accounts_and_a_run_has_a_statement(
    cogni: Cogni, client: AsyncClient, world: World, grant_id: str
) -> None:
    bank, purse = (
        cogni("ledger", "accounts", "create", "--name", name, "--kind", name, "--json").object
        for name in ("funding", "spending")
    )
    moved = cogni(
        *("ledger", "transfer", "2.50 USD", "--json"),
        *("--debit", bank["account_id"], "--credit", purse["account_id"]),
    ).object
    shown = cogni("ledger", "accounts", "get", purse["account_id"], "--json").object
    run = await client.start_run(tenant.GRAPH, grant_id, {"source": str(world.feed)})
    charges = (await bill(client, run.run_id, units=1)).charges
    statement = cogni("ledger", "statement", run.run_id)

    assert moved["amount"] == {"asset": "USD", "value": "2.5"}
    assert float(shown["balance"]["balance"]["value"]) == 2.5
    assert statement.code == 0
    assert all(charge.unit.source_reference in statement.out for charge in charges)


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        (("graphs", "list"), tenant.GRAPH),
        (("runs", "audit", "--limit", "3"), "audit_record_id"),
        (("connections", "providers"), "bluesky"),
        (("connections", "records"), "decision"),
        (("ledger", "accounts", "list"), "Demo team"),
        (("ledger", "entries", "--limit", "1000"), "Pocket money for the demo"),
        (("ledger", "price-cards"), "Demo prices"),
    ],
)
def test_every_list_shows_what_there_is(
    cogni: Cogni, grant_id: str, words: tuple[str, ...], holds: str
) -> None:
    table = cogni(*words)
    objects = cogni(*words, "--json").objects

    assert (table.code, table.err) == (0, "")
    assert holds in table.out
    assert objects


def test_the_access_log_is_proven_against_a_head_kept_from_before(
    cogni: Cogni, grant_id: str
) -> None:
    first = cogni("connections", "verify-records")
    head = first.out.split("head: ")[1].strip()
    again = cogni("connections", "verify-records", "--head", head)
    forged = cogni("connections", "verify-records", "--head", f"1:{'00' * 32}")

    assert (first.code, again.code) == (0, 0)
    assert "none changed, removed or inserted" in again.out
    assert forged.code == EXIT_NOT_PROVEN
    assert "record 1 is not the one whose hash was kept" in forged.err


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("runs", "get", str(uuid.uuid4())), EXIT_REFUSED, "NOT_FOUND"),
        (("runs", "get", "not-a-uuid"), EXIT_REFUSED, "run_id"),
        (("runs", "start", "noop", "--grant", str(uuid.uuid4())), EXIT_REFUSED, "grant"),
        (("runs", "start", "noop"), EXIT_USAGE, "--grant"),
        (("runs", "start", "x", "--grant", "y", "--input", "{"), EXIT_USAGE, "not JSON"),
        (("runs", "list", "--state", "sleepy"), EXIT_USAGE, "queued"),
        (("ledger", "transfer", "much", "--debit", "a", "--credit", "b"), EXIT_USAGE, "5 USD"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(
    cogni: Cogni, words: tuple[str, ...], code: int, says: str
) -> None:
    typed = cogni(*words)

    assert (typed.code, typed.out) == (code, "")
    assert says in typed.err


def test_a_server_that_is_not_there_and_a_token_that_is_not_good_are_told(cogni: Cogni) -> None:
    absent = cogni("runs", "list", COGNI_EXECUTOR_ADDRESS="127.0.0.1:1")
    stranger = cogni("runs", "list", COGNI_TOKEN="nonsense")

    assert absent.code == stranger.code == EXIT_REFUSED
    assert "is it running, is the address right?" in absent.err
    assert "token" in stranger.err


def _await_state(cogni: Cogni, run_id: str, state: str) -> None:
    # Each look is a command of its own, which takes its time: no pause is needed between them.
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while time.monotonic() < deadline:
        shown = cogni("runs", "get", run_id, "--json").object
        if shown["state"] == state:
            return
    pytest.fail(f"run {run_id} did not become {state}: {shown['state']}")
