"""The LedgerService's servicer: translates and delegates, nothing else; one module per noun."""

from cogni.ledger.v1 import ledger_service_pb2_grpc
from services.ledger.server.accounts import AccountRpcs
from services.ledger.server.budgets import BudgetRpcs
from services.ledger.server.holds import HoldRpcs
from services.ledger.server.log import LogRpcs
from services.ledger.server.parts import Parts
from services.ledger.server.price_cards import PriceCardRpcs
from services.ledger.server.proofs import ProofRpcs
from services.ledger.server.reconciliation import ReconciliationRpcs
from services.ledger.server.usage import UsageRpcs

__all__ = ["LedgerServicer", "Parts"]


class LedgerServicer(
    AccountRpcs,
    BudgetRpcs,
    HoldRpcs,
    LogRpcs,
    PriceCardRpcs,
    ProofRpcs,
    ReconciliationRpcs,
    UsageRpcs,
    ledger_service_pb2_grpc.LedgerServiceServicer,
):
    """Serves the whole contract."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
