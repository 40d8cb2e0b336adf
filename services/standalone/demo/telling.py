"""Shows a run's events as they arrive: one short line each, the model's text as it flows."""

from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from cogni.cli.events import describe
from cogni.executor.v1.run_event_pb2 import RunEvent

LINE_LENGTH_MAX = 110

#: Not told: what only says where the graph is. `cogni runs watch` shows everything.
_PASSED_OVER = frozenset({"queued", "state_updated", "node_finished"})


@dataclass
class Teller:
    """Prints events to one console."""

    console: Console
    _inside_message: bool = field(default=False, init=False)

    def tell(self, event: RunEvent) -> None:
        """Prints what is worth seeing of one event."""
        kind = event.WhichOneof("event")
        if kind == "message_delta":
            self._stream(event.message_delta.text)
        elif kind not in _PASSED_OVER and (described := describe(event)) is not None:
            self._end_message()
            text, style = described
            if kind == "finished":
                # The whole output would repeat what was just seen.
                text = text.partition(" {")[0]
            line = Text(f"  {event.seq:>4}  {text}", style=style)
            line.truncate(LINE_LENGTH_MAX, overflow="ellipsis")
            self.console.print(line)

    def _stream(self, text: str) -> None:
        if text:
            if not self._inside_message:
                self.console.print("        ", end="")
            self.console.print(Text(text, style="cyan"), end="")
            self._inside_message = True

    def _end_message(self) -> None:
        if self._inside_message:
            self.console.print()
            self._inside_message = False
