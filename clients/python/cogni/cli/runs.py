"""`cogni runs`: start, watch, list, answer, replay and cancel runs."""

from __future__ import annotations

from typing import Annotated

import typer

from cogni.cli.arguments import (
    IdOption,
    JsonOption,
    LabelsOption,
    LimitOption,
    RequestIdOption,
    enum_value,
    json_message,
    json_object,
    labels,
    request_id,
)
from cogni.cli.events import EventPrinter
from cogni.cli.output import (
    console,
    name_of,
    pages,
    print_json,
    show,
    show_all,
    show_created,
    time_of,
)
from cogni.client import Client
from cogni.executor.v1.executor_service_pb2 import (
    CancelRunRequest,
    DeleteRunRequest,
    GetRunRequest,
    ListAuditRecordsRequest,
    ListRunsRequest,
    ReplayRunRequest,
    ResumeRunRequest,
    StartRunRequest,
)
from cogni.executor.v1.run_event_pb2 import RunEvent
from cogni.executor.v1.run_pb2 import Run, RunState

app = typer.Typer(help="Runs of graphs.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID")]
EXIT_RUN_FAILED = 3


@app.command()
def start(
    graph: Annotated[str, typer.Argument(help="The graph, as `cogni graphs list` names it.")],
    grant: Annotated[str, typer.Option(help="The grant that bounds the run.")],
    input: Annotated[
        str, typer.Option(help="A JSON object; @FILE reads a file, - standard input.")
    ] = "{}",
    thread: Annotated[str, typer.Option(help="Continue this thread.")] = "",
    label: LabelsOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    given_request_id: RequestIdOption = None,
    only_id: IdOption = False,
    as_json: JsonOption = False,
) -> None:
    """Start a run."""
    with Client() as client:
        run = client.executor.StartRun(
            StartRunRequest(
                request_id=request_id(given_request_id),
                graph_id=graph,
                grant_id=grant,
                input=json_object(input),
                thread_id=thread,
                labels=labels(label),
            )
        ).run
        if not watch:
            show_created(run, "run_id", only_id, as_json)
            return
        if not as_json:
            console().print(run.run_id)
        _follow(client, run.run_id, 0, as_json)


@app.command()
def watch(
    run: RunArgument,
    after_seq: Annotated[int, typer.Option(min=0, help="Skip events up to this one.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show a run's events: those of the past at once, those to come as they happen.

    Exits 3 when the run does not succeed. Stopping to watch does not stop the run.
    """
    with Client() as client:
        # Asked plainly once: watching bridges two minutes without a server, in which a mistyped
        # address would look like a quiet run.
        client.executor.GetRun(GetRunRequest(run_id=run))
        _follow(client, run, after_seq, as_json)


def _follow(client: Client, run_id: str, after_seq: int, as_json: bool) -> None:
    printer = EventPrinter(console())
    last: RunEvent | None = None
    for event in client.watch_run(run_id, after_seq=after_seq):
        last = event
        if as_json:
            print_json(event)
        else:
            printer.print(event)
    # Without an event the run had ended before: it is asked how.
    ended = (
        last.finished.state
        if last
        else client.executor.GetRun(GetRunRequest(run_id=run_id)).run.state
    )
    if ended != RunState.RUN_STATE_SUCCEEDED:
        raise typer.Exit(EXIT_RUN_FAILED)


@app.command("list")
def list_runs(
    state: Annotated[list[str] | None, typer.Option(help="Only these states.")] = None,
    graph: Annotated[str, typer.Option(help="Only this graph.")] = "",
    grant: Annotated[str, typer.Option(help="Only this grant.")] = "",
    label: LabelsOption = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    request = ListRunsRequest(
        states=[enum_value(RunState, "RUN_STATE", word) for word in state or ()],
        graph_id=graph,
        grant_id=grant,
        labels=labels(label),
    )

    def row(run: Run) -> tuple[str, ...]:
        return (
            run.run_id,
            name_of(RunState, "RUN_STATE", run.state),
            run.graph_id,
            str(run.attempt),
            time_of(run.create_time),
            run.error.message,
        )

    with Client() as client:
        show_all(
            pages(client.executor.ListRuns, request, "runs", limit),
            ("run_id", "state", "graph", "attempt", "created", "error"),
            row,
            as_json,
        )


@app.command()
def get(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show one run."""
    with Client() as client:
        show(client.executor.GetRun(GetRunRequest(run_id=run)).run, as_json)


@app.command()
def cancel(
    run: RunArgument,
    comment: Annotated[str, typer.Option(help="Why, for the record.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Ask for a run to be stopped."""
    with Client() as client:
        request = CancelRunRequest(run_id=run, comment=comment)
        show(client.executor.CancelRun(request).run, as_json)


@app.command()
def answer(
    run: RunArgument,
    value: Annotated[str, typer.Argument(help="The answer as JSON; @FILE or - as for input.")],
    interrupt: Annotated[
        str | None, typer.Option(help="Which question. Default: the only open one.")
    ] = None,
    given_request_id: RequestIdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer the question a run waits with."""
    with Client() as client:
        if interrupt is None:
            waiting = client.executor.GetRun(GetRunRequest(run_id=run)).run
            asked = [i for i in waiting.interrupts if not i.HasField("answer_time")]
            if len(asked) != 1:
                raise typer.BadParameter(
                    f"the run has {len(asked)} open questions; name one with --interrupt"
                )
            interrupt = asked[0].interrupt_id
        request = ResumeRunRequest(
            request_id=request_id(given_request_id),
            run_id=run,
            interrupt_id=interrupt,
            value=json_message(value),
        )
        show(client.executor.ResumeRun(request).run, as_json)


@app.command()
def replay(
    run: RunArgument,
    checkpoint: Annotated[str, typer.Option(help="Begin here instead of at the start.")] = "",
    given_request_id: RequestIdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a new run, on a new thread, that repeats this one."""
    with Client() as client:
        request = ReplayRunRequest(
            request_id=request_id(given_request_id), run_id=run, checkpoint_id=checkpoint
        )
        show(client.executor.ReplayRun(request).run, as_json)


@app.command()
def delete(run: RunArgument, as_json: JsonOption = False) -> None:
    """Delete a finished run with its events and checkpoints. Its charges stay."""
    with Client() as client:
        show(client.executor.DeleteRun(DeleteRunRequest(run_id=run)), as_json)


@app.command()
def audit(
    run: Annotated[str, typer.Option(help="Only this run.")] = "",
    grant: Annotated[str, typer.Option(help="Only this grant.")] = "",
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """List what was decided, and under which grant."""
    request = ListAuditRecordsRequest(run_id=run, grant_id=grant)
    with Client() as client:
        for record in pages(client.executor.ListAuditRecords, request, "audit_records", limit):
            show(record, as_json)
            if not as_json:
                console().print()
