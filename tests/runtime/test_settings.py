"""The environment is read whole, and whatever is wrong with it is said at once in sentences."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import SecretStr

from services.runtime.settings import (
    BrokerSettings,
    DatabaseSettings,
    ServerSettings,
    ServiceSettings,
    SettingsError,
    TelemetrySettings,
    load,
    load_or_exit,
    own,
    settings_table,
    shared,
)


class WorkerSettings(ServiceSettings):
    service: ClassVar[str] = "kennel"
    beds: int = own(3, "How many pets fit.")


class KennelSettings(ServerSettings, DatabaseSettings, BrokerSettings, ServiceSettings):
    service: ClassVar[str] = "kennel"
    siblings: ClassVar[tuple[type[ServiceSettings], ...]] = (WorkerSettings,)
    vet_address: str | None = shared(None, "Where the vet is.")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    secret = tmp_path / "secret"
    secret.write_text("s" * 32 + "\n")
    return {
        "HOME": "elsewhere",
        "COGNI_KENNEL_LISTEN": "127.0.0.1:0",
        "COGNI_KENNEL_DATABASE_URL": "postgresql://user:hunter2@localhost/cogni",
        "COGNI_BROKER_URL": "redis://localhost",
        "COGNI_AUTH_HS256_SECRET_FILE": str(secret),
    }


def problems(environ: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        load(KennelSettings, environ)
    return refused.value.problems


def test_a_whole_environment_is_read(environ: dict[str, str]) -> None:
    environ["COGNI_PROCESSES"] = "2"
    environ["COGNI_VET_ADDRESS"] = "localhost:1"

    settings = load(KennelSettings, environ)

    assert settings.listen == "127.0.0.1:0"
    assert settings.processes == 2
    assert settings.vet_address == "localhost:1"
    assert settings.auth_hs256_secret is not None
    assert settings.auth_hs256_secret.get_secret_value() == "s" * 32


def test_secrets_are_in_no_repr(environ: dict[str, str]) -> None:
    shown = repr(load(KennelSettings, environ))

    assert "hunter2" not in shown
    assert "sss" not in shown


def test_everything_wrong_is_said_at_once(environ: dict[str, str]) -> None:
    del environ["COGNI_KENNEL_DATABASE_URL"]
    environ["COGNI_PROCESSES"] = "many"
    environ["COGNI_KENNEL_LISTNE"] = "x:1"

    found = problems(environ)

    assert len(found) == 3
    assert found[0] == "COGNI_KENNEL_LISTNE is not a setting. Did you mean COGNI_KENNEL_LISTEN?"
    assert any(each.startswith("COGNI_KENNEL_DATABASE_URL is required") for each in found)
    assert any(each.startswith("COGNI_PROCESSES") and "'many'" in each for each in found)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("COGNI_KENNEL_LISTENS", "COGNI_KENNEL_LISTEN"),
        ("COGNI_LOG_LEVLE", "COGNI_LOG_LEVEL"),
        ("COGNI_DRIAN_SECONDS", "COGNI_DRAIN_SECONDS"),
        ("COGNI_KENEL_DATABASE_URL", "COGNI_KENNEL_DATABASE_URL"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_name_that_was_meant(
    environ: dict[str, str], name: str, meant: str
) -> None:
    environ[name] = "1"
    assert problems(environ) == [f"{name} is not a setting. Did you mean {meant}?"]


@pytest.mark.parametrize(
    "name",
    [
        "COGNI_KENNEL_BEDS",  # a sibling process of the same service reads it
        "COGNI_SCHEDULER_DATABASE_URL",
        "COGNI_EXECUTOR_LISTEN",
        "COGNI_TOKEN",
    ],
)
def test_variables_of_other_processes_are_left_alone(environ: dict[str, str], name: str) -> None:
    environ[name] = "1"
    assert load(KennelSettings, environ)


def test_two_ways_to_check_caller_tokens_are_refused(
    environ: dict[str, str], tmp_path: Path
) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_text("{}")
    environ["COGNI_AUTH_JWKS_FILE"] = str(jwks)

    [problem] = problems(environ)

    assert "COGNI_AUTH_HS256_SECRET_FILE and COGNI_AUTH_JWKS_FILE" in problem


def test_no_way_to_check_caller_tokens_is_refused(environ: dict[str, str]) -> None:
    del environ["COGNI_AUTH_HS256_SECRET_FILE"]
    assert "how caller tokens are checked" in problems(environ)[0]


@pytest.mark.parametrize("listen", ["0.0.0.0:1", "[::]:1", "10.0.0.7:1", "localhost.example:1"])
def test_a_shared_secret_is_refused_where_others_can_reach_the_server(
    environ: dict[str, str], tmp_path: Path, listen: str
) -> None:
    environ["COGNI_KENNEL_LISTEN"] = listen

    [problem] = problems(environ)

    assert "COGNI_AUTH_HS256_SECRET_FILE is for servers that listen on loopback" in problem
    assert repr(listen) in problem
    jwks = tmp_path / "jwks.json"
    jwks.write_text("{}")
    del environ["COGNI_AUTH_HS256_SECRET_FILE"]
    environ["COGNI_AUTH_JWKS_FILE"] = str(jwks)
    assert load(KennelSettings, environ).listen == listen


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "127.8.0.1:0", "[::1]:0", "localhost:0"])
def test_a_shared_secret_will_do_on_loopback(environ: dict[str, str], listen: str) -> None:
    environ["COGNI_KENNEL_LISTEN"] = listen
    assert load(KennelSettings, environ).auth_hs256_secret


def test_a_short_hs256_secret_is_refused_and_not_shown(
    environ: dict[str, str], tmp_path: Path
) -> None:
    short = tmp_path / "short"
    short.write_text("canary")
    environ["COGNI_AUTH_HS256_SECRET_FILE"] = str(short)

    [problem] = problems(environ)

    assert "at least 32 bytes" in problem
    assert "canary" not in problem


def test_a_secret_comes_from_its_file_only(environ: dict[str, str]) -> None:
    environ["COGNI_AUTH_HS256_SECRET"] = "s" * 32
    assert "Did you mean COGNI_AUTH_HS256_SECRET_FILE?" in problems(environ)[0]


@pytest.mark.parametrize("content", [None, "", b"\xff\xfe"])
def test_an_unusable_secret_file_is_named(
    environ: dict[str, str], tmp_path: Path, content: str | bytes | None
) -> None:
    path = tmp_path / "broken"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    environ["COGNI_KENNEL_DATABASE_URL_FILE"] = str(path)
    del environ["COGNI_KENNEL_DATABASE_URL"]

    [problem] = problems(environ)

    assert problem.startswith(f"COGNI_KENNEL_DATABASE_URL_FILE names '{path}', which")


def test_a_variable_and_its_file_together_are_refused(
    environ: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "url"
    path.write_text("postgresql://x")
    environ["COGNI_KENNEL_DATABASE_URL_FILE"] = str(path)
    assert "both set" in problems(environ)[0]


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("COGNI_TLS_CERT_FILE", "/nowhere", "belong together"),
        ("COGNI_BROKER_URL", "kafka://x", "write redis://"),
        ("COGNI_DEFAULT_DEADLINE_SECONDS", "100", "longer than COGNI_MAX_DEADLINE_SECONDS"),
        ("COGNI_OTLP_ENDPOINT", "ftp://x", "COGNI_OTLP_ENDPOINT"),
        ("COGNI_OTLP_ENDPOINT", " http://x", "COGNI_OTLP_ENDPOINT"),
        ("COGNI_LOG_FORMAT", "yaml", "'text' or 'json'"),
        ("COGNI_KENNEL_LISTEN", "7401", "cannot be '7401': host:port on which"),
    ],
)
def test_contradictory_or_malformed_settings_are_refused(
    environ: dict[str, str], name: str, value: str, part: str
) -> None:
    environ[name] = value
    assert part in problems(environ)[0]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://user:hunter2@localhost/cogni",
        "postgresql://user:hunter2@localhost:99999/cogni",
        "postgresql://user:hunter2@localhost:0/cogni",
        "postgresql://user:hunter2@[::1/cogni",
        "user:hunter2@localhost",
    ],
)
def test_a_url_of_no_postgresql_is_refused_without_being_repeated(
    environ: dict[str, str], url: str
) -> None:
    environ["COGNI_KENNEL_DATABASE_URL"] = url

    (problem,) = problems(environ)

    assert problem.startswith("COGNI_KENNEL_DATABASE_URL is no URL of PostgreSQL")
    assert "hunter2" not in problem


@pytest.mark.parametrize(
    "url",
    [
        "redis:hunter2@mq",
        "redis://:hunt/er2@mq:1/0",
        "amqp://u:hunt#er2@mq/",
        "amqp://u:hunter2@mq:port",
    ],
)
def test_a_url_of_no_broker_is_refused_without_being_repeated(url: str) -> None:
    (problem,) = BrokerSettings(broker_url=SecretStr(url)).contradictions()

    assert problem.startswith("COGNI_BROKER_URL is no URL of a broker")
    assert "hunt" not in problem


@pytest.mark.parametrize("line", ["x-api-key=hunter2", "Bearer hunter2", "two words: hunter2"])
def test_a_line_that_is_no_header_is_refused_without_being_repeated(line: str) -> None:
    headers = SecretStr(f"Authorization: Basic abc\n\n{line}\n")
    settings = TelemetrySettings(otlp_endpoint="http://x", otlp_headers=headers)

    (problem,) = settings.contradictions()

    assert problem.startswith("COGNI_OTLP_HEADERS_FILE has no header in line 3")
    assert "hunter2" not in problem


def test_the_table_lists_every_variable_with_its_meaning() -> None:
    table = settings_table(KennelSettings)

    assert "| `COGNI_KENNEL_LISTEN` | required |" in table
    assert "| `COGNI_AUTH_HS256_SECRET_FILE` |" in table
    assert "`COGNI_KENNEL_DATABASE_URL` or `COGNI_KENNEL_DATABASE_URL_FILE`" in table
    assert "One of `text`, `json`." in table
    assert all(line.count(" | ") == 2 for line in table.splitlines()[2:])


def test_a_process_with_wrong_settings_exits_with_sentences(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load_or_exit(KennelSettings, {})

    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert "COGNI_KENNEL_LISTEN is required: host:port on which the server listens" in shown
    assert "Traceback" not in shown
