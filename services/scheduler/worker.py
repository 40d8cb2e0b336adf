"""The Dramatiq actor that starts the run of a slot: python -m dramatiq services.scheduler.worker.

Dramatiq imports this module to find the broker, so the settings are read at import.
"""

from __future__ import annotations

import dramatiq

from services.runtime.broker import make_broker
from services.runtime.logs import start_logs
from services.runtime.settings import load_or_exit
from services.runtime.telemetry import start_telemetry
from services.scheduler.settings import JobSettings
from services.scheduler.starters import Starters
from services.scheduler.use_cases.dispatch import START_ACTOR, START_QUEUE, key_of

_settings = load_or_exit(JobSettings)
start_logs(_settings, "scheduler")
start_telemetry(_settings, "scheduler").install()
broker = make_broker(_settings.broker_url.get_secret_value())
dramatiq.set_broker(broker)
_starters = Starters(_settings)


@dramatiq.actor(queue_name=START_QUEUE, actor_name=START_ACTOR)
async def start_slot(schedule_id: str, scheduled_for: str) -> None:
    """Start the run of one slot, if it still waits for that."""
    starter = await _starters.get()
    await starter.start(key_of(schedule_id, scheduled_for))
