"""Reads runs, grants, graphs and audit records, one or a page of them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from services.executor.audit import AuditRecord
from services.executor.grants import Grant
from services.executor.graphs import Graph
from services.executor.runs import Run
from services.executor.store import audit, grants, graphs, run_lists, runs
from services.runtime.database import Database
from services.runtime.errors import not_found
from services.runtime.paging import decode_page_token, encode_page_token, page_limit

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which page of a list: its size (0 for the default) and the token of the page before."""

    page_size: int
    page_token: str


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Some items of a list, and the token of the next page; empty when this is the last."""

    items: Sequence[Item]
    next_page_token: str


async def get_run(database: Database, tenant_id: str, run_id: str) -> Run:
    """Return the run with its open interrupts and usage. Raises ServiceError NOT_FOUND."""
    async with database.raw_tenant(tenant_id) as tx:
        run = await runs.get(tx, run_id)
        if run is None:
            raise not_found("run", run_id)
        return await runs.details(tx, run)


async def get_graph(database: Database, tenant_id: str, graph_id: str, revision: str) -> Graph:
    """Return the graph, in its newest revision when none is named. Raises NOT_FOUND."""
    async with database.raw_tenant(tenant_id) as tx:
        graph = await graphs.get(tx, graph_id, revision or None)
    if graph is None:
        raise not_found("graph", f"{graph_id}@{revision}" if revision else graph_id)
    return graph


async def list_runs(
    database: Database, tenant_id: str, wanted: Wanted, filters: run_lists.RunFilter
) -> Page[Run]:
    """Return a page of the tenant's runs, newest first. Raises PAGE_TOKEN_INVALID."""
    bound_to = _bound("ListRuns", tenant_id, filters)
    key = decode_page_token(wanted.page_token, bound_to=bound_to)
    limit = page_limit(wanted.page_size)
    async with database.tenant(tenant_id) as tx:
        found = await run_lists.page(tx, filters, key[0] if key else None, limit + 1)
    return _page(found, limit, bound_to, lambda run: run.run_id)


async def list_grants(
    database: Database, tenant_id: str, wanted: Wanted, filters: grants.GrantFilter
) -> Page[Grant]:
    """Return a page of the tenant's grants, newest first. Raises PAGE_TOKEN_INVALID."""
    bound_to = _bound("ListGrants", tenant_id, filters)
    key = decode_page_token(wanted.page_token, bound_to=bound_to)
    limit = page_limit(wanted.page_size)
    async with database.tenant(tenant_id) as tx:
        found = await grants.page(tx, filters, key[0] if key else None, limit + 1)
    return _page(found, limit, bound_to, lambda grant: grant.grant_id)


async def list_graphs(database: Database, tenant_id: str, wanted: Wanted) -> Page[Graph]:
    """Return a page of the graphs the tenant may see, by name. Raises PAGE_TOKEN_INVALID."""
    bound_to = ["ListGraphs", tenant_id]
    key = decode_page_token(wanted.page_token, bound_to=bound_to)
    limit = page_limit(wanted.page_size)
    async with database.raw_tenant(tenant_id) as tx:
        found = await graphs.page(tx, key[0] if key else "", limit + 1)
    return _page(found, limit, bound_to, lambda graph: graph.graph_id)


async def list_audit_records(
    database: Database, tenant_id: str, wanted: Wanted, filters: audit.AuditFilter
) -> Page[AuditRecord]:
    """Return a page of the tenant's audit records, newest first. Raises PAGE_TOKEN_INVALID."""
    bound_to = _bound("ListAuditRecords", tenant_id, filters)
    key = decode_page_token(wanted.page_token, bound_to=bound_to)
    limit = page_limit(wanted.page_size)
    async with database.tenant(tenant_id) as tx:
        found = await audit.page(tx, filters, key[0] if key else None, limit + 1)
    return _page(found, limit, bound_to, lambda record: record.audit_record_id)


def _bound(rpc: str, tenant_id: str, filters: Any) -> list[Any]:
    plain = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(filters).items()
    }
    return [rpc, tenant_id, plain]


def _page(
    found: Sequence[Item], limit: int, bound_to: object, key_of: Callable[[Item], str]
) -> Page[Item]:
    # One more than the page holds was asked for, so that a full last page has no successor.
    items = found[:limit]
    if len(found) <= limit:
        return Page(items, "")
    return Page(items, encode_page_token([key_of(items[-1])], bound_to=bound_to))
