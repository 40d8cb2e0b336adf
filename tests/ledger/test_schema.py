"""The second wall: without its tenant bound, the serving role sees and changes nothing."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest


async def test_every_table_stands_behind_the_tenant_wall(
    database: Any, prove_tenant_wall: Any
) -> None:
    await prove_tenant_wall(await database("ledger"))


@pytest.mark.parametrize("table", ["entries", "keys", "log_nodes", "accounts", "price_cards"])
@pytest.mark.parametrize("statement", ["DELETE FROM {}", "UPDATE {} SET tenant_id = 'acme'"])
async def test_the_serving_role_can_neither_change_nor_remove_what_was_recorded(
    database: Any, table: str, statement: str
) -> None:
    ledger = await database("ledger")

    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with ledger.raw_tenant("acme") as tx:
            await tx.execute(statement.format(table))
