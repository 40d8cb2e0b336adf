"""How a run's events look in a terminal."""

from __future__ import annotations

import json

from rich.console import Console

from cogni.cli.output import amount_of, name_of
from cogni.client import from_json_message
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import RunState
from cogni.type.v1.error_reason_pb2 import ErrorReason

TEXT_MAX = 400


def _short(value: object) -> str:
    # Sorted: protobuf keeps no order of keys, and the same event has to read the same each time.
    text = (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    )
    return text if len(text) <= TEXT_MAX else f"{text[:TEXT_MAX]}…"


class EventPrinter:
    """Prints events as they come; the text of model messages flows on one line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._inside_message = False

    def print(self, event: RunEvent) -> None:
        kind = event.WhichOneof("event")
        if kind == "message_delta":
            if event.message_delta.text:
                self._console.print(event.message_delta.text, end="", style="cyan")
                self._inside_message = True
            return
        if self._inside_message:
            self._console.print()
            self._inside_message = False
        line = describe(event)
        if line is not None:
            text, style = line
            self._console.print(f"{event.seq:>5}  {text}", style=style)


def describe(event: RunEvent) -> tuple[str, str] | None:
    """One line and its style; None for events that only programs need."""
    kind = event.WhichOneof("event")
    match kind:
        case "queued":
            return "queued", "dim"
        case "attempt_started":
            return f"attempt {event.attempt} started on {event.attempt_started.runner}", "dim"
        case "node_started":
            return f"{event.node_started.node} …", "dim"
        case "node_finished":
            failed = event.node_finished.error.message
            if failed:
                return f"{event.node_finished.node} failed: {failed}", "red"
            return f"{event.node_finished.node} done", "dim"
        case "tool_invoked":
            arguments = _short(from_json_message(event.tool_invoked.arguments))
            return f"tool {event.tool_invoked.tool} {arguments}", "bold"
        case "tool_allowed":
            return f"tool {event.tool_allowed.tool} allowed", "green"
        case "tool_denied":
            return f"tool {event.tool_denied.tool} DENIED: {event.tool_denied.message}", "red"
        case "tool_finished":
            if event.tool_finished.error.message:
                return (
                    f"tool {event.tool_finished.tool} failed: {event.tool_finished.error.message}",
                    "red",
                )
            output = _short(from_json_message(event.tool_finished.output))
            return f"tool {event.tool_finished.tool} -> {output}", "green"
        case "usage" if event.usage.tool:
            # The tool's own lines have told it, and the statement says what it cost.
            return None
        case "usage":
            return _usage(event), "magenta"
        case "custom":
            return f"{event.custom.name} {_short(from_json_message(event.custom.data))}", ""
        case "interrupted":
            asked = [_short(from_json_message(i.payload)) for i in event.interrupted.interrupts]
            return f"waits for an answer: {'; '.join(asked)}", "yellow"
        case "resumed":
            return f"answered by {event.resumed.answerer}", "yellow"
        case "cancel_requested":
            return "cancellation requested", "yellow"
        case "finished":
            return _finished(event)
        case _:
            return None


def _usage(event: RunEvent) -> str:
    usage = event.usage
    marks = "".join(
        f" ({word})"
        for word, on in (("estimated", usage.estimated), ("rework", usage.rework))
        if on
    )
    cost = amount_of(usage.cost)
    tokens = f"{usage.input_tokens} tokens in, {usage.output_tokens} out"
    return f"{usage.model}: {tokens}{', ' + cost if cost else ''}{marks}"


def _finished(event: RunEvent) -> tuple[str, str]:
    state = name_of(RunState, "RUN_STATE", event.finished.state)
    if event.finished.error.reason:
        reason = name_of(ErrorReason, "ERROR_REASON", event.finished.error.reason).upper()
        return f"{state}: {event.finished.error.message} [{reason}]", "bold red"
    return f"{state} {_short(from_json_message(event.finished.output))}", "bold green"
