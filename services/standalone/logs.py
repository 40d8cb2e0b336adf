"""One log file per process, bounded in size."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

LOG_BYTES_MAX: Final = 8 * 1024 * 1024
TAIL_BYTES: Final = 16 * 1024
#: [time] [PID n] [thread] [alembic.runtime.plugins] [INFO] setup plugin …
_CHATTER: Final = re.compile(r"\[[^]]*\] \[PID \d+\] \[[^]]*\] \[(alembic|dramatiq)\.")


@dataclass(frozen=True)
class BoundedLog:
    """A file its process appends to, and one older part beside it.

    The process holds the file open, so it is not moved but copied and emptied; what is written
    between the two is lost, which a development log may.
    """

    path: Path
    bytes_max: int = LOG_BYTES_MAX

    def open(self) -> IO[bytes]:
        """Opens the file for a process to append to, readable by this user only."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.rotate()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        file = os.fdopen(descriptor, "ab")
        file.seek(0, os.SEEK_END)
        return file

    def rotate(self) -> None:
        """Sets the content aside when it has grown past the bound."""
        try:
            if self.path.stat().st_size <= self.bytes_max:
                return
        except FileNotFoundError:
            return
        older = self.path.with_suffix(".log.1")
        try:
            shutil.copyfile(self.path, older)
        except OSError:
            # A full disc, say: the stack needs its space more than the older lines.
            older.unlink(missing_ok=True)
        os.truncate(self.path, 0)

    def since(self, offset: int) -> str:
        """What was written after byte `offset`, or all there is if it was emptied since."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(offset if offset <= size else 0)
                return file.read(self.bytes_max).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def last_words(self, lines_max: int = 3) -> str:
        """The last lines written, as one sentence to show a person."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                lines = file.read().decode("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return "It left no log."
        written = [line.strip() for line in lines if line.strip()]
        # What libraries say as they come and go would push the reason out of so few lines.
        said = [line for line in written if not _CHATTER.match(line)] or written
        said = said[-lines_max:]
        return f"Its last words: {' | '.join(said)}" if said else "It logged nothing."
