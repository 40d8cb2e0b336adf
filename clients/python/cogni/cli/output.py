"""What the commands print: tables and fields for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from cogni.type.v1.amount_pb2 import Amount

PAGE_SIZE = 100
WIDTH_MAX = 10_000
FIELD_MAX = 200

# A generated enum: protobuf gives its type no public name.
EnumType = Any


def console() -> Console:
    # Ids must stay whole for copying, so a wide table runs over the terminal's edge instead of
    # being shortened to it.
    return Console(highlight=False, soft_wrap=True, markup=False, width=WIDTH_MAX)


def as_json(message: Message) -> dict[str, Any]:
    """The message under the contract's own field names."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def print_json(message: Message) -> None:
    print_object(as_json(message))


def print_object(fields: dict[str, Any]) -> None:
    """One JSON object on a line of its own."""
    print(json.dumps(fields, ensure_ascii=False), flush=True)


def show(message: Message, as_program: bool) -> None:
    """One message: its fields that are set, a line each; nested ones as JSON."""
    if as_program:
        print_json(message)
        return
    fields = as_json(message)
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        console().print(f"{name:<{width}}  {_field(value)}")


def _field(value: object) -> str:
    """A value on one line; what is too long for one is cut, and whole with --json."""
    if isinstance(value, dict) and set(value) == {"asset", "value"}:
        return f"{value['value']} {value['asset']}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= FIELD_MAX else f"{text[:FIELD_MAX]}…"


def show_created(message: Message, id_field: str, only_id: bool, as_program: bool) -> None:
    """What a command has just made: whole, or its id alone."""
    if only_id:
        print(getattr(message, id_field), flush=True)
    else:
        show(message, as_program)


def show_all(
    messages: Iterable[Message],
    columns: Sequence[str],
    row: Callable[[Any], Sequence[str]],
    as_program: bool,
) -> None:
    """Many messages: a table, or one JSON object a line."""
    if as_program:
        for message in messages:
            print_json(message)
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    count = 0
    for message in messages:
        table.add_row(*row(message))
        count += 1
    if count == 0:
        console().print("none")
    else:
        _print_table(table)


def _print_table(table: Table) -> None:
    """Prints it without the spaces that pad its last column."""
    out = console()
    with out.capture() as captured:
        out.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip(), flush=True)


def pages(
    list_page: Callable[[Any], Any], request: Any, field: str, limit: int
) -> Iterable[Message]:
    """Follows page tokens until `limit` items have been seen or there are no more."""
    request.page_size = min(limit, PAGE_SIZE)
    seen = 0
    while True:
        response = list_page(request)
        for item in getattr(response, field):
            if seen == limit:
                return
            seen += 1
            yield item
        if not response.next_page_token or seen == limit:
            return
        request.page_token = response.next_page_token


def name_of(kind: EnumType, prefix: str, value: int) -> str:
    """RUN_STATE_RUNNING as `running`; a value newer than this client as its number."""
    try:
        return str(kind.Name(value)).removeprefix(f"{prefix}_").lower()
    except ValueError:
        return str(value)


def time_of(stamp: Timestamp) -> str:
    return stamp.ToJsonString() if stamp.seconds or stamp.nanos else ""


def amount_of(amount: Amount) -> str:
    return f"{amount.value} {amount.asset}" if amount.asset else ""
