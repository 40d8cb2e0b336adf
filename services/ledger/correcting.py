"""Gives back what was charged or moved wrongly, because a person decided so."""

from __future__ import annotations

from services.ledger.canonical import fingerprint
from services.ledger.commands import CorrectionCommand, request_key
from services.ledger.directory import Directory
from services.ledger.entries import Entry, EntryKind
from services.ledger.store import entries
from services.ledger.transferring import amount_in
from services.ledger.writer import Writer
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import (
    ServiceError,
    failed_precondition,
    not_found,
)

_NOT_CORRECTABLE = (EntryKind.CORRECTION, EntryKind.ROUNDING)


class Correcting:
    """What CorrectEntry does."""

    def __init__(self, database: Database, directory: Directory, writer: Writer) -> None:
        self._database = database
        self._directory = directory
        self._writer = writer

    async def correct(
        self,
        caller: Caller,
        request_id: str,
        sequence: int,
        amount: tuple[str, str] | None,
        description: str,
    ) -> Entry:
        """Append the entry that gives back `amount` (asset, value), or all that is left."""
        place = (caller.tenant_id, sequence)
        async with self._database.raw_tenant(caller.tenant_id) as tx:
            entry = (await entries.at(tx, [place])).get(place)
        if entry is None:
            raise not_found("entry", str(sequence))
        _check_correctable(entry)
        found = await self._directory.find(
            caller.tenant_id, [entry.debit_account_id, entry.credit_account_id]
        )
        minor = amount and amount_in(found[entry.debit_account_id], *amount)
        command = CorrectionCommand(
            request_key(caller.tenant_id, "CorrectEntry", request_id),
            fingerprint(
                {
                    "sequence": sequence,
                    "amount": "" if minor is None else str(minor),
                    "description": description,
                }
            ),
            entry,
            found[entry.debit_account_id],
            found[entry.credit_account_id],
            minor,
            description,
        )
        (outcome,) = await self._writer.submit([command])
        if isinstance(outcome, ServiceError):
            raise outcome
        assert isinstance(outcome, Entry)
        return outcome


def _check_correctable(entry: Entry) -> None:
    if entry.kind in _NOT_CORRECTABLE or entry.amount == 0:
        raise failed_precondition(
            "ENTRY_NOT_CORRECTABLE",
            "A correction, a rounding and an entry of zero can't be corrected; correct the entry "
            "it names, or transfer the money.",
            metadata={"sequence": str(entry.sequence)},
        )
