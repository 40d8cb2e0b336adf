"""Makes, through public RPCs only, what a team needs before its first run."""

import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cogni.client import AsyncClient, CogniError, NotImplementedYet, to_struct, to_value
from cogni.connections.v1.connections_service_pb2 import CreateConnectionRequest
from cogni.connections.v1.credential_pb2 import AppPasswordSecret, ConnectionSecret
from cogni.executor.v1.executor_service_pb2 import ListGraphsRequest
from cogni.executor.v1.grant_pb2 import ArgumentConstraint, ToolPermission
from cogni.executor.v1.grant_service_pb2 import CreateGrantRequest
from cogni.ledger.v1.account_pb2 import AccountKind
from cogni.ledger.v1.ledger_service_pb2 import (
    CreateAccountRequest,
    CreatePriceCardRequest,
    TransferRequest,
)
from cogni.ledger.v1.price_card_pb2 import PriceCard, UnitPrice
from cogni.scheduler.v1.schedule_pb2 import RunTemplate, Schedule
from cogni.scheduler.v1.scheduler_service_pb2 import CreateScheduleRequest
from cogni.scheduler.v1.spec_pb2 import IntervalRecurrence, ScheduleSpec
from cogni.type.v1.amount_pb2 import Amount
from services.standalone.demo.outside import Bluesky

ASSET: Final = "USD"
FUNDS: Final = "5"
MARKUP: Final = "1.2"
POST_PRICE: Final = "0.001"
GRAPH: Final = "digest"
READ_TOOL: Final = "read_changes"
POST_TOOL: Final = "post_to_bluesky"


@dataclass(frozen=True)
class Tenant:
    """What there is to run with."""

    account_id: str
    connection_id: str
    price_card: str


def new_request_id() -> str:
    """A fresh key that makes one create safe to repeat."""
    return str(uuid.uuid4())


async def found(client: AsyncClient, bluesky: Bluesky) -> Tenant:
    """An account with funds, a price card, and a connection."""
    bank = await client.ledger.CreateAccount(
        CreateAccountRequest(
            request_id=new_request_id(),
            display_name="Demo bank",
            asset=ASSET,
            kind=AccountKind.ACCOUNT_KIND_FUNDING,
        )
    )
    purse = await client.ledger.CreateAccount(
        CreateAccountRequest(request_id=new_request_id(), display_name="Demo team", asset=ASSET)
    )
    await client.ledger.Transfer(
        TransferRequest(
            request_id=new_request_id(),
            debit_account_id=bank.account.account_id,
            credit_account_id=purse.account.account_id,
            amount=Amount(asset=ASSET, value=FUNDS),
            description="Pocket money for the demo",
        )
    )
    price_card = await _price_card(client)
    connection = await client.connections.CreateConnection(
        CreateConnectionRequest(
            request_id=new_request_id(),
            provider="bluesky",
            display_name=f"Demo account {bluesky.handle}",
            settings=to_struct({"service_url": bluesky.service_url}),
            secret=ConnectionSecret(
                app_password=AppPasswordSecret(
                    identifier=bluesky.handle, password=bluesky.app_password
                )
            ),
        )
    )
    return Tenant(purse.account.account_id, connection.connection.connection_id, price_card)


async def _price_card(client: AsyncClient) -> str:
    card = PriceCard(
        display_name="Demo prices",
        asset=ASSET,
        markup=MARKUP,
        tool_prices=[UnitPrice(name=POST_TOOL, price=POST_PRICE)],
    )
    try:
        made = await client.ledger.CreatePriceCard(
            CreatePriceCardRequest(request_id=new_request_id(), price_card=card)
        )
    except NotImplementedYet:
        return "This Ledger has no price cards yet: a call is charged what the provider takes."
    version = made.price_card.version
    return (
        f"Price card version {version}: what the provider takes, times {MARKUP}; "
        f"{POST_PRICE} {ASSET} for each {POST_TOOL}, times {MARKUP}."
    )


async def grant(client: AsyncClient, tenant: Tenant, source: str, *, may_post: bool) -> str:
    """A grant for the digest of one source; returns its id."""
    tools = [
        ToolPermission(
            tool=READ_TOOL,
            arguments=[ArgumentConstraint(path="source", required=True, equals=to_value(source))],
        )
    ]
    if may_post:
        tools.append(ToolPermission(tool=POST_TOOL, max_invocations_per_run=1))
    answer = await client.grants.CreateGrant(
        CreateGrantRequest(
            request_id=new_request_id(),
            display_name="Digest" if may_post else "Digest, read only",
            graphs=[f"graph:execute:{GRAPH}"],
            tools=tools,
            connection_ids=[tenant.connection_id] if may_post else [],
            account_id=tenant.account_id,
            budget=Amount(asset=ASSET, value="1"),
        )
    )
    return answer.grant.grant_id


async def schedule(client: AsyncClient, grant_id: str, run_input: dict[str, object]) -> str:
    """A schedule that fires once, within two seconds; returns its id."""
    every = IntervalRecurrence()
    every.every.FromTimedelta(timedelta(seconds=2))
    answer = await client.scheduler.CreateSchedule(
        CreateScheduleRequest(
            request_id=new_request_id(),
            schedule=Schedule(
                display_name="Digest, once",
                spec=ScheduleSpec(interval=every),
                run=RunTemplate(graph_id=GRAPH, grant_id=grant_id, input=to_struct(run_input)),
                remaining_actions=1,
            ),
        )
    )
    return answer.schedule.schedule_id


async def graphs_are_published(client: AsyncClient) -> bool:
    """Whether a runner has announced the demo's graph."""
    try:
        answer = await client.executor.ListGraphs(ListGraphsRequest())
    except CogniError:
        return False
    return any(graph.graph_id == GRAPH for graph in answer.graphs)
