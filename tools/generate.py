"""Generates the Python stubs of every proto under proto/ into clients/python/cogni.

`python tools/generate.py` writes them; `--check` writes nothing and fails when the committed
stubs differ from what the pinned grpcio-tools and mypy-protobuf make of the protos.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "clients" / "python"
PATTERNS = ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi")


def generate(target: Path) -> None:
    """Runs protoc over all protos; raises SystemExit with protoc's own messages on failure."""
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    well_known = resources.files("grpc_tools").joinpath("_proto")
    # The plugins of this interpreter's environment, whatever PATH says.
    plugins = Path(sys.prefix) / "bin"
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy={plugins / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={plugins / 'protoc-gen-mypy_grpc'}",
        f"--proto_path={PROTO}",
        f"--proto_path={well_known}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out={target}",
        f"--mypy_grpc_out={target}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its messages are above")
    services = {
        str(Path(source).with_suffix("")) for source in sources if _declares_service(source)
    }
    for stub in target.rglob("*_pb2_grpc.py*"):
        # protoc writes an empty grpc file for protos without a service: dead weight for readers.
        stem = str(stub.relative_to(target)).split("_pb2_grpc")[0]
        if stem not in services:
            stub.unlink()


def _declares_service(source: str) -> bool:
    return any(line.startswith("service ") for line in (PROTO / source).read_text().splitlines())


def stubs(directory: Path) -> set[Path]:
    return {
        path.relative_to(directory) for pattern in PATTERNS for path in directory.rglob(pattern)
    }


def write() -> None:
    for stale in stubs(TARGET):
        (TARGET / stale).unlink()
    generate(TARGET)
    for stub in stubs(TARGET):
        for folder in (TARGET / stub).parents:
            if folder == TARGET:
                break
            marker = folder / "__init__.py"
            if not marker.exists():
                marker.touch()


def check() -> int:
    scratch = Path(tempfile.mkdtemp(prefix="cogni-stubs-"))
    try:
        generate(scratch)
        made, committed = stubs(scratch), stubs(TARGET)
        differing = {
            p for p in made & committed if not filecmp.cmp(scratch / p, TARGET / p, shallow=False)
        }
        wrong = sorted(str(path) for path in (made ^ committed) | differing)
    finally:
        shutil.rmtree(scratch)
    for path in wrong:
        sys.stderr.write(f"out of date: clients/python/{path}\n")
    if wrong:
        sys.stderr.write("run `make proto` and commit the result\n")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare only; exit 1 when out of date"
    )
    if parser.parse_args().check:
        return check()
    write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
