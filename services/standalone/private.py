"""Writes files that only this user can ever read."""

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Writes `text` to `path` so that only this user can ever read it, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
