"""The use cases that the servicer delegates to, and what its RPCs share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

import grpc.aio

from services.ledger.budgeting import Budgeting
from services.ledger.closing import Closing
from services.ledger.completeness import Completeness
from services.ledger.correcting import Correcting
from services.ledger.directory import Directory
from services.ledger.following import Following
from services.ledger.holding import Holding
from services.ledger.price_list import PriceList
from services.ledger.proving import Proving
from services.ledger.reconciling import Reconciling
from services.ledger.recording import Recording
from services.ledger.statements import Statements
from services.ledger.transferring import Transferring

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each."""

    directory: Directory
    transferring: Transferring
    correcting: Correcting
    recording: Recording
    holding: Holding
    closing: Closing
    statements: Statements
    price_list: PriceList
    budgeting: Budgeting
    proving: Proving
    completeness: Completeness
    reconciling: Reconciling
    following: Following


def time_and_id(key: list[str] | None) -> tuple[datetime, str] | None:
    """Return the place in a list sorted by time and id that a page token keeps."""
    return None if key is None else (datetime.fromisoformat(key[0]), key[1])
