"""`cogni ledger export, verify, receipt, tree-head`: the bill for an auditor, checked offline."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from google.protobuf import json_format
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cogni.cli.arguments import JsonOption, moment
from cogni.cli.output import console, print_json, print_object, show
from cogni.client import Client
from cogni.client.ledger_verify import (
    VerificationError,
    open_note,
    verify_consistency,
    verify_export,
    verify_receipt,
)
from cogni.ledger.v1.ledger_service_pb2 import (
    ExportEntriesRequest,
    ExportFormat,
    GetConsistencyProofRequest,
    GetReceiptRequest,
    GetTreeHeadRequest,
)
from cogni.ledger.v1.proof_pb2 import TreeHead

EXIT_NOT_PROVEN = 4

KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="The Ledger's verifier key, or @FILE with it. Get it from the operator, not from the "
        "file that is being checked.",
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the commands to `cogni ledger`."""
    app.command()(export)
    app.command()(verify)
    app.command()(receipt)
    app.command("tree-head")(tree_head)


def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write; must not exist.")],
    csv: Annotated[
        bool, typer.Option("--csv", help="CSV, for spreadsheets; not provable.")
    ] = False,
    account: Annotated[str, typer.Option(help="Only this account.")] = "",
    run: Annotated[str, typer.Option(help="Only this run.")] = "",
    start: Annotated[str, typer.Option("--from", help="Only entries recorded from then on.")] = "",
    end: Annotated[str, typer.Option("--to", help="Only entries recorded before.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Write the tenant's entries to a file: all of them for `cogni ledger verify`, or a statement.

    Only the whole log can be verified; of an account, a run or a period the file is what it says.
    """
    request = ExportEntriesRequest(
        format=ExportFormat.EXPORT_FORMAT_CSV if csv else ExportFormat.EXPORT_FORMAT_JSON_LINES,
        account_id=account,
        run_id=run,
        start_time=moment(start) if start else None,
        end_time=moment(end) if end else None,
    )
    # A broken export must not look like a whole one: it gets its name when it is complete.
    partial = path.with_name(f"{path.name}.partial")
    if path.exists():
        raise typer.BadParameter(f"{path} exists already")
    try:
        count = _write_export(request, partial)
        partial.rename(path)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {path}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    if as_json:
        print_object({"entries": count, "file": str(path)})
    else:
        console().print(f"{count} entries in {path}")


def _write_export(request: ExportEntriesRequest, partial: Path) -> int:
    """Write what the Ledger sends, down to the disk; returns how many entries. Raises OSError."""
    count = 0
    columns = (TextColumn("entries"), BarColumn(), MofNCompleteColumn())
    # The bar is for people: a file or a pipe would only get the empty line that it leaves.
    screen = Console(stderr=True)
    bar = Progress(*columns, transient=True, console=screen, disable=not screen.is_terminal)
    with Client() as client, partial.open("wb") as file, bar:
        task = bar.add_task("entries", total=None)
        for message in client.ledger.ExportEntries(request):
            file.write(message.chunk)
            count = message.exported_count
            bar.update(task, total=message.total_count, completed=count)
        file.flush()
        os.fsync(file.fileno())
    return count


def verify(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="An export, or a receipt as JSON.")],
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check an exported file offline; names the first entry that was altered, removed or moved.

    Needs no server and no token. Exits 4 when the file does not prove what it claims.
    """
    verifier_key = _key(key)
    try:
        with path.open("rb") as file:
            first = file.readline()
            if _is_receipt(first, file.readline()):
                head, proven = verify_receipt(json.loads(first), verifier_key), "the charge"
                counts = {"charges": 1}
            else:
                file.seek(0)
                found = verify_export(file, verifier_key)
                head = found.head
                proven = f"{found.entry_count} entries, {found.charge_count} of them charges"
                counts = {"entries": found.entry_count, "charges": found.charge_count}
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror}") from None
    except VerificationError as error:
        _not_proven(str(error))
    except (KeyError, TypeError, ValueError):
        # Whatever else a damaged file makes the verifier stumble over.
        _not_proven("the file is damaged, or no export and no receipt")
    if as_json:
        whole = {**counts, "origin": head.origin, "tree_size": head.tree_size}
        print_object({**whole, "by_given_key": verifier_key is not None})
        return
    out = console()
    out.print(f"proven: {proven}, in the log {head.origin} of {head.tree_size} entries")
    if verifier_key is None:
        out.print("by the key that the file itself names: pass --key to know who signed it")


def _not_proven(why: str) -> NoReturn:
    sys.stderr.write(f"NOT PROVEN: {why}\n")
    raise typer.Exit(EXIT_NOT_PROVEN)


def _is_receipt(first: bytes, second: bytes) -> bool:
    """A receipt is one JSON object with a charge; an export has a header line and more lines."""
    if second.strip():
        return False
    try:
        return "charge" in json.loads(first)
    except ValueError:
        return False


def _key(text: str | None) -> str | None:
    if text is None or not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text().strip()
    except OSError as error:
        raise typer.BadParameter(f"cannot read {text[1:]}: {error.strerror}") from None


def receipt(
    reference: Annotated[
        str, typer.Argument(metavar="REFERENCE", help="The charge's reference in the statement.")
    ],
    source_system: Annotated[str, typer.Option(help="Who reported the unit.")] = "executor",
) -> None:
    """Print the receipt of one charge as JSON: leaf, inclusion proof and signed head."""
    request = GetReceiptRequest(source_system=source_system, source_reference=reference)
    with Client() as client:
        found = client.ledger.GetReceipt(request).receipt
    # The verifier reads protobuf's own JSON names.
    sys.stdout.write(json.dumps(json_format.MessageToDict(found)) + "\n")


def tree_head(
    since: Annotated[
        Path | None,
        typer.Option(help="A head that was kept, as printed with --json: prove growth since."),
    ] = None,
    key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the signed head of the tenant's log, and the key that verifies it.

    Keep what it prints: with --since it shows later that nothing was changed or removed since.
    Exits 4 when something was.
    """
    kept = None if since is None else _kept_head(since)
    with Client() as client:
        head = client.ledger.GetTreeHead(GetTreeHeadRequest()).tree_head
        if kept is not None:
            trusted = _key(key) or kept.verifier_key
            grown = _check_growth(client, kept, head, trusted)
            console().print(f"proven: the log only grew, from {grown[0]} to {grown[1]} entries")
    if as_json:
        print_json(head)
    else:
        show(head, False)


def _kept_head(path: Path) -> TreeHead:
    try:
        return json_format.Parse(path.read_text(), TreeHead())
    except OSError as error:
        raise typer.BadParameter(f"cannot read {path}: {error.strerror}") from None
    except json_format.ParseError:
        raise typer.BadParameter(f"{path} is no head that tree-head --json printed") from None


def _check_growth(client: Client, kept: TreeHead, head: TreeHead, key: str) -> tuple[int, int]:
    """Return both sizes; exits when the heads contradict each other or another key signed one."""
    try:
        first, second = open_note(kept.note, key), open_note(head.note, key)
        if first.tree_size > second.tree_size:
            raise VerificationError(
                f"the log has {second.tree_size} entries now, and had {first.tree_size}"
            )
        hashes: list[bytes] = []
        if 0 < first.tree_size < second.tree_size:
            request = GetConsistencyProofRequest(
                first_tree_size=first.tree_size, second_tree_size=second.tree_size
            )
            found = client.ledger.GetConsistencyProof(request).consistency_proof
            hashes = list(found.hashes)
        if first.tree_size > 0:
            verify_consistency(first, second, hashes)
    except VerificationError as error:
        _not_proven(str(error))
    return first.tree_size, second.tree_size
