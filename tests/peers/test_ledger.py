"""The Ledger's proofs, checked by software no one here wrote: Go's checksum-database libraries."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.embedded import Embedded, embedded
from cogni.client import Client
from cogni.ledger.v1.account_pb2 import AccountKind
from cogni.ledger.v1.ledger_service_pb2 import (
    CreateAccountRequest,
    ExportEntriesRequest,
    ExportFormat,
    GetTreeHeadRequest,
    TransferRequest,
)
from cogni.type.v1.amount_pb2 import Amount
from tools.peers import need, run

GO_MOD = "module notecheck\n\ngo 1.24\n\nrequire golang.org/x/mod v0.29.0\n"
ENTRIES = 37


@pytest.fixture(scope="module")
def stack() -> Iterator[Embedded]:
    with embedded() as running:
        yield running


@pytest.fixture(scope="module")
def notecheck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program, built; the libraries come through the module proxy."""
    folder = tmp_path_factory.mktemp("notecheck")
    shutil.copy(Path(__file__).parent / "notecheck" / "main.go", folder)
    (folder / "go.mod").write_text(GO_MOD)
    environment = {"GOFLAGS": "-modcacherw"}
    run([need("go"), "mod", "tidy"], cwd=folder, env=environment)
    run([need("go"), "build", "-o", "notecheck", "."], cwd=folder, env=environment)
    return folder / "notecheck"


@pytest.fixture(scope="module")
def export(stack: Embedded, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An export of a log with some entries, and the key that verifies it."""
    path = tmp_path_factory.mktemp("export") / "bill.jsonl"
    with Client(stack.settings("auditor")) as client:
        accounts = [
            client.ledger.CreateAccount(
                CreateAccountRequest(
                    request_id=str(uuid.uuid4()), display_name="audited", asset="USD", kind=kind
                )
            ).account.account_id
            for kind in (AccountKind.ACCOUNT_KIND_FUNDING, AccountKind.ACCOUNT_KIND_SPENDING)
        ]
        for number in range(ENTRIES):
            client.ledger.Transfer(
                TransferRequest(
                    request_id=str(uuid.uuid4()),
                    debit_account_id=accounts[0],
                    credit_account_id=accounts[1],
                    amount=Amount(asset="USD", value=f"{number + 1}.25"),
                )
            )
        key = client.ledger.GetTreeHead(GetTreeHeadRequest()).tree_head.verifier_key
        request = ExportEntriesRequest(format=ExportFormat.EXPORT_FORMAT_JSON_LINES)
        path.write_bytes(b"".join(part.chunk for part in client.ledger.ExportEntries(request)))
    return path, key


def test_a_stock_verifier_opens_the_note_and_finds_the_same_root(
    notecheck: Path, export: tuple[Path, str]
) -> None:
    path, key = export

    printed = run([notecheck, path, key])

    assert printed.split()[-1] == str(ENTRIES)


def test_a_stock_verifier_refuses_an_altered_entry(
    notecheck: Path, export: tuple[Path, str], tmp_path: Path
) -> None:
    path, key = export
    lines = path.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b".25", b".26", 1)
    altered = tmp_path / "altered.jsonl"
    altered.write_bytes(b"".join(lines))

    with pytest.raises(RuntimeError, match="not to the signed"):
        run([notecheck, altered, key])


def test_a_stock_verifier_refuses_another_key(notecheck: Path, export: tuple[Path, str]) -> None:
    path, key = export
    name, number, public = key.split("+", 2)
    other = f"{name}+{number}+{'B' + public[1:]}"

    with pytest.raises(RuntimeError):
        run([notecheck, path, other])
