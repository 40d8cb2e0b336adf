"""One data directory belongs to at most one stack, and says how to reach it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.standalone.datadir import Addresses, DataDir
from services.standalone.errors import DataDirInUseError, StandaloneError

HOLD = """
import sys
from pathlib import Path
from services.standalone.datadir import DataDir
directory = DataDir(Path(sys.argv[1]))
directory.take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()


def test_a_directory_in_use_is_refused_with_the_pid(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(DataDirInUseError, match=f"in use by the stack with pid {holder.pid}"):
        DataDir(tmp_path / "data").take()


def test_a_directory_whose_stack_was_killed_can_be_taken(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()

    directory = DataDir(tmp_path / "data")
    directory.take()
    directory.release()


def test_addresses_are_known_while_the_stack_runs_and_not_after(tmp_path: Path) -> None:
    directory = DataDir(tmp_path / "data")
    directory.take()
    published = Addresses(os.getpid(), "e:1", "s:2", "c:3", "l:4")

    directory.publish(published)
    assert DataDir(tmp_path / "data").addresses() == published

    directory.release()
    with pytest.raises(StandaloneError, match="No stack runs on"):
        directory.addresses()


def test_addresses_left_by_a_killed_stack_are_not_believed(tmp_path: Path) -> None:
    directory = DataDir(tmp_path / "data")
    directory.take()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    directory.publish(Addresses(dead.pid, "e:1", "s:2", "c:3", "l:4"))

    with pytest.raises(StandaloneError, match="No stack runs on"):
        directory.addresses()
    directory.release()


def test_a_path_that_is_a_file_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")

    with pytest.raises(StandaloneError, match="cannot be used as a data directory"):
        DataDir(tmp_path / "data").take()


def test_git_never_sees_what_is_inside(tmp_path: Path) -> None:
    directory = DataDir(tmp_path / "data")
    directory.take()
    directory.release()

    assert (tmp_path / "data" / ".gitignore").read_text() == "*\n"
