"""A real PostgreSQL as our own child process, with its data in one directory."""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from services.standalone import launch
from services.standalone.errors import DataDirInUseError, PortInUseError, StandaloneError
from services.standalone.ports import LOOPBACK, free_port, require_free
from services.standalone.private import write_private
from services.standalone.residence import Residence
from services.standalone.wheels import POSTGRES_MAJOR, postgres_home

SUPERUSER: Final = "cogni"
START_ATTEMPTS_MAX: Final = 5
POLL_SECONDS: Final = 0.01

_SETTINGS: Final = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_logical_replication_workers": "0",
    # Compiling a plan costs more than every query of ours takes.
    "jit": "off",
    # The default starts three more processes that help only cold reads from slow discs.
    "io_method": "sync",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
# Commits still reach the kernel, so they survive kill -9; only a power cut can lose them.
_NOT_DURABLE: Final = {
    "fsync": "off",
    "full_page_writes": "off",
}


class EmbeddedPostgres:
    """One PostgreSQL cluster that lives as long as the thread that started it.

    It listens on 127.0.0.1 only, with a password generated at the first start and kept 0600 in
    the data directory. As root it runs as an unprivileged user; see `Residence` for where its
    files then are. Not safe for use from several threads at once.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        port: int | None = None,
        database: str = "cogni",
        start_seconds: float = 30.0,
        stop_seconds: float = 20.0,
    ) -> None:
        """Describes the cluster; `start` creates what is missing.

        `durable=False` trades survival of a power cut for speed: for tests. `port` is taken as
        it is or refused; None means a free one, kept for the life of this object.
        """
        self.data_dir = data_dir
        self.durable = durable
        self.database = database
        self.port = port
        self._port_requested = port is not None
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._residence = Residence.choose(data_dir, postgres_home(), durable=durable)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def cluster_dir(self) -> Path:
        """Where PostgreSQL keeps its files: inside `data_dir` unless root had to move it."""
        return self._residence.cluster_dir

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The running server, or None before `launch` and after `stop`."""
        return self._process

    @property
    def password(self) -> str:
        """The superuser's password."""
        return self._password_file.read_text(encoding="ascii")

    def url(self, database: str | None = None) -> str:
        """A postgresql:// URL of the superuser for `database` (default: the one made at start)."""
        name = quote(database or self.database)
        return f"postgresql://{SUPERUSER}:{self.password}@{LOOPBACK}:{self.port}/{name}"

    def start(self) -> str:
        """Creates the cluster if needed, starts it, waits until it serves; returns the URL.

        Recovers by itself from a crash. Raises StandaloneError with a sentence when the data
        directory is of another version or in use, the port is taken, or the server does not
        come up in `start_seconds`.
        """
        self.initialise()
        attempts_left = START_ATTEMPTS_MAX
        deadline = time.monotonic() + self._start_seconds
        while True:
            self.launch()
            try:
                self.await_ready()
                break
            except StandaloneError:
                self._kill()
                if self._met_orphans():
                    # As long as it takes them: on a busy machine that is more than a few tries.
                    if time.monotonic() > deadline:
                        raise
                    continue
                attempts_left -= 1
                if attempts_left == 0 or not self._lost_its_port():
                    raise
        self.create_database()
        return self.url()

    def initialise(self) -> None:
        """Makes the cluster's files if there are none, and checks the version if there are."""
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._residence.prepare()
        version_file = self.cluster_dir / "PG_VERSION"
        if not version_file.exists():
            self._initdb()
            return
        version = version_file.read_text(encoding="ascii").strip()
        if version != str(POSTGRES_MAJOR):
            raise StandaloneError(
                f"{self.cluster_dir} was written by PostgreSQL {version} and this is "
                f"{POSTGRES_MAJOR}; dump it with the old version or choose another data directory."
            )

    def launch(self, output: int | IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Starts the server process without waiting for it.

        Must be called on a thread that outlives the server: the kernel stops it when that
        thread ends. `output` receives what the server logs; default is postgres.log.
        """
        self._await_previous_gone()
        if self.port is None:
            self.port = free_port()
        elif self._port_requested:
            self._await_port(self.port)
        with contextlib.ExitStack() as stack:
            if output is None:
                output = stack.enter_context(self._log_file.open("wb"))
            self._process = subprocess.Popen(  # noqa: S603
                self._server_command(),
                cwd="/",
                env=_clean_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return self._process

    def is_ready(self) -> bool:
        """Whether the launched server accepts connections, as its own pid file says."""
        if self._process is None or self._process.poll() is not None:
            return False
        lines = self._pid_lines()
        # The eighth line is the state; an older server's file may still lie there.
        return len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7] == "ready"

    def await_ready(self) -> None:
        """Waits until connections are accepted; StandaloneError after `start_seconds`."""
        deadline = time.monotonic() + self._start_seconds
        while not self.is_ready():
            process = self._process
            if process is None or process.poll() is not None:
                raise StandaloneError(f"PostgreSQL stopped while starting. {self.last_words()}")
            if time.monotonic() > deadline:
                raise StandaloneError(
                    f"PostgreSQL was not ready after {self._start_seconds:.0f} s. "
                    f"{self.last_words()}"
                )
            time.sleep(POLL_SECONDS)

    def create_database(self) -> None:
        """Creates the default database if it does not exist."""
        marker = self.data_dir / f"postgres.database.{self.database}"
        if marker.exists():
            return
        quoted = '"' + self.database.replace('"', '""') + '"'
        done = self._psql(f"CREATE DATABASE {quoted}")
        if done.returncode != 0 and "already exists" not in done.stderr:
            raise StandaloneError(f"PostgreSQL refused the database: {done.stderr.strip()}")
        marker.touch()

    def stop(self) -> None:
        """Stops the server: clients are cut off, everything committed is on disc. Idempotent."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(self._stop_seconds)
            except subprocess.TimeoutExpired:
                self._kill()
        self._process = None

    def destroy(self) -> None:
        """Stops the server and deletes its files, those moved out of `data_dir` too."""
        self.stop()
        self._residence.remove()
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def last_words(self) -> str:
        """The last lines the server logged, as one sentence to show a person."""
        try:
            lines = self._log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return "It left no log."
        return "Its last words: " + " | ".join(lines[-3:]) if lines else "It logged nothing."

    @property
    def _log_file(self) -> Path:
        return self.data_dir / "postgres.log"

    @property
    def _password_file(self) -> Path:
        return self.data_dir / "postgres.password"

    def _server_command(self) -> list[str]:
        settings = {**_SETTINGS, **({} if self.durable else _NOT_DURABLE), "port": str(self.port)}
        return [
            *self._wrapper(signal.SIGINT),
            str(self._residence.home / "bin" / "postgres"),
            "-D",
            str(self.cluster_dir),
            *(f"--{name.replace('_', '-')}={value}" for name, value in settings.items()),
        ]

    def _initdb(self) -> None:
        # A rename at the end: a start that is killed halfway leaves no half-made cluster.
        fresh = self.cluster_dir.with_name(self.cluster_dir.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(self.cluster_dir, ignore_errors=True)
        self._residence.make_private(fresh)
        password = secrets.token_urlsafe(32)
        password_file = self.cluster_dir.with_name(f"initdb.{secrets.token_hex(8)}")
        write_private(password_file, password)
        self._residence.give(password_file)
        try:
            done = subprocess.run(  # noqa: S603
                self._initdb_command(fresh, password_file),
                cwd="/",
                env=_clean_environment(),
                capture_output=True,
                text=True,
                timeout=self._start_seconds * 2,
            )
        finally:
            password_file.unlink()
        if done.returncode != 0:
            raise StandaloneError(f"initdb failed: {done.stderr.strip() or done.stdout.strip()}")
        write_private(self._password_file, password)
        for marker in self.data_dir.glob("postgres.database.*"):
            marker.unlink()
        fresh.rename(self.cluster_dir)

    def _initdb_command(self, directory: Path, password_file: Path) -> list[str]:
        return [
            *self._wrapper(signal.SIGKILL),
            str(self._residence.home / "bin" / "initdb"),
            f"--pgdata={directory}",
            f"--username={SUPERUSER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            # The password is random and long: stretching it would only slow every connection.
            "--set=scram_iterations=1",
            "--encoding=UTF8",
            "--locale-provider=builtin",
            "--locale=C.UTF-8",
            "--no-instructions",
            *(() if self.durable else ("--no-sync",)),
        ]

    def _wrapper(self, death_signal: signal.Signals) -> list[str]:
        uid, gid = self._residence.owner or (-1, -1)
        return [
            *(sys.executable, "-I", "-S", launch.__file__),
            *(str(os.getpid()), str(int(death_signal)), str(uid), str(gid)),
        ]

    def _psql(self, statement: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603
            [
                str(self._residence.home / "bin" / "psql"),
                *("-X", "-q", "-w", "-v", "ON_ERROR_STOP=1"),
                *("-h", LOOPBACK, "-p", str(self.port), "-U", SUPERUSER, "-d", "postgres"),
                *("-c", statement),
            ],
            env={**_clean_environment(), "PGPASSWORD": self.password},
            capture_output=True,
            text=True,
            timeout=self._start_seconds,
        )

    def _pid_lines(self) -> list[str]:
        try:
            text = (self.cluster_dir / "postmaster.pid").read_text(encoding="utf-8")
        except OSError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _await_previous_gone(self) -> None:
        """Waits for a server that is still stopping, and removes a dead one's pid file.

        PostgreSQL refuses to start when the pid in the file was given to another process of
        the same user since, which is usual after a container restarts.
        """
        deadline = time.monotonic() + self._stop_seconds
        while (lines := self._pid_lines()) and lines[0].lstrip("-").isdigit():
            pid = abs(int(lines[0]))
            if not self._serves_here(pid):
                (self.cluster_dir / "postmaster.pid").unlink(missing_ok=True)
                return
            if time.monotonic() > deadline:
                raise DataDirInUseError(
                    f"{self.cluster_dir} is in use by the PostgreSQL with pid {pid}; stop that "
                    f"process or choose another data directory."
                )
            time.sleep(POLL_SECONDS)

    def _await_port(self, port: int) -> None:
        """Waits for the port where children of our own killed server may still hold it."""
        deadline = time.monotonic() + self._start_seconds
        while True:
            try:
                require_free(port, "PostgreSQL")
                return
            except PortInUseError:
                if self._process is None or time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def _serves_here(self, pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        try:
            # A server's working directory is its data directory.
            return os.path.samefile(f"/proc/{pid}/cwd", self.cluster_dir)
        except OSError:
            return sys.platform != "linux"

    def _lost_its_port(self) -> bool:
        """Whether a probed port was taken between probe and bind; then another is chosen."""
        if self._port_requested or "Address already in use" not in self._log():
            return False
        self.port = None
        return True

    def _met_orphans(self) -> bool:
        """Whether children of a server that was killed have not noticed its death yet."""
        return "shared memory block" in self._log()

    def _log(self) -> str:
        return self._log_file.read_text(encoding="utf-8", errors="replace")

    def _kill(self) -> None:
        if self._process is not None:
            # SIGQUIT and not SIGKILL: its children must go too, and it recovers at next start.
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(self._stop_seconds)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None


def _clean_environment() -> dict[str, str]:
    # PG* variables of the person's shell would redirect our server and psql; only the path
    # and the place for temporary files are theirs to choose.
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return {**kept, "LC_ALL": "C"}
