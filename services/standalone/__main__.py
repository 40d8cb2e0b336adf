"""`python -m services.standalone`: run the whole system on this machine, and reach it."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from services.standalone.callers import ALL_SCOPES
from services.standalone.console import Screen, program
from services.standalone.datadir import DataDir
from services.standalone.errors import StandaloneError
from services.standalone.keys import now_utc
from services.standalone.programs import RUNNER_PREFIX, SERVICES
from services.standalone.running import run_on
from services.standalone.stack import Stack, StackOptions

DEFAULT_SUBJECT: Final = "me"
DEFAULT_TENANT: Final = "demo"
DEFAULT_TTL_HOURS: Final = 12.0
EXAMPLES: Final = Path(__file__).parents[2] / "examples"

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False
)

DataDirOption = Annotated[
    Path, typer.Option("--data-dir", help="Where this stack keeps everything.")
]
GraphsOption = Annotated[
    Path | None,
    typer.Option(
        "--graphs", help="The langgraph.json to serve. Default: the one here, or the examples'."
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A COGNI_<SERVICE>_* or COGNI_RUNNER_* setting of the processes it names; repeat it.",
    ),
]
SubjectOption = Annotated[str, typer.Option(help="Who the caller is (`sub`).")]
TenantOption = Annotated[str, typer.Option(help="The tenant the caller belongs to.")]


def _known(scopes: list[str] | None) -> list[str] | None:
    unknown = ", ".join(each for each in scopes or () if each not in ALL_SCOPES)
    if unknown:
        raise typer.BadParameter(f"No call asks for {unknown}. Known are {', '.join(ALL_SCOPES)}.")
    return scopes


ScopeOption = Annotated[
    list[str] | None,
    typer.Option("--scope", callback=_known, help="A scope; repeat it. Default: all."),
]
HoursOption = Annotated[float, typer.Option("--ttl-hours", help="How long the token is good for.")]


def _port(service: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        f"--{service}-port",
        min=1,
        max=65535,
        help=f"Port of {service}; refused if taken. Default: the usual or a free one.",
    )
    return option


@app.command()
def up(
    data_dir: DataDirOption = Path(".cogni"),
    graphs: GraphsOption = None,
    executor_port: Annotated[int | None, _port("executor")] = None,
    scheduler_port: Annotated[int | None, _port("scheduler")] = None,
    connections_port: Annotated[int | None, _port("connections")] = None,
    ledger_port: Annotated[int | None, _port("ledger")] = None,
    postgres_port: Annotated[int | None, _port("postgres")] = None,
    redis_port: Annotated[int | None, _port("redis")] = None,
    setting: SettingOption = None,
) -> None:
    """Start the whole stack and keep it running; Ctrl-C stops it."""
    asked = {
        "executor": executor_port,
        "scheduler": scheduler_port,
        "connections": connections_port,
        "ledger": ledger_port,
        "postgres": postgres_port,
        "redis": redis_port,
    }
    ports = {name: port for name, port in asked.items() if port is not None}
    screen = Screen()
    screen.say(f"Starting Cogni on {data_dir}")
    with _sentences():
        settings = further_settings(setting or ())
    options = StackOptions(data_dir, graphs or default_graphs(), ports, settings)
    stack = Stack(options, screen.report)

    async def stay(stack: Stack) -> None:
        _welcome(screen, stack)
        await asyncio.Event().wait()

    _run(stack, stay)
    screen.say("Stopped; nothing is left running.")


@app.command()
def demo(
    data_dir: DataDirOption = Path(".cogni-demo"),
    graphs: GraphsOption = None,
    source: Annotated[
        Path | None,
        typer.Option(help="A git repository or a feed file to read. Default: this one."),
    ] = None,
) -> None:
    """Run the main job end to end while you watch, then stop cleanly."""
    # Only the demo is a client of the stack: `token` and `env` need not wait for gRPC.
    from services.standalone.demo import showing

    with _sentences():
        showing.show(data_dir, graphs or EXAMPLES / "langgraph.json", source or default_source())


@app.command()
def token(
    data_dir: DataDirOption = Path(".cogni"),
    subject: SubjectOption = DEFAULT_SUBJECT,
    tenant: TenantOption = DEFAULT_TENANT,
    scope: ScopeOption = None,
    ttl_hours: HoursOption = DEFAULT_TTL_HOURS,
) -> None:
    """Print a token that the stack on the data directory accepts."""
    with _sentences():
        typer.echo(_mint(DataDir(data_dir), subject, tenant, tuple(scope or ()), ttl_hours))


@app.command()
def env(
    data_dir: DataDirOption = Path(".cogni"),
    subject: SubjectOption = DEFAULT_SUBJECT,
    tenant: TenantOption = DEFAULT_TENANT,
    scope: ScopeOption = None,
    ttl_hours: HoursOption = DEFAULT_TTL_HOURS,
) -> None:
    """Print export lines for clients of the running stack: eval "$(... env)"."""
    with _sentences():
        directory = DataDir(data_dir)
        addresses = directory.addresses()
        for service in SERVICES:
            _export(f"COGNI_{service.upper()}_ADDRESS", getattr(addresses, service))
        minted = _mint(directory, subject, tenant, tuple(scope or ()), ttl_hours)
        _export("COGNI_TOKEN", minted)


def default_graphs() -> Path:
    """The project in the working directory, or else the examples beside this source."""
    here = Path("langgraph.json")
    return here if here.is_file() else EXAMPLES / "langgraph.json"


def default_source() -> Path:
    """This repository, or a feed that comes with the examples where there is no history."""
    root = EXAMPLES.parent
    return root if (root / ".git").exists() else EXAMPLES / "feed.atom"


def further_settings(pairs: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` as settings; StandaloneError for what no process of the stack would read."""
    prefixes = (RUNNER_PREFIX, *(f"COGNI_{service.upper()}_" for service in SERVICES))
    found = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.startswith(prefixes):
            raise StandaloneError(
                f"--set {pair!r} sets nothing; write NAME=VALUE with a name that begins with one "
                f"of {', '.join(prefixes)}."
            )
        found[name] = value
    return found


