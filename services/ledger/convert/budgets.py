"""Translates budgets and their terms."""

from __future__ import annotations

from cogni.ledger.v1 import budget_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.budgeting import Terms
from services.ledger.budgets import Budget, BudgetPeriod
from services.ledger.convert.scalars import amount, timestamp
from services.ledger.store.budgets import BudgetChange

_TERMS = ("period", "limit", "threshold_percents")


def budget(budget: Budget) -> budget_pb2.Budget:
    """Return the message of a budget."""
    message = budget_pb2.Budget(
        account_id=budget.account_id,
        period=budget_pb2.BudgetPeriod.ValueType(budget.period),
        limit=amount(budget.limit, budget.asset),
        threshold_percents=budget.thresholds,
        spent=amount(budget.spent, budget.asset),
        state=budget_pb2.BudgetState.ValueType(budget.state),
        reached_percent=budget.reached_percent,
        period_start_time=timestamp(budget.period_start_time),
        etag=str(budget.version),
    )
    if budget.period_end_time is not None:
        message.period_end_time.CopyFrom(timestamp(budget.period_end_time))
    return message


def change(change: BudgetChange) -> budget_pb2.BudgetChange:
    """Return the message of a change."""
    return budget_pb2.BudgetChange(
        tenant_id=change.budget.tenant_id,
        budget=budget(change.budget),
        change_time=timestamp(change.change_time),
    )


def terms(request: pb.SetBudgetRequest) -> Terms:
    """Return what a SetBudget asks for; without a mask all terms are set."""
    wanted = set(request.update_mask.paths) if request.HasField("update_mask") else set(_TERMS)
    of = request.budget
    return Terms(
        request.request_id,
        of.account_id,
        of.etag,
        BudgetPeriod(of.period) if "period" in wanted and of.period else None,
        (of.limit.asset, of.limit.value) if "limit" in wanted and of.HasField("limit") else None,
        tuple(of.threshold_percents) if "threshold_percents" in wanted else None,
    )
