"""The entries of a run's event log: how they are drafted, sealed into bytes, and spliced."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.message import Message

from cogni.executor.v1.run_event_pb2 import RunEvent

#: The type of the one entry that ends a log.
TERMINAL = "finished"

_KINDS: dict[str, str] = {
    field.message_type.full_name: field.name
    for field in RunEvent.DESCRIPTOR.oneofs_by_name["event"].fields
    if field.message_type is not None
}
# Field 1, wire type 2: WatchRunResponse.events.
_EVENTS_TAG = b"\x0a"


@dataclass(frozen=True)
class Draft:
    """An event that has no place in a log yet. `content` is one kind of RunEvent's oneof.

    `time` is when it happened; without one, it happens when it is written.
    """

    content: Message
    time: datetime | None = None

    @property
    def type(self) -> str:
        """The name of the oneof's field, which is also the column run_events.type."""
        return _KINDS[self.content.DESCRIPTOR.full_name]


@dataclass(frozen=True)
class SealedEvent:
    """An event with its place; `payload` never changes again."""

    seq: int
    type: str
    payload: bytes


def sealed_events(
    first_seq: int, attempt: int, time: datetime, drafts: Sequence[Draft]
) -> list[SealedEvent]:
    """Give the drafts consecutive places from `first_seq` and serialize them, once and for all."""
    return [_sealed(first_seq + index, attempt, time, draft) for index, draft in enumerate(drafts)]


def _sealed(seq: int, attempt: int, time: datetime, draft: Draft) -> SealedEvent:
    event = RunEvent(seq=seq, attempt=attempt)
    event.time.FromDatetime(draft.time or time)
    getattr(event, draft.type).CopyFrom(draft.content)
    # Map fields would otherwise come out in any order; two attempts must not differ by that.
    return SealedEvent(seq, draft.type, event.SerializeToString(deterministic=True))


def spliced(payloads: Iterable[bytes]) -> bytes:
    """Return the wire bytes of a WatchRunResponse that holds these events, none re-encoded.

    Concatenated messages merge on the wire, so further fields may be appended.
    """
    parts: list[bytes] = []
    for payload in payloads:
        parts += (_EVENTS_TAG, _varint(len(payload)), payload)
    return b"".join(parts)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
