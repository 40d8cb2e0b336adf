"""The Dramatiq worker of queue "runs": a message only wakes the runner, which pulls from Postgres.

python -m dramatiq services.executor.worker --use-spawn
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import dramatiq

from services.executor.hinting import ACTOR, QUEUE
from services.executor.runner.settings import RunnerSettings
from services.runtime.broker import make_broker
from services.runtime.settings import load_or_exit

if TYPE_CHECKING:
    from services.executor.runner.process import Runner


class RunnerProcess(dramatiq.Middleware):
    """Starts the runner in each worker process, and ends it in good order."""

    def __init__(self, settings: RunnerSettings) -> None:
        self._settings = settings
        self._runner: Runner | None = None

    def wake(self) -> None:
        """Let the runner look for runs now."""
        if self._runner is not None:
            self._runner.wake()

    def after_process_boot(self, broker: dramatiq.Broker) -> None:
        """Start the runner; only here is langgraph imported, never in Dramatiq's own parent.

        Ends the process with a sentence when the runner cannot start.
        """
        from services.executor.runner.process import Runner, RunnerStartError

        self._runner = Runner(self._settings)
        try:
            self._runner.start()
        except RunnerStartError as error:
            sys.stderr.write(f"{error}\n")
            # Dramatiq lets this one exception out of a middleware, and tells its parent.
            raise SystemExit(1) from None

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        """Hand back what is carried, while the process still may take its time."""
        if self._runner is not None:
            self._runner.stop()


settings = load_or_exit(RunnerSettings)
runner_process = RunnerProcess(settings)
broker = make_broker(settings.broker_url.get_secret_value())
broker.add_middleware(runner_process)
dramatiq.set_broker(broker)


@dramatiq.actor(actor_name=ACTOR, queue_name=QUEUE)
def wake_up(run_id: str) -> None:
    """A run waits in Postgres. Returns at once; losing the message costs a second at most."""
    runner_process.wake()
