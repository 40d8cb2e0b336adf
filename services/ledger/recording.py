"""Takes usage units in, judges each by itself, and has the good ones charged once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from services.ledger.accounts import Account
from services.ledger.commands import UsageCommand, UsageOutcome, UsageResult
from services.ledger.directory import Directory
from services.ledger.units import RESERVED_SYSTEMS, UsageUnit, is_uuid
from services.ledger.writer import Writer
from services.runtime.caller import Caller
from services.runtime.errors import Violation, denied

_log = logging.getLogger(__name__)


class Recording:
    """What RecordUsage does."""

    def __init__(
        self,
        directory: Directory,
        writer: Writer,
        clock: Callable[[], datetime],
        on_conflict: Callable[[int], None],
    ) -> None:
        """`on_conflict` is told how many units of a request met CONFLICT, for the alarm."""
        self._directory = directory
        self._writer = writer
        self._clock = clock
        self._on_conflict = on_conflict

    async def record(self, caller: Caller, units: Sequence[UsageUnit]) -> list[UsageOutcome]:
        """Record and charge units; return one outcome per unit, in their order.

        Raises SOURCE_SYSTEM_RESERVED for the whole request when the caller speaks for another
        system, before anything is recorded.
        """
        _check_may_report(caller, units)
        now = self._clock()
        accounts = await self._directory.find(
            caller.tenant_id, {unit.account_id for unit in units if is_uuid(unit.account_id)}
        )
        outcomes: dict[int, UsageOutcome] = {}
        commands: dict[int, UsageCommand] = {}
        for index, unit in enumerate(units):
            account = accounts.get(unit.account_id)
            violations = unit.violations(now) or _account_violations(account)
            if violations or account is None:
                rejected = UsageOutcome(UsageResult.REJECTED, violations=tuple(violations))
                outcomes[index] = rejected
            else:
                commands[index] = UsageCommand(unit.key, unit.payload_hash(), unit, account)
        answers = await self._writer.submit(list(commands.values()))
        for index, answer in zip(commands, answers, strict=True):
            assert isinstance(answer, UsageOutcome)
            outcomes[index] = answer
        self._alarm(units, outcomes)
        return [outcomes[index] for index in range(len(units))]

    def _alarm(self, units: Sequence[UsageUnit], outcomes: dict[int, UsageOutcome]) -> None:
        conflicts = [i for i, each in outcomes.items() if each.result is UsageResult.CONFLICT]
        if conflicts:
            self._on_conflict(len(conflicts))
            first = units[conflicts[0]].key
            _log.error(
                "%d usage units of tenant %s were recorded before with other content; first: %s %s",
                len(conflicts),
                first.tenant_id,
                first.source_system,
                first.source_reference,
            )


def _check_may_report(caller: Caller, units: Sequence[UsageUnit]) -> None:
    for unit in units:
        system = unit.key.source_system
        if system in RESERVED_SYSTEMS and system != caller.service:
            raise denied(
                "SOURCE_SYSTEM_RESERVED",
                f"Only Cogni's {system} reports under the source_system {system!r}; use a name "
                "of your own.",
                metadata={"source_system": system},
            )
        if caller.service is not None and system != caller.service:
            raise denied(
                "SOURCE_SYSTEM_RESERVED",
                f"The service {caller.service!r} reports under its own name alone.",
                metadata={"source_system": system},
            )


def _account_violations(account: Account | None) -> list[Violation]:
    if account is None:
        return [Violation("account_id", "there is no such account in your tenant")]
    if account.kind.is_system:
        return [Violation("account_id", "the system's own accounts do not pay for usage")]
    return []
