"""Webhooks: events are written with the change, sent at least once, signed, and never lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from cogni.egress_rules import EgressRules
from services.connections.adapters.egress import Egress, EgressLimits
from services.connections.composition import list_undelivered
from services.connections.connection import State, StateReason
from services.connections.settings import ConnectionsSettings
from services.connections.store import connections, events
from services.connections.use_cases.webhooks import LIMITS, Webhooks
from services.connections.webhook import AGE_MAX, Endpoint
from services.runtime import outbox
from services.runtime.command import Process
from services.runtime.drain import Drain
from services.runtime.relay import Relay, RelayLimits
from tests.connections.conftest import CANARY, World, user

OLD, NEW = f"whsec_{'b2xk' * 8}", f"whsec_{'bmV3' * 8}"
AT_ONCE = replace(LIMITS, pause_first=timedelta(0))


@dataclass
class Receiver:
    """Somebody's endpoint, which answers as a test decides."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    #: What it waits for before it answers.
    answers: Event = field(default_factory=Event)
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.seen]

    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.seen]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.answers.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.seen.append(({k.lower(): v for k, v in self.headers.items()}, body))
            receiver.answers.wait(30)
            self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(receiver.body)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(receiver.body)

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}/hook"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield receiver
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Sender:
    """One process that sends; `now` is what its clock says."""

    relay: Relay
    egress: Egress


def sender(
    world: World,
    receiver: Receiver,
    *,
    secrets: tuple[str, ...] = (NEW,),
    tenant: str = "t1",
    after: timedelta = timedelta(0),
    limits: RelayLimits = AT_ONCE,
    allow: bool = True,
    patience: timedelta = timedelta(seconds=5),
) -> Sender:
    address = receiver.url.removeprefix("http://").removesuffix("/hook")
    rules = EgressRules.parse(address if allow else "")
    egress = Egress(rules, limits=EgressLimits(total=patience))
    webhooks = Webhooks(
        world.database,
        egress,
        {tenant: Endpoint(receiver.url, secrets)},
        clock=lambda: datetime.now(UTC) + after,
    )
    return Sender(webhooks.relay(limits), egress)


async def send(sending: Sender, times: int = 1) -> None:
    for _ in range(times):
        await sending.relay.send_due()
    await sending.egress.close()


async def given_up(world: World) -> list[events.Undelivered]:
    async with world.database.jobs() as tx:
        return await events.undelivered(tx, limit=10)


async def put(world: World, connection_id: str, state: State, reason: StateReason) -> None:
    async with world.database.tenant("t1") as tx:
        await connections.change_state(tx, "t1", connection_id, state, reason=reason)


async def test_each_change_is_told_once_in_order_signed_and_without_a_secret(
    world: World, receiver: Receiver
) -> None:
    made = await world.connect(user())
    async with world.database.tenant("t1") as tx:
        await connections.change(tx, "t1", made.connection_id, {"display_name": "Ann's"})
    await put(world, made.connection_id, State.NEEDS_REAUTH, StateReason.LOST_ROTATION)
    await world.connections.delete(user(), made.connection_id, etag="", allow_missing=False)

    await send(sender(world, receiver), times=2)

    told = sorted(receiver.told(), key=lambda each: each["data"]["sequence"])
    assert [each["type"] for each in told] == [
        "connection.created",
        "connection.updated",
        "connection.state_changed",
        "connection.deleted",
    ]
    changed = told[2]["data"]
    assert (changed["previous_state"], changed["state"]) == ("ACTIVE", "NEEDS_REAUTH")
    assert changed["state_reason"] == "LOST_ROTATION"
    assert {each["data"]["connection_id"] for each in told} == {made.connection_id}
    assert len(set(receiver.ids())) == 4
    for headers, body in receiver.seen:
        assert Webhook(NEW).verify(body, headers) == json.loads(body)
        assert CANARY.encode() not in body
        with pytest.raises(WebhookVerificationError):
            Webhook(NEW).verify(body + b" ", headers)


