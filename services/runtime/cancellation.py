"""Tells a task that somebody cancelled from one that met the cancellation of something else."""

import asyncio


def asked_to_end() -> bool:
    """Whether somebody cancelled the current task; a CancelledError alone may come from below."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
