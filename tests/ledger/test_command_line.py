"""`cogni ledger` against a running Ledger: LiteLLM's prices, reconciliation, whole bills."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cogni.cli import cost_map
from cogni.cli.ledger import app
from cogni.ledger.v1 import usage_pb2
from cogni.ledger.v1.ledger_service_pb2 import CreatePriceCardRequest
from cogni.ledger.v1.price_card_pb2 import ModelPrice, PriceCard
from services.ledger.checkpoint import LogSigner
from services.runtime.ids import new_id
from tests.ledger.conftest import ALL_SCOPES, ORIGIN, Ledger, record, unit

Cogni = Callable[..., Awaitable[Result]]
EXIT_USAGE, EXIT_NOT_PROVEN, EXIT_DIFFERENT = 2, 4, 5


@pytest.fixture
def cogni(ledger: Ledger) -> Cogni:
    """The command, typed by an administrator of acme."""
    environment = {
        "COGNI_LEDGER_ADDRESS": ledger.served.address,
        "COGNI_TOKEN": ledger.identities.user_token("acme", "alice", ALL_SCOPES),
        "NO_COLOR": "1",
    }

    async def type_it(*words: str) -> Result:
        # In a thread: the command is synchronous, and the server answers on this loop.
        runner = CliRunner()
        return await asyncio.to_thread(runner.invoke, app, list(words), env=environment)

    return type_it


def a_map(tmp_path: Path, models: str) -> str:
    path = tmp_path / "map.json"
    path.write_text(models)
    return str(path)


def rates(price: ModelPrice) -> dict[str, str]:
    kinds = usage_pb2.TokenKind
    return {
        kinds.Name(each.kind).removeprefix("TOKEN_KIND_"): each.price for each in price.token_prices
    }


async def test_litellms_map_becomes_the_card_that_prices_calls_exactly(
    ledger: Ledger, cogni: Cogni, tmp_path: Path
) -> None:
    # 2.5000000000000001e-07 is no number that a float can hold.
    path = a_map(
        tmp_path,
        """{"m": {"litellm_provider": "openai", "mode": "chat",
                  "input_cost_per_token": 2.5000000000000001e-07,
                  "cache_read_input_token_cost": 0, "output_cost_per_token": 2e-06}}""",
    )
    account_id = await ledger.account("1")
    words = ("price-cards", "import-litellm", "--file", path, "--markup", "20%")

    tried = await cogni(*words, "--dry-run")
    made = await cogni(*words, "--id")
    shown = json.loads((await cogni("price-cards", "get", made.stdout.strip())).stdout)
    call = usage_pb2.LlmCall(model="openai/m", provider="openai")
    for kind, count in (("INPUT", 10**6), ("CACHE_READ", 10**6), ("OUTPUT", 3), ("REASONING", 4)):
        call.token_counts.add(kind=f"TOKEN_KIND_{kind}", count=count)  # type: ignore[arg-type]
    (outcome,) = await record(ledger.executor(), unit(account_id, None, llm_call=call))

    assert (tried.exit_code, made.exit_code) == (0, 0)
    assert "map.json: 2 prices, times 1.2" in tried.stdout
    assert (shown["version"], shown["markup"]) == (1, "1.2")
    exact = Decimal("0.25000000000000001") + 7 * Decimal("0.000002")
    assert Decimal(outcome.charge.unrounded) == exact * Decimal("1.2")
    assert outcome.charge.price_card_version == 1


async def test_a_tenants_own_prices_win_over_the_maps(
    ledger: Ledger, cogni: Cogni, tmp_path: Path
) -> None:
    ours = PriceCard(asset="USD", tool_prices=[{"name": "search", "price": "0.01"}])  # type: ignore[list-item]
    ours.model_prices.add(model="m").token_prices.add(kind="TOKEN_KIND_INPUT", price="7")  # type: ignore[arg-type]
    request = CreatePriceCardRequest(request_id=new_id(), price_card=ours)
    kept = (await ledger.stub().CreatePriceCard(request)).price_card.price_card_id
    path = a_map(
        tmp_path,
        """{"m": {"mode": "chat", "input_cost_per_token": 1},
            "n": {"mode": "chat", "input_cost_per_token": 2}}""",
    )

    made = await cogni("price-cards", "import-litellm", "--file", path, "--keep", kept, "--json")

    card = json.loads(made.stdout)
    prices = {each["model"]: each["token_prices"][0]["price"] for each in card["model_prices"]}
    assert prices == {"m": "7", "n": "2"}
    assert card["tool_prices"] == [{"name": "search", "price": "0.01"}]


def test_a_map_gives_whole_prices_only_and_says_what_it_left_out(tmp_path: Path) -> None:
    path = a_map(
        tmp_path,
        """{"sample_spec": {"mode": "one of: chat", "input_cost_per_token": 0},
            "free": {"mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0.0},
            "spoken": {"mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6,
                       "output_cost_per_reasoning_token": 3e-6, "input_cost_per_audio_token": 4e-5,
                       "output_cost_per_audio_token": 8e-5,
                       "cache_creation_input_token_cost": 1.25e-6,
                       "cache_creation_input_token_cost_above_1hr": 2e-6},
            "long": {"mode": "chat", "input_cost_per_token": 1e-6,
                     "input_cost_per_token_above_200k_tokens": 2e-6},
            "fine": {"mode": "chat", "input_cost_per_token": 1e-31},
            "owed": {"mode": "chat", "input_cost_per_token": -1e-6},
            "unknown": {"mode": "chat"},
            "picture": {"mode": "image_generation", "input_cost_per_token": 1e-6}}""",
    )
    source = cost_map.read(Path(path))

    found = cost_map.prices(source)
    flat = cost_map.prices(source, "lon*", flatten_tiers=True)

    assert {each.model: rates(each) for each in found.models} == {
        "free": {"INPUT": "0", "OUTPUT": "0.0", "REASONING": "0.0"},
        "spoken": {
            "INPUT": "0.000001",
            "OUTPUT": "0.000002",
            "REASONING": "0.000003",
            "CACHE_WRITE": "0.00000125",
            "AUDIO_INPUT": "0.00004",
            "AUDIO_OUTPUT": "0.00008",
        },
    }
    assert sum(found.left_out.values()) == 6
    assert [rates(each) for each in flat.models] == [{"INPUT": "0.000001"}]


async def test_the_installed_litellms_whole_map_fits_one_card(cogni: Cogni) -> None:
    made = await cogni("price-cards", "import-litellm", "--name", "all of it", "--json")
    listed = await cogni("price-cards", "--json")

    assert made.exit_code == 0, made.output
    card = json.loads(made.stdout)
    prices = {each["model"]: each for each in card["model_prices"]}
    assert len(prices) > 1000
    of_mini = {each["kind"]: each["price"] for each in prices["openai/gpt-5-mini"]["token_prices"]}
    assert of_mini["TOKEN_KIND_INPUT"] == "0.00000025"
    assert json.loads(listed.stdout)["display_name"] == "all of it"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--file", "/no/such/map.json"), "cannot read"),
        (("--model", "no-such-model"), "no model that matches"),
        (("--markup", "much"), "is no markup"),
    ],
)
async def test_a_bad_import_is_refused_before_anything_is_made(
    cogni: Cogni, words: tuple[str, ...], said: str
) -> None:
    refused = await cogni("price-cards", "import-litellm", *words)

    assert refused.exit_code == EXIT_USAGE
    assert said in refused.output
    assert "none" in (await cogni("price-cards")).stdout


async def test_a_gateways_log_and_an_invoice_are_compared_unit_by_unit(
    ledger: Ledger, cogni: Cogni, tmp_path: Path
) -> None:
    account_id, run_id = await ledger.account("10"), new_id()

    def called(cost: str, response_id: str) -> usage_pb2.UsageUnit:
        call = usage_pb2.LlmCall(model="m", provider="openai", provider_response_id=response_id)
        return unit(account_id, cost, run_id=run_id, llm_call=call)

    noisy, dearer, missing = called("0.00000345", "r1"), called("0.5", "r2"), called("0.1", "r3")
    await record(ledger.executor(), noisy, dearer, missing)
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    log = [
        # As the table keeps it, with what floats make of 0.00000345.
        f"""{{"request_id": "r1", "call_type": "acompletion", "spend": 3.4499999999999996e-06,
              "startTime": "{day}T00:00:00.123000", "cache_hit": "False", "status": "success",
              "metadata": {{"litellm_call_id": "{noisy.source_reference}"}}}}""",
        f"""{{"request_id": "r2", "spend": 0.6, "startTime": "{day}T00:00:00Z",
              "litellm_call_id": "{dearer.source_reference}", "metadata": "{{}}"}}""",
        f"""{{"request_id": "r9", "spend": 0.7, "startTime": "{day}T00:00:00+00:00",
              "metadata": null}}""",
        """{"request_id": "old", "spend": 0.7, "startTime": "2001-01-01T00:00:00"}""",
    ]
    gateway, invoice = tmp_path / "log.jsonl", tmp_path / "invoice.csv"
    gateway.write_text("\n".join(" ".join(each.split()) for each in log))
    invoice.write_text("Line,Request,Total (USD)\r\n1,r1,0.00000345\r\n2,r2,0.5\r\n3,r3,0.1\r\n")
    begin = datetime.now(UTC) - timedelta(days=1)

    found = await cogni(
        *("reconcile", "--from", begin.isoformat(), "--to", f"{datetime.now(UTC):%FT%T}.999999Z"),
        *("--gateway", str(gateway), "--invoice", str(invoice), "--column", "cost=Total (USD)"),
        *("--column", "provider_response_id=Request", "--column", "external_reference=Line"),
    )

    assert found.exit_code == EXIT_DIFFERENT, found.output
    lines = found.stdout.splitlines()
    assert lines[0].startswith("gateway: 1 units agree, 3 differ; ledger 0.60000345 USD")
    assert lines[1] == (
        "invoice: 3 units agree, 0 differ; ledger 0.60000345 USD, invoice 0.60000345 USD"
    )
    assert {(line.split()[1], line.split()[0]) for line in lines[3:]} == {
        ("cost", "gateway"),
        ("not", "gateway"),
    }
    assert sum("not in ledger" in line and "r9" in line for line in lines) == 1
    assert sum("not in source" in line and missing.source_reference in line for line in lines) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("log.json", "[1]", "no list of spend logs"),
        ("log.json", "{", "neither JSON nor JSON lines"),
        ("log.json", '[{"spend": NaN}]', "spend log 1 has no cost"),
        ("log.json", '[{"spend": "-1"}]', "spend log 1 has no cost"),
        ("log.json", '[{"spend": 1, "startTime": "soon"}]', "the time 'soon'"),
        ("log.csv", "a,b\n", "no column 'spend'"),
    ],
)
async def test_a_spend_log_that_is_none_is_refused_by_its_row(
    cogni: Cogni, tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content)

    refused = await cogni("reconcile", "--run", new_id(), "--gateway", str(path))

    assert refused.exit_code == EXIT_USAGE
    assert said in " ".join(refused.output.replace("│", " ").split())


async def test_a_bill_longer_than_a_page_is_shown_whole_and_exported_by_period(
    ledger: Ledger, cogni: Cogni, tmp_path: Path
) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    before = datetime.now(UTC)
    await record(ledger.executor(), *(unit(account_id, run_id=run_id) for _ in range(230)))
    period = ("--account", account_id, "--from", before.isoformat())

    of_run = json.loads((await cogni("statement", run_id, "--json")).stdout)
    of_account = json.loads((await cogni("statement", *period, "--json")).stdout)
    shown = await cogni("statement", *period)
    exported = await cogni("export", str(tmp_path / "bill.csv"), "--csv", *period)
    then = json.loads(
        (await cogni("accounts", "get", account_id, "--at", before.isoformat(), "--json")).stdout
    )

    assert len({each["sequence"] for each in of_run["charges"]}) == 230
    assert len({each["sequence"] for each in of_account["entries"]}) == 230
    assert of_account["opening_balance"]["value"] == "10"
    assert of_account["closing_balance"]["value"] == "7.7"
    assert "charge: 230 entries, left 2.3 USD, arrived 0 USD" in shown.stdout
    assert "230 entries in" in exported.stdout
    assert len((tmp_path / "bill.csv").read_text().splitlines()) == 231
    assert then["balance"]["balance"]["value"] == "10"


async def test_a_head_that_was_kept_shows_later_that_the_log_only_grew(
    ledger: Ledger, cogni: Cogni, tmp_path: Path
) -> None:
    account_id = await ledger.account("10")
    kept = tmp_path / "head.json"
    kept.write_text((await cogni("tree-head", "--json")).stdout)
    await record(ledger.executor(), *(unit(account_id) for _ in range(4)))

    grown = await cogni("tree-head", "--since", str(kept))
    same = await cogni("tree-head", "--since", str(kept))
    # The operator rewrites history: its log is another one now, signed with the same key.
    signer = LogSigner(ledger.identities.keys["ledger"], ORIGIN)
    other = signer.sign("acme", 1, b"\1" * 32)
    head = json.loads(kept.read_text())
    kept.write_text(json.dumps({**head, "note": other.note}))
    denied = await cogni("tree-head", "--since", str(kept))

    assert (grown.exit_code, same.exit_code) == (0, 0), grown.output
    assert "proven: the log only grew, from 1 to 5 entries" in grown.stdout
    assert denied.exit_code == EXIT_NOT_PROVEN
