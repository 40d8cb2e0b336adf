"""Which processes make the stack, with which command and which settings."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.standalone.children import Probe, Program, Stage, log_says, logs_in
from services.standalone.keys import Keys
from services.standalone.ports import LOOPBACK
from services.standalone.probes import serves_grpc

SERVICES: Final = ("ledger", "connections", "executor", "scheduler")

#: What Dramatiq logs when its worker has loaded its modules and consumes.
STARTER_READY: Final = "Worker process is ready for action."
#: What the runner logs when its graphs can be run.
RUNNER_READY: Final = "the graphs are published"
CLOCK_READY: Final = "the clock runs"
RUNNER_PREFIX: Final = "COGNI_RUNNER_"
WORKER_STOP_MS: Final = 8000
DRAIN_SECONDS: Final = 5

#: Settings of the person's shell that mean something to every process of ours.
_PASSED_ON: Final = (
    "COGNI_LOG_LEVEL",
    "COGNI_LOG_FORMAT",
    "COGNI_OTLP_ENDPOINT",
    "COGNI_OTLP_HEADERS_FILE",
    "COGNI_OTLP_METRICS",
    "COGNI_TRACE_URL_TEMPLATE",
)
#: What any program needs of its surroundings. Servers get no more: keys of model providers that
#: stand in the person's shell are the runner's alone.
_SURROUNDINGS: Final = (
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "PYTHONPATH",
    "PYTHONWARNINGS",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
)


@dataclass(frozen=True)
class Wiring:
    """What the processes must know of each other."""

    database_url: str
    broker_url: str
    keys: Keys
    ports: Mapping[str, int]
    graphs_file: Path
    extra: Mapping[str, str]

    def address(self, service: str) -> str:
        """host:port of a service."""
        return f"{LOOPBACK}:{self.ports[service]}"


def programs(wiring: Wiring, logs: Path, environ: Mapping[str, str] = os.environ) -> list[Program]:
    """Every process of the stack beside PostgreSQL and Redis."""
    make = _Maker(wiring, logs, environ)
    return [
        make.server("ledger"),
        make.server("connections"),
        make.server("executor"),
        make.server("scheduler"),
        make.program(
            "clock",
            Stage.INTAKE,
            (sys.executable, "-m", "services.scheduler", "clock"),
            make.environment("scheduler"),
            log_says(CLOCK_READY),
        ),
        make.worker("starter", Stage.INTAKE, "scheduler", STARTER_READY),
        make.worker("runner", Stage.RUNNERS, "executor", RUNNER_READY),
    ]


def migration(wiring: Wiring, logs: Path, environ: Mapping[str, str] = os.environ) -> Program:
    """The process that migrates all schemas and ends."""
    make = _Maker(wiring, logs, environ)
    settings = _surroundings(environ)
    for service in SERVICES:
        settings[f"COGNI_{service.upper()}_DATABASE_URL"] = wiring.database_url
    command = (sys.executable, "-m", "services.standalone.migrating")
    return make.program("migrations", Stage.SERVERS, command, settings, log_says("\n"))


@dataclass(frozen=True)
class _Maker:
    wiring: Wiring
    logs: Path
    environ: Mapping[str, str]

    def program(
        self,
        name: str,
        stage: Stage,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        probe: Probe,
    ) -> Program:
        return Program(name, stage, command, environment, logs_in(self.logs, name), probe)

    def server(self, service: str) -> Program:
        environment = self.environment(service)
        environment[f"COGNI_{service.upper()}_LISTEN"] = self.wiring.address(service)
        return self.program(
            service,
            Stage.SERVERS,
            (sys.executable, "-m", f"services.{service}"),
            environment,
            serves_grpc(self.wiring.address(service)),
        )

    def worker(self, name: str, stage: Stage, service: str, ready: str) -> Program:
        command = (
            *(sys.executable, "-m", "dramatiq", f"services.{service}.worker"),
            *("--use-spawn", "--processes", "1", "--threads", "1"),
            *("--worker-shutdown-timeout", str(WORKER_STOP_MS)),
        )
        environment = self.environment(service)
        if name == "runner":
            # The runner alone meets models and tools, whose keys and settings are the
            # person's own; and it is another identity than the server of its service.
            inherited = {n: v for n, v in self.environ.items() if not n.startswith("COGNI_")}
            environment = {**inherited, **environment}
            environment["COGNI_SERVICE_KEY_FILE"] = str(self.wiring.keys.identity("runner"))
            environment["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
            environment["COGNI_RUNNER_DRAIN_SECONDS"] = str(DRAIN_SECONDS)
            environment |= _named(self.wiring.extra, RUNNER_PREFIX)
        return self.program(name, stage, command, environment, log_says(ready))

    def environment(self, service: str) -> dict[str, str]:
        """The settings of one service's processes."""
        wiring, keys = self.wiring, self.wiring.keys
        environment = _surroundings(self.environ)
        environment |= {
            f"COGNI_{service.upper()}_DATABASE_URL": wiring.database_url,
            "COGNI_AUTH_HS256_SECRET_FILE": str(keys.caller_secret),
            "COGNI_TRUSTED_KEYS_FILE": str(keys.trusted),
            "COGNI_DRAIN_SECONDS": str(DRAIN_SECONDS),
        }
        if service == "connections":
            environment["COGNI_CONNECTIONS_KEYRING_FILE"] = str(keys.keyring)
        if service == "ledger":
            environment["COGNI_LEDGER_LOG_KEY_FILE"] = str(keys.ledger_log)
        if service in ("executor", "scheduler"):
            environment["COGNI_BROKER_URL"] = wiring.broker_url
            environment["COGNI_SERVICE_KEY_FILE"] = str(keys.identity(service))
            for callee in SERVICES:
                environment[f"COGNI_{callee.upper()}_ADDRESS"] = wiring.address(callee)
        if service == "executor":
            environment["COGNI_GRAPHS_FILE"] = str(wiring.graphs_file)
        return environment | _named(wiring.extra, f"COGNI_{service.upper()}_")


def _named(settings: Mapping[str, str], prefix: str) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name.startswith(prefix)}


def _surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        **{name: environ[name] for name in (*_SURROUNDINGS, *_PASSED_ON) if name in environ},
        # Logs are read while the process runs, and by probes.
        "PYTHONUNBUFFERED": "1",
    }
