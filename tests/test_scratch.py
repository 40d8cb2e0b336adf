"""What the tests' servers leave in memory goes with its session, even a killed one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.scratch import Scratch


def test_the_folder_of_a_killed_session_goes_with_the_next_start(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, sys; from tests.scratch import Scratch\n"
        "made = Scratch.make(pathlib.Path(sys.argv[1])); print(made.path, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
    )
    abandoned = Path(killed.stdout.strip())
    assert abandoned.parent == tmp_path
    assert abandoned.is_dir()

    Scratch.make(tmp_path).remove()

    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_session_stays_until_its_end(tmp_path: Path) -> None:
    living = Scratch.make(tmp_path)
    (living.path / "data").write_text("kept")

    Scratch.make(tmp_path).remove()

    assert (living.path / "data").read_text() == "kept"
    living.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_memory_to_write_to_it_is_an_ordinary_temporary_folder(tmp_path: Path) -> None:
    made = Scratch.make(tmp_path / "absent")

    assert made.path.is_dir()
    assert tmp_path not in made.path.parents
    made.remove()
