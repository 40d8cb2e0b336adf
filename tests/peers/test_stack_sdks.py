"""The contract as other languages see it: plain protoc generates Go and TypeScript that compile."""

from __future__ import annotations

import shutil
import sys
from importlib import resources
from pathlib import Path

from tools.peers import ROOT, go_program, need, npm_project, run

PROTO = ROOT / "proto"
SOURCES = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))

GO_PROTOBUF = "v1.36.12"
GO_GRPC_PLUGIN = "v1.6.2"
GO_GRPC = "v1.80.0"


def protoc(*options: str) -> None:
    well_known = resources.files("grpc_tools").joinpath("_proto")
    run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTO}",
            f"--proto_path={well_known}",
            *options,
            *SOURCES,
        ]
    )


def test_the_protos_generate_go_that_compiles(tmp_path: Path) -> None:
    go = go_program("google.golang.org/protobuf/cmd/protoc-gen-go", GO_PROTOBUF)
    go_grpc = go_program("google.golang.org/grpc/cmd/protoc-gen-go-grpc", GO_GRPC_PLUGIN)
    protoc(
        f"--plugin=protoc-gen-go={go}",
        f"--plugin=protoc-gen-go-grpc={go_grpc}",
        f"--go_out={tmp_path}",
        "--go_opt=module=cogni.dev/go",
        f"--go-grpc_out={tmp_path}",
        "--go-grpc_opt=module=cogni.dev/go",
    )
    (tmp_path / "go.mod").write_text(
        "module cogni.dev/go\n\ngo 1.24\n\n"
        f"require google.golang.org/grpc {GO_GRPC}\n"
        f"require google.golang.org/protobuf {GO_PROTOBUF}\n"
    )
    environment = {"GOFLAGS": "-modcacherw"}

    run([need("go"), "mod", "tidy"], cwd=tmp_path, env=environment)
    run([need("go"), "build", "./..."], cwd=tmp_path, env=environment)

    generated = {path.parent.parent.name for path in tmp_path.rglob("*_grpc.pb.go")}
    assert generated == {"executor", "scheduler", "connections", "ledger"}


def test_the_protos_generate_typescript_that_compiles(tmp_path: Path) -> None:
    folder = npm_project(
        "sdk",
        {
            "@bufbuild/protobuf": "2.17.0",
            "@bufbuild/protoc-gen-es": "2.17.0",
            "typescript": "5.9.3",
        },
    )
    generated = tmp_path / "gen"
    generated.mkdir()
    plugin = folder / "node_modules" / ".bin" / "protoc-gen-es"
    protoc(
        f"--plugin=protoc-gen-es={plugin}",
        f"--es_out={generated}",
        "--es_opt=target=ts,import_extension=js",
    )
    shutil.copy(folder / "package.json", tmp_path)
    (tmp_path / "node_modules").symlink_to(folder / "node_modules")

    run(
        [
            need("node"),
            folder / "node_modules" / "typescript" / "bin" / "tsc",
            "--noEmit",
            "--strict",
            "--target",
            "es2022",
            "--module",
            "nodenext",
            *sorted(str(path) for path in generated.rglob("*.ts")),
        ],
        cwd=tmp_path,
    )

    assert (generated / "cogni" / "executor" / "v1" / "executor_service_pb.ts").exists()
