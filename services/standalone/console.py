"""What the person at the terminal sees of the stack."""

import time
from dataclasses import dataclass, field

from rich.console import Console

_STYLES = {
    "ready": ("✓", "green"),
    "restarted": ("✓", "green"),
    "crash": ("!", "bold red"),
    "killed": ("!", "red"),
    "stop": ("·", "dim"),
    "note": ("·", "dim"),
}


@dataclass
class Screen:
    """Prints one line for each report of the supervisor."""

    console: Console
    _began: float = field(default_factory=time.monotonic)

    def report(self, kind: str, text: str) -> None:
        """Prints what happened."""
        mark, style = _STYLES[kind]
        said = f"stopping {text}" if kind == "stop" else text
        self.console.print(f"  [{style}]{mark}[/] {said}", highlight=False)

    def seconds(self) -> float:
        """How long the screen has been open."""
        return time.monotonic() - self._began

    def say(self, text: str = "") -> None:
        """Prints a line as it is."""
        self.console.print(text, highlight=False, soft_wrap=True)
