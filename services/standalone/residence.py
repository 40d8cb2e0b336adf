"""Decides where a PostgreSQL cluster and its programs live, and as whom it runs.

PostgreSQL refuses to run as root. As root we run it as `nobody`, and it must be able to reach
its programs and its data by path. Folders above the data directory are often closed (/root,
temporary folders), and opening them to the world is not ours to do. So when `nobody` cannot
get there, the cluster lives in a folder of its own under /var/lib/cogni, named after the data
directory, and programs that cannot be reached are hard-linked (or copied) beside it. A data
directory inside the temporary folder, or one that need not survive, has its cluster inside the
temporary folder too, where both are cleared away once what they belong to is gone.
"""

import hashlib
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.standalone.errors import StandaloneError

UNPRIVILEGED_USER: Final = "nobody"
#: In a folder that was moved: the data directory, or the wheel's programs, that it belongs to.
ORIGIN: Final = "data-dir"
DURABLE_ROOT: Final = Path("/var/lib/cogni")


@dataclass(frozen=True)
class Residence:
    """Where the cluster is, which programs serve it, and who owns both."""

    data_dir: Path
    cluster_dir: Path
    home: Path
    source_home: Path
    owner: tuple[int, int] | None

    @classmethod
    def choose(cls, data_dir: Path, home: Path, *, durable: bool) -> "Residence":
        """Looks at who we are and which folders are open; changes nothing."""
        data_dir = data_dir.resolve()
        if os.geteuid() != 0:
            return cls(data_dir, data_dir / "postgres", home, home, None)
        owner = _unprivileged()
        temporary = _temporary_root()
        lasting = durable and temporary.parent not in data_dir.parents
        elsewhere = DURABLE_ROOT if lasting else temporary
        cluster = data_dir / "postgres"
        if not _reachable(data_dir, owner):
            name = f"{data_dir.name}-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:12]}"
            cluster = elsewhere / name / "postgres"
        reached = home
        if not _reachable(home / "bin", owner):
            digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
            reached = elsewhere / f"programs-{digest}" / home.parent.name / home.name
        return cls(data_dir, cluster, reached, home, owner)

    def prepare(self) -> None:
        """Makes the folders above the cluster and brings the programs within reach."""
        if self.owner is None:
            return
        for path in {self.cluster_dir.parent, self._programs}:
            root = _moved_root(path)
            if root is not None:
                root.mkdir(parents=True, exist_ok=True)
                _trust(root)
        _clear_abandoned()
        if not self.cluster_dir.parent.exists():
            self.cluster_dir.parent.mkdir()
            (self.cluster_dir.parent / ORIGIN).write_text(str(self.data_dir), encoding="utf-8")
        # Passing through is enough: names inside stay hidden from everybody else.
        if not _may_pass(self.cluster_dir.parent, self.owner):
            self.cluster_dir.parent.chmod(0o711)
        if self.home != self.source_home and not self.home.exists():
            self._bring_programs()

    def make_private(self, directory: Path) -> None:
        """Creates `directory` for the server's user alone."""
        directory.mkdir(mode=0o700)
        self.give(directory)

    def give(self, path: Path) -> None:
        """Makes `path` the property of the server's user."""
        if self.owner is not None:
            os.chown(path, *self.owner)

    def remove(self) -> None:
        """Deletes the cluster, and its folder when it was moved out of the data directory."""
        moved = _moved_root(self.cluster_dir.parent) is not None
        target = self.cluster_dir.parent if self.owner is not None and moved else self.cluster_dir
        shutil.rmtree(target, ignore_errors=True)

    @property
    def _programs(self) -> Path:
        """The folder of the wheel's package, and of the libraries its programs look for there."""
        return self.home.parents[1]

    def _bring_programs(self) -> None:
        partial = Path(tempfile.mkdtemp(dir=self._programs.parent, prefix="programs."))
        package = self.source_home.parent
        home = partial / package.name / self.source_home.name
        _bring(self.source_home, home)
        # Where auditwheel puts what a wheel's programs load: they find it by their own place.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            _bring(libraries, partial / libraries.name)
        (partial / ORIGIN).write_text(str(self.source_home), encoding="utf-8")
        for folder in (partial, home.parent):
            folder.chmod(0o755)
        try:
            partial.rename(self._programs)
        except OSError:
            # Another start won the race and its copy is as good.
            shutil.rmtree(partial, ignore_errors=True)


def _bring(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_link_or_copy, symlinks=True)


def _temporary_root() -> Path:
    return Path(tempfile.gettempdir()).resolve() / "cogni-postgres"


def _clear_abandoned() -> None:
    # Never in the durable root: a data directory that is missing there may be on a disc that is
    # not mounted at the moment.
    for origin in _temporary_root().glob(f"*/{ORIGIN}"):
        if not Path(origin.read_text(encoding="utf-8")).exists():
            shutil.rmtree(origin.parent, ignore_errors=True)


def _moved_root(path: Path) -> Path | None:
    return next((root for root in (DURABLE_ROOT, _temporary_root()) if path.parent == root), None)


def _unprivileged() -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(UNPRIVILEGED_USER)
    except KeyError:
        raise StandaloneError(
            f"PostgreSQL does not run as root and this machine has no user {UNPRIVILEGED_USER!r} "
            f"to run it as; start the stack as an ordinary user."
        ) from None
    return entry.pw_uid, entry.pw_gid


def _reachable(directory: Path, owner: tuple[int, int]) -> bool:
    """Whether `owner` can walk to `directory`; what does not exist yet will be ours to open."""
    if not all(_may_pass(folder, owner) for folder in directory.parents if folder.exists()):
        return False
    return not directory.exists() or _may_pass(directory, owner) or _ours_to_open(directory)


def _ours_to_open(directory: Path) -> bool:
    # Only a folder that already holds a cluster of ours, or nothing at all, is changed.
    return (directory / "postgres").exists() or not any(directory.iterdir())


def _may_pass(folder: Path, owner: tuple[int, int]) -> bool:
    info = folder.stat()
    if info.st_uid == owner[0]:
        return bool(info.st_mode & stat.S_IXUSR)
    if info.st_gid == owner[1]:
        return bool(info.st_mode & stat.S_IXGRP)
    return bool(info.st_mode & stat.S_IXOTH)


def _trust(root: Path) -> None:
    info = root.stat()
    if root.is_symlink() or info.st_uid != 0 or info.st_mode & stat.S_IWOTH:
        raise StandaloneError(
            f"{root} belongs to somebody else or is writable by everybody; remove it, or start "
            f"the stack as an ordinary user."
        )
    root.chmod(0o711)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
