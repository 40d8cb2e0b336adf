"""A real Redis as our own child process, with its append-only file in one directory."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Final

from services.standalone import launch
from services.standalone.errors import StandaloneError
from services.standalone.ports import LOOPBACK, free_port, require_free
from services.standalone.private import write_private
from services.standalone.wheels import redis_server

POLL_SECONDS: Final = 0.01
START_ATTEMPTS_MAX: Final = 5
PING_SECONDS: Final = 1.0


class EmbeddedRedis:
    """One Redis that lives as long as the thread that started it.

    It listens on 127.0.0.1 only, with a password generated at the first start and kept 0600
    in the data directory. Every write is in the append-only file within a second. Not safe for
    use from several threads at once.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        port: int | None = None,
        start_seconds: float = 15.0,
        stop_seconds: float = 10.0,
    ) -> None:
        """Describes the server; `port` is taken as it is or refused, None means a free one."""
        self.data_dir = data_dir
        self.port = port
        self._port_requested = port is not None
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The running server, or None before `launch` and after `stop`."""
        return self._process

    @property
    def password(self) -> str:
        """The password every client must give."""
        return (self.data_dir / "redis.password").read_text(encoding="ascii")

    def url(self) -> str:
        """A redis:// URL with the password."""
        return f"redis://:{self.password}@{LOOPBACK}:{self.port}/0"

    def start(self) -> str:
        """Starts the server on the data there are, waits until it serves; returns the URL.

        Raises StandaloneError with a sentence when the port is taken or the server does not
        come up in `start_seconds`.
        """
        self.initialise()
        for attempt in range(1, START_ATTEMPTS_MAX + 1):
            self.launch()
            try:
                self.await_ready()
                break
            except StandaloneError:
                self.stop()
                lost_port = "Address already in use" in self._log()
                if attempt == START_ATTEMPTS_MAX or self._port_requested or not lost_port:
                    raise
                self.port = None
        return self.url()

    def initialise(self) -> None:
        """Makes the data directory, the password and the configuration."""
        self._files.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self.data_dir / "redis.password").exists():
            write_private(self.data_dir / "redis.password", secrets.token_urlsafe(32))

    def launch(self, output: int | IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        """Starts the server process without waiting for it.

        Must be called on a thread that outlives the server: the kernel stops it when that
        thread ends. `output` receives what the server logs; default is redis.log.
        """
        if self.port is None:
            self.port = free_port()
        elif self._port_requested:
            require_free(self.port, "Redis")
        # In a file and not in the arguments: those are readable by every user of the machine.
        write_private(self.data_dir / "redis.conf", self._configuration())
        log = (self.data_dir / "redis.log").open("wb") if output is None else None
        try:
            self._process = subprocess.Popen(  # noqa: S603
                self._command(),
                cwd=self._files,
                stdin=subprocess.DEVNULL,
                stdout=log if log is not None else output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        finally:
            if log is not None:
                log.close()
        return self._process

    def is_ready(self) -> bool:
        """Whether the server answers PING, so its append-only file is loaded."""
        if self._process is None or self._process.poll() is not None or self.port is None:
            return False
        try:
            with socket.create_connection((LOOPBACK, self.port), PING_SECONDS) as connection:
                connection.settimeout(PING_SECONDS)
                connection.sendall(f"AUTH {self.password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (part := connection.recv(256)):
                    answer += part
        except OSError:
            return False
        return answer.endswith(b"+PONG\r\n")

    def await_ready(self) -> None:
        """Waits until commands are answered; StandaloneError after `start_seconds`."""
        deadline = time.monotonic() + self._start_seconds
        while not self.is_ready():
            if self._process is None or self._process.poll() is not None:
                raise StandaloneError(f"Redis stopped while starting. {self.last_words()}")
            if time.monotonic() > deadline:
                raise StandaloneError(
                    f"Redis was not ready after {self._start_seconds:.0f} s. {self.last_words()}"
                )
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Stops the server after it has written everything to disc. Idempotent."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(self._stop_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._process = None

    def last_words(self) -> str:
        """The last lines the server logged, as one sentence to show a person."""
        lines = self._log().splitlines()
        return "Its last words: " + " | ".join(lines[-3:]) if lines else "It logged nothing."

    @property
    def _files(self) -> Path:
        return self.data_dir / "redis"

    def _log(self) -> str:
        try:
            return (self.data_dir / "redis.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _configuration(self) -> str:
        settings = {
            "bind": LOOPBACK,
            "port": str(self.port),
            "requirepass": self.password,
            "dir": '"' + str(self._files.resolve()).replace('"', '\\"') + '"',
            "appendonly": "yes",
            "appendfsync": "everysec",
            # The append-only file is the record; snapshots would only fork and write twice.
            "save": '""',
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return "".join(f"{name} {value}\n" for name, value in settings.items())

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-I", "-S", launch.__file__),
            *(str(os.getpid()), str(int(signal.SIGTERM)), "-1", "-1"),
            *(str(redis_server()), str((self.data_dir / "redis.conf").resolve())),
        ]
