"""What `cogni` says when it is used wrongly: a sentence, an exit code, and never a traceback."""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogni.cli.__main__ import explain, main
from cogni.cli.events import describe
from cogni.client import NotAuthenticated, to_value
from cogni.executor.v1.run_event_pb2 import CustomEvent, RunEvent

ID = "01a21624-0000-7000-8000-000000000000"


@pytest.fixture(autouse=True)
def _nobody_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("EXECUTOR", "SCHEDULER", "CONNECTIONS", "LEDGER"):
        monkeypatch.setenv(f"COGNI_{service}_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("COGNI_TOKEN", "token")
    monkeypatch.delenv("COGNI_TOKEN_FILE", raising=False)


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """The exit code of `cogni` with these words; another exception than SystemExit fails."""
    monkeypatch.setattr(sys, "argv", ["cogni", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ('{"x": NaN}', "NaN is no JSON number"),
        ('{"x": 1e999}', "inf has no JSON form"),
        ('{"x": ' + "9" * 5000 + "}", "not JSON"),
        ('{"x": "\\ud800"}', "surrogates"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "nest it less"),
        ('{"a":' * 600 + "1" + "}" * 600, "nest it less"),
    ],
)
def test_input_that_is_no_json_is_refused_in_a_sentence(
    given: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = ended(monkeypatch, "runs", "start", "noop", "--grant", ID, "--input", given)

    assert code == 2
    assert said in capsys.readouterr().err


def test_an_input_file_that_is_not_text_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "input").write_bytes(b"\xff\xfe{}")

    code = ended(
        monkeypatch, "runs", "start", "noop", "--grant", ID, "--input", f"@{tmp_path / 'input'}"
    )

    assert code == 2
    assert "not JSON" in capsys.readouterr().err


def test_an_argument_of_bytes_that_are_no_text_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = ended(monkeypatch, "grants", "create", "--graph", "noop", "--name", "x\udcff")

    assert code == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_an_export_to_a_folder_that_is_not_there_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = ended(monkeypatch, "ledger", "export", str(tmp_path / "nowhere" / "bill.jsonl"))

    assert code == 2
    assert "cannot write" in capsys.readouterr().err


def test_an_export_that_breaks_off_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = ended(monkeypatch, "ledger", "export", str(tmp_path / "bill.jsonl"))

    assert code == 1
    assert list(tmp_path.iterdir()) == []


def test_watching_without_a_server_says_so_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = ended(monkeypatch, "runs", "watch", ID)

    assert code == 1
    assert "no Cogni server answers there" in capsys.readouterr().err


@pytest.mark.parametrize("token", ["a\nb", "to☃ken", "two words"])
def test_a_token_that_no_header_carries_is_refused_and_not_repeated(
    token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COGNI_TOKEN", token)

    code = ended(monkeypatch, "graphs", "list")

    assert code == 1
    said = capsys.readouterr().err
    assert "COGNI_TOKEN holds characters that no token has" in said
    assert token not in said


def test_a_refused_token_comes_with_where_tokens_are_taken_from() -> None:
    refused = NotAuthenticated(
        "Send a token.", code=grpc.StatusCode.UNAUTHENTICATED, reason="TOKEN_MISSING"
    )

    assert "COGNI_TOKEN" in explain(refused)


def test_output_that_cannot_be_written_ends_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Full(io.TextIOWrapper):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with (tmp_path / "out").open("wb") as there, Full(there) as full:
        monkeypatch.setattr(sys, "stdout", full)

        code = ended(monkeypatch, "--version")

    assert code == 1
    assert "No space left on device" in capsys.readouterr().err


def test_an_event_reads_the_same_in_whatever_order_its_keys_arrive() -> None:
    events = [
        RunEvent(custom=CustomEvent(name="x", data=to_value(dict.fromkeys(keys, 1))))
        for keys in itertools.permutations("abcd")
    ]

    lines = {describe(event) for event in events}

    assert lines == {('x {"a": 1, "b": 1, "c": 1, "d": 1}', "")}
