"""Who may call which RPC of the Scheduler."""

from __future__ import annotations

from services.runtime.access import Access, AccessTable

_SCHEDULES = "/cogni.scheduler.v1.SchedulerService/"
_TRIGGERS = "/cogni.scheduler.v1.TriggerService/"
_READ = Access("schedules:read")
_WRITE = Access("schedules:write")
_READ_TRIGGERS = Access("triggers:read")
_WRITE_TRIGGERS = Access("triggers:write")

ACCESS: AccessTable = {
    f"{_SCHEDULES}CreateSchedule": _WRITE,
    f"{_SCHEDULES}GetSchedule": _READ,
    f"{_SCHEDULES}ListSchedules": _READ,
    f"{_SCHEDULES}UpdateSchedule": _WRITE,
    f"{_SCHEDULES}DeleteSchedule": _WRITE,
    f"{_SCHEDULES}PauseSchedule": _WRITE,
    f"{_SCHEDULES}UnpauseSchedule": _WRITE,
    f"{_SCHEDULES}TriggerSchedule": _WRITE,
    f"{_SCHEDULES}BackfillSchedule": _WRITE,
    f"{_SCHEDULES}GetBackfill": _READ,
    f"{_SCHEDULES}CancelBackfill": _WRITE,
    f"{_SCHEDULES}PreviewSchedule": _READ,
    f"{_SCHEDULES}SimulateSchedule": _READ,
    f"{_SCHEDULES}ExplainSlot": _READ,
    f"{_SCHEDULES}ListSlots": _READ,
    f"{_SCHEDULES}WatchSlots": _READ,
    f"{_TRIGGERS}CreateTrigger": _WRITE_TRIGGERS,
    f"{_TRIGGERS}GetTrigger": _READ_TRIGGERS,
    f"{_TRIGGERS}ListTriggers": _READ_TRIGGERS,
    f"{_TRIGGERS}UpdateTrigger": _WRITE_TRIGGERS,
    f"{_TRIGGERS}DeleteTrigger": _WRITE_TRIGGERS,
    f"{_TRIGGERS}ListDeliveries": _READ_TRIGGERS,
    f"{_TRIGGERS}RedeliverDelivery": _WRITE_TRIGGERS,
}