def _run(stack: Stack, work: Callable[[Stack], Awaitable[None]]) -> None:
    with _sentences():
        asyncio.run(run_on(stack, work))


@contextmanager
def _sentences() -> Iterator[None]:
    """Shows what went wrong as its sentence, and ends the command with code 1."""
    try:
        yield
    except StandaloneError as error:
        typer.echo(f"\n{error}", err=True)
        raise typer.Exit(1) from None


def _welcome(screen: Screen, stack: Stack) -> None:
    data_dir = stack.options.data_dir
    minted = _mint(stack.directory, DEFAULT_SUBJECT, DEFAULT_TENANT, (), DEFAULT_TTL_HOURS)
    own = "" if data_dir == Path(".cogni") else f" --data-dir {shlex.quote(str(data_dir))}"
    executor = stack.address("executor")
    screen.say(f"\nEverything is healthy after {screen.seconds():.1f} s.\n")
    for service in SERVICES:
        screen.say(f"  {service:12} {stack.address(service)}")
    screen.say(f"  {'logs':12} {stack.directory.logs}")
    screen.say(
        f"\nA token for tenant {DEFAULT_TENANT!r}, good for {DEFAULT_TTL_HOURS:.0f} hours "
        f"(more: {program('python')} -m services.standalone token{own}):\n\n"
        f"  export COGNI_TOKEN={minted}\n"
    )
    screen.say(
        "A first call:\n\n"
        f'  grpcurl -plaintext -H "authorization: Bearer $COGNI_TOKEN" {executor} '
        "cogni.executor.v1.ExecutorService/ListGraphs\n\n"
        "The same and more with the command line, in another terminal:\n\n"
        f'  eval "$({program("python")} -m services.standalone env{own})"\n'
        f"  {program('cogni')} graphs list\n"
        f"  {program('cogni')} --help\n\n"
        "Ctrl-C stops everything."
    )


def _mint(
    directory: DataDir, subject: str, tenant: str, scopes: tuple[str, ...], ttl_hours: float
) -> str:
    return directory.keys.mint_caller_token(
        subject=subject,
        tenant=tenant,
        scopes=scopes or ALL_SCOPES,
        ttl=timedelta(hours=ttl_hours),
        now=now_utc(),
    )


def _export(name: str, value: str) -> None:
    typer.echo(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    app()
