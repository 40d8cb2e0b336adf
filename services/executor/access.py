"""Who may call which of the Executor's RPCs."""

from services.runtime.access import Access, AccessTable

_EXECUTOR = "/cogni.executor.v1.ExecutorService"
_GRANTS = "/cogni.executor.v1.GrantService"
_SCHEDULER = frozenset({"scheduler"})

_READ_RUNS = Access("runs:read")
_WRITE_RUNS = Access("runs:write")

ACCESS: AccessTable = {
    f"{_EXECUTOR}/StartRun": Access("runs:write", services=_SCHEDULER),
    f"{_EXECUTOR}/GetRun": Access("runs:read", services=_SCHEDULER),
    f"{_EXECUTOR}/ListRuns": Access("runs:read", services=_SCHEDULER),
    f"{_EXECUTOR}/WatchRun": _READ_RUNS,
    f"{_EXECUTOR}/WatchRuns": Access("runs:read", services=_SCHEDULER, cross_tenant=True),
    f"{_EXECUTOR}/CancelRun": Access("runs:write", services=_SCHEDULER),
    f"{_EXECUTOR}/ResumeRun": _WRITE_RUNS,
    f"{_EXECUTOR}/ReplayRun": _WRITE_RUNS,
    f"{_EXECUTOR}/DeleteRun": _WRITE_RUNS,
    f"{_EXECUTOR}/GetRunState": _READ_RUNS,
    f"{_EXECUTOR}/ListCheckpoints": _READ_RUNS,
    f"{_EXECUTOR}/ListGraphs": _READ_RUNS,
    f"{_EXECUTOR}/GetGraph": _READ_RUNS,
    f"{_EXECUTOR}/ListAuditRecords": Access("audit:read"),
    f"{_EXECUTOR}/GetStorageReport": _READ_RUNS,
    f"{_GRANTS}/CreateGrant": Access("grants:write"),
    f"{_GRANTS}/GetGrant": Access("grants:read", services=_SCHEDULER),
    f"{_GRANTS}/ListGrants": Access("grants:read"),
    f"{_GRANTS}/RevokeGrant": Access("grants:write"),
    f"{_GRANTS}/WatchGrants": Access("grants:read", services=_SCHEDULER, cross_tenant=True),
    "/cogni.executor.v1.RunnerService/MintRunToken": Access(
        users=False, services=frozenset({"runner"})
    ),
}
