"""Who may call which RPC of the Ledger."""

from __future__ import annotations

from services.runtime.access import Access, AccessTable

_SERVICE = "/cogni.ledger.v1.LedgerService/"

_READ = Access("ledger:read")
_WRITE = Access("ledger:write")
_ADMIN = Access("ledger:admin")
# The Executor checks the account that a grant names.
_READ_BY_SERVICES = Access("ledger:read", services=frozenset({"executor", "scheduler"}))
# A runner acts on its run's hold with its run token; the Executor's server tidies up after it.
_HOLD = Access("ledger:write", services=frozenset({"executor"}), runs=True)

ACCESS: AccessTable = {
    f"{_SERVICE}{method}": access
    for method, access in {
        "CreateAccount": _WRITE,
        "GetAccount": _READ_BY_SERVICES,
        "ListAccounts": _READ,
        "Transfer": _WRITE,
        "CorrectEntry": _ADMIN,
        "PlaceHold": _HOLD,
        "TopUpHold": _HOLD,
        "SettleHold": _WRITE,
        "ReleaseHold": _HOLD,
        "RecordUsage": Access("ledger:admin", services=frozenset({"executor"})),
        "CloseRun": Access(users=False, services=frozenset({"executor"})),
        "GetRunStatement": Access(
            "ledger:read", services=frozenset({"executor", "scheduler"}), runs=True
        ),
        "GetStatement": _READ,
        "ExportEntries": _READ,
        "ListEntries": _READ,
        "WatchEntries": _READ,
        "SetBudget": _ADMIN,
        "GetBudget": _READ_BY_SERVICES,
        "ListBudgets": _READ,
        "WatchBudgets": Access("ledger:read", services=frozenset({"scheduler"}), cross_tenant=True),
        "CreatePriceCard": _ADMIN,
        "GetPriceCard": _READ,
        "ListPriceCards": _READ,
        "GetReceipt": _READ,
        "GetTreeHead": _READ,
        "GetInclusionProof": _READ,
        "GetConsistencyProof": _READ,
        "ListGaps": _READ,
        "ReconcileUsage": _READ,
    }.items()
}
