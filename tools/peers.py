"""Installs the peers, software no one here wrote, into .peers/, where they stay between runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".peers"

INSTALL_SECONDS_MAX = 600


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    seconds_max: float = INSTALL_SECONDS_MAX,
) -> str:
    """Runs a command to its end and returns what it printed; raises with that text on failure."""
    words = [str(word) for word in command]
    environment = {**os.environ, **(env or {})}
    done = subprocess.run(
        words,
        cwd=cwd,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=seconds_max,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


class PeerMissing(Exception):
    """A peer cannot be installed here; the message says what is absent."""


def need(program: str) -> str:
    """The program's path. Raises PeerMissing on a machine without it."""
    found = shutil.which(program)
    if found is None:
        raise PeerMissing(f"{program} is not installed")
    return found


def go_program(package: str, version: str) -> Path:
    """Installs a Go program through the module proxy and returns its path."""
    target = PEERS / "go" / version / package.rsplit("/", 1)[-1]
    if not target.exists():
        environment = {"GOBIN": str(target.parent), "GOFLAGS": "-modcacherw"}
        run([need("go"), "install", f"{package}@{version}"], env=environment)
    return target


def npm_project(name: str, dependencies: Mapping[str, str]) -> Path:
    """Installs pinned npm packages into a folder of their own and returns the folder."""
    folder = PEERS / "npm" / name
    manifest = json.dumps({"private": True, "type": "module", "dependencies": dict(dependencies)})
    done = folder / ".installed"
    if not done.exists() or done.read_text() != manifest:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(manifest)
        run([need("npm"), "install", "--no-audit", "--no-fund", "--no-package-lock"], cwd=folder)
        done.write_text(manifest)
    return folder


def python_environment(name: str, *requirements: str) -> Path:
    """A virtual environment of its own for a peer whose pins clash with ours; its interpreter."""
    wanted = hashlib.sha256("\n".join(requirements).encode()).hexdigest()
    folder = PEERS / "python" / name
    done = folder / ".installed"
    if not done.exists() or done.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        run([sys.executable, "-m", "venv", folder])
        run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements])
        done.write_text(wanted)
    return folder / "bin" / "python"


def debian_package(package: str, program: Path) -> None:
    """Installs a Debian package when the program it brings is absent. Starts nothing."""
    if program.exists():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise PeerMissing(f"{program} is absent, and only root on Debian can install {package}")
    # The package's own start-up would take its default port; policy-rc.d forbids it.
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], env=quiet)
        run(["apt-get", "install", "-qq", "-y", "--no-install-recommends", package], env=quiet)
    finally:
        if ours:
            policy.unlink()