async def test_a_change_that_is_rolled_back_is_told_to_nobody(
    world: World, receiver: Receiver
) -> None:
    made = await world.connect(user())
    await send(sender(world, receiver))
    with suppress(ZeroDivisionError):
        async with world.database.tenant("t1") as tx:
            await connections.change_state(tx, "t1", made.connection_id, State.REVOKED)
            raise ZeroDivisionError

    await send(sender(world, receiver))

    assert [each["type"] for each in receiver.told()] == ["connection.created"]


async def test_a_renewal_that_goes_well_is_no_event(world: World, receiver: Receiver) -> None:
    made = await world.connect(user())
    for state in (State.REFRESHING, State.ACTIVE):
        await put(world, made.connection_id, state, StateReason.NONE)
    await put(world, made.connection_id, State.REFRESHING, StateReason.NONE)
    await put(world, made.connection_id, State.NEEDS_REAUTH, StateReason.EXPIRED)

    await send(sender(world, receiver), times=2)

    states = [(each["data"]["previous_state"], each["data"]["state"]) for each in receiver.told()]
    assert sorted(states) == [("", "ACTIVE"), ("ACTIVE", "NEEDS_REAUTH")]


async def test_while_secrets_are_exchanged_old_and_new_ones_verify(
    world: World, receiver: Receiver
) -> None:
    await world.connect(user())

    await send(sender(world, receiver, secrets=(NEW, OLD)))

    ((headers, body),) = receiver.seen
    for secret in (OLD, NEW):
        Webhook(secret).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(f"whsec_{'Zm9y' * 8}").verify(body, headers)


async def test_a_process_that_dies_before_it_wrote_down_its_success_sends_the_same_id_again(
    world: World, receiver: Receiver, clock: Any
) -> None:
    await world.connect(user())
    dying = sender(world, receiver)
    settle = pytest.MonkeyPatch()

    async def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with settle.context() as patch:
        patch.setattr("services.runtime.relay.settle", die)
        with pytest.raises(KeyboardInterrupt):
            await dying.relay.send_due()
    await dying.egress.close()
    await send(sender(world, receiver))
    assert len(receiver.seen) == 1, "it is the dead process's until its lease is over"
    await clock.advance(world.database, LIMITS.lease)

    await send(sender(world, receiver))

    (_, first), (_, second) = receiver.seen
    assert receiver.ids()[0] == receiver.ids()[1]
    assert first == second


async def test_two_processes_send_each_event_once(world: World, receiver: Receiver) -> None:
    for _ in range(20):
        await world.connect(user())
    one, two = sender(world, receiver), sender(world, receiver)

    await asyncio.gather(send(one, times=4), send(two, times=4))

    assert len(receiver.seen) == len(set(receiver.ids())) == 20


async def test_what_was_taken_is_not_told_again_because_its_neighbour_was_not(
    world: World, receiver: Receiver
) -> None:
    receiver.statuses = [200, 500, 200]
    for _ in range(3):
        await world.connect(user())

    await send(sender(world, receiver), times=3)

    assert len(receiver.seen) == 4
    assert len(set(receiver.ids())) == 3


@pytest.mark.parametrize(
    ("status", "body"), [(500, b"<html>oops"), (404, b""), (302, b""), (429, b"\xff\x00")]
)
async def test_anything_but_acceptance_is_tried_again_under_the_same_id(
    world: World, receiver: Receiver, status: int, body: bytes
) -> None:
    receiver.statuses, receiver.body = [status, status], body
    receiver.headers = {"location": "http://127.0.0.1:1/elsewhere"} if status == 302 else {}
    await world.connect(user())

    await send(sender(world, receiver), times=4)

    assert len(receiver.seen) == 3
    assert len(set(receiver.ids())) == 1
    assert await given_up(world) == []


