"""The Ledger's SQL, one module per noun."""

from typing import TypeAlias

import asyncpg

#: What a use case opens and hands to the store: one PostgreSQL transaction.
Transaction: TypeAlias = asyncpg.Connection


class RaceLostError(Exception):
    """Raised when another process committed what this batch was about to write: post it again."""


_ONE_SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


async def read_one_snapshot(tx: Transaction) -> None:
    """Let everything that the transaction reads from here on be of one moment.

    Before its first query only.
    """
    await tx.execute(_ONE_SNAPSHOT)
