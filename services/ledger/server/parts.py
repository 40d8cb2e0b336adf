"""The use cases that the servicer delegates to, and what its RPCs share."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

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
from services.runtime.paging import page_token_invalid

_SEQUENCE_MAX = 2**63 - 1

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


def time_and_id(key: list[Any] | None) -> tuple[datetime, str] | None:
    """Return the place in a list sorted by time and id that a page token keeps.

    Tokens are not signed: one that a caller made up is refused like a damaged one.
    """
    if key is None:
        return None
    try:
        moment, identity = key
        place = (datetime.fromisoformat(moment), str(UUID(identity)))
    except (TypeError, ValueError, AttributeError):
        raise page_token_invalid() from None
    if place[0].tzinfo is None:
        raise page_token_invalid()
    return place


def tenant_and_id(key: list[Any] | None) -> tuple[str, str] | None:
    """Return the place in a list sorted by tenant and id that a page token keeps."""
    if key is None:
        return None
    try:
        tenant_id, identity = key
        place = (tenant_id, str(UUID(identity)))
    except (TypeError, ValueError, AttributeError):
        raise page_token_invalid() from None
    if not isinstance(tenant_id, str):
        raise page_token_invalid()
    return place


def sequence_of(key: list[Any] | None) -> int | None:
    """Return the place in the log that a page token keeps."""
    if key is None:
        return None
    if len(key) != 1 or type(key[0]) is not int or not 0 <= key[0] <= _SEQUENCE_MAX:
        raise page_token_invalid()
    return key[0]
