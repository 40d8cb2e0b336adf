"""What the person at the terminal sees of the stack."""

import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

_STYLES = {
    "ready": ("✓", "green"),
    "restarted": ("✓", "green"),
    "crash": ("!", "bold red"),
    "killed": ("!", "red"),
    "stop": ("·", "dim"),
    "note": ("·", "dim"),
}


def program(name: str) -> str:
    """What to type here to run a program of our environment, `python` or `cogni`."""
    python = Path(sys.executable)
    ours = python if name == "python" else python.with_name(name)
    found = shutil.which(ours.name)
    if found is not None and Path(found) == ours:
        return ours.name
    try:
        return str(ours.relative_to(Path.cwd()))
    except ValueError:
        return str(ours)


def terminal() -> Console:
    """A console that shows text as it is: model output and paths may look like markup."""
    return Console(highlight=False, markup=False, soft_wrap=True)


@dataclass
class Screen:
    """Prints one line for each report of the supervisor."""

    console: Console = field(default_factory=terminal)
    _began: float = field(default_factory=time.monotonic)

    def report(self, kind: str, text: str) -> None:
        """Prints what happened."""
        mark, style = _STYLES[kind]
        said = f"stopping {text}" if kind == "stop" else text
        self.console.print(Text.assemble("  ", (mark, style), " ", said))

    def seconds(self) -> float:
        """How long the screen has been open."""
        return time.monotonic() - self._began

    def say(self, text: str = "") -> None:
        """Prints a line as it is."""
        self.console.print(text)

    def title(self, text: str) -> None:
        """Prints a line that stands out."""
        self.console.print(Text(text, style="bold"))