async def test_a_receiver_that_is_slow_or_away_is_left_in_time_and_asked_again(
    world: World, receiver: Receiver
) -> None:
    await world.connect(user())
    receiver.answers.clear()
    await send(sender(world, receiver, patience=timedelta(milliseconds=200)))
    async with world.database.jobs() as tx:
        (owed,) = await outbox.owed(tx)
    assert (owed.entries, owed.stuck) == (1, 0)
    receiver.answers.set()
    there, receiver.url = receiver.url, "http://127.0.0.1:1/hook"
    await send(sender(world, receiver))
    receiver.url = there

    await send(sender(world, receiver))

    async with world.database.jobs() as tx:
        assert await outbox.owed(tx) == []
    assert len(set(receiver.ids())) == 1


async def test_it_waits_longer_each_time_and_as_long_as_the_receiver_asks(
    world: World, receiver: Receiver, clock: Any
) -> None:
    receiver.statuses, receiver.headers = [503, 503], {"retry-after": "7200"}
    await world.connect(user())

    await send(sender(world, receiver, limits=LIMITS))
    await clock.advance(world.database, timedelta(hours=1))
    await send(sender(world, receiver, limits=LIMITS))
    assert len(receiver.seen) == 1
    await clock.advance(world.database, timedelta(hours=1, minutes=1))
    receiver.headers = {}
    await send(sender(world, receiver, limits=LIMITS))
    await send(sender(world, receiver, limits=LIMITS))
    assert len(receiver.seen) == 2
    await clock.advance(world.database, timedelta(seconds=16))
    await send(sender(world, receiver, limits=LIMITS))
    assert len(receiver.seen) == 3


def process_of(world: World) -> Any:
    """A process of the operator's, with access to the world's database."""
    written = ConnectionsSettings.model_validate(
        {"database_url": world.database.url, "listen": "127.0.0.1:0"}
    )
    return Process(written, telemetry=None, drain=Drain())  # type: ignore[arg-type]


async def test_after_a_day_it_is_given_up_seen_by_the_operator_and_can_be_sent_again(
    world: World, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    receiver.statuses = [500, 500]
    await world.connect(user())
    await send(sender(world, receiver))
    await send(sender(world, receiver, after=AGE_MAX))
    await send(sender(world, receiver))
    assert len(receiver.seen) == 2, "given up is not tried again by itself"

    (found,) = await given_up(world)
    assert (found.event_id, found.attempts) == (receiver.ids()[0], 2)
    process = process_of(world)
    await list_undelivered(process, send_again=False)
    (line,) = capsys.readouterr().out.splitlines()
    assert found.event_id in line
    assert line.endswith("2 attempts, it answered HTTP 500")
    await list_undelivered(process, send_again=True)
    assert capsys.readouterr().out == "1 are sent again.\n"
    await send(sender(world, receiver))

    assert receiver.seen[2][1] == receiver.seen[0][1]
    assert set(receiver.ids()) == {found.event_id}
    assert await given_up(world) == []


async def test_a_receiver_that_is_gone_is_not_asked_again_for_the_event(
    world: World, receiver: Receiver
) -> None:
    receiver.statuses = [410]
    await world.connect(user())

    await send(sender(world, receiver), times=2)

    assert len(receiver.seen) == 1
    assert [each.last_error for each in await given_up(world)] == ["it answered HTTP 410"]


async def test_a_private_address_gets_nothing_unless_the_operator_allows_it(
    world: World, receiver: Receiver
) -> None:
    await world.connect(user())

    await send(sender(world, receiver, allow=False))
    assert receiver.seen == []
    await send(sender(world, receiver))

    assert len(receiver.seen) == 1


async def test_a_tenant_without_an_endpoint_owes_nobody_anything(
    world: World, receiver: Receiver
) -> None:
    await world.connect(user(tenant_id="t2"))
    await send(sender(world, receiver))
    assert receiver.seen == []
    await world.connect(user(tenant_id="t2"))

    await send(sender(world, receiver, tenant="*"))

    assert len(receiver.seen) == 1, "the event of before is not owed any more"
