"""LangGraph's checkpoints of one attempt: fenced by its lease, bound to its tenant, lock-free."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)

from services.executor.runner.journal import Holding, Journal
from services.executor.store import checkpoints as store
from services.executor.store.checkpoints import Place, Read, Stored, Writer
from services.executor.store.events import Connection
from services.executor.store.journal import Write
from services.runtime.database import Database

#: Values larger than this are serialized off the loop, so that the process's other runs go on.
_INLINE_BYTES_MAX = 256 * 1024


class Saver(BaseCheckpointSaver[str]):
    """Writes through the journal, with the events of the same step; reads as the run's tenant.

    Only the async half exists: runs are carried by `astream` alone. `stepped` is told the number
    of each step of the outermost graph that is durable.
    """

    def __init__(
        self,
        database: Database,
        journal: Journal,
        holding: Holding,
        stepped: Callable[[int], None] = lambda step: None,
    ) -> None:
        super().__init__()
        self._stepped = stepped
        self._database = database
        self._journal = journal
        self._holding = holding
        self._writer = Writer(holding.tenant_id, holding.run_id, holding.attempt)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """Count up in a form that sorts as text.

        The epoch keeps apart what two attempts might write under one number.
        """
        count = int(current.partition(".")[0]) if current else 0
        return f"{count + 1:032d}.{self._holding.epoch}"

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store the checkpoint durably. Raises LeaseLostError."""
        place = _place(config, checkpoint["id"])
        values = checkpoint["channel_values"]
        writes = [
            store.put_blob(self._writer, place, channel, str(version), self._dump(values[channel]))
            for channel, version in new_versions.items()
            if channel in values
        ]
        writes.append(self._put(config, place, checkpoint, metadata))
        await self._journal.write(self._holding, acts=writes)
        if not place.checkpoint_ns:
            self._stepped(int(metadata.get("step", -1)))
        return _config(place)

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task wrote durably. Raises LeaseLostError."""
        place = _place(config, str(get_checkpoint_id(config)))
        acts = [
            store.put_write(
                self._writer,
                place,
                task_id,
                task_path,
                WRITES_IDX_MAP.get(channel, index),
                channel,
                self._dump(value),
            )
            for index, (channel, value) in enumerate(writes)
        ]
        await self._journal.write(self._holding, acts=acts)

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Return the checkpoint that the config names, or the thread's newest."""
        where = config["configurable"]
        async with self._database.raw_tenant(self._holding.tenant_id) as tx:
            read = await store.get(
                tx,
                where["thread_id"],
                where.get("checkpoint_ns", ""),
                get_checkpoint_id(config),
            )
            return None if read is None else await self._tuple(tx, read)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """Yield checkpoints, newest first."""
        where = config["configurable"] if config else {}
        async with self._database.raw_tenant(self._holding.tenant_id) as tx:
            found = await store.page(
                tx,
                where.get("thread_id"),
                where.get("checkpoint_ns"),
                get_checkpoint_id(config) if config else None,
                get_checkpoint_id(before) if before else None,
                json.dumps(filter or {}),
                limit,
            )
            tuples = [await self._tuple(tx, read) for read in found]
        for each in tuples:
            yield each

    async def adelete_thread(self, thread_id: str) -> None:
        """Delete everything that is kept of the thread."""
        async with self._database.raw_tenant(self._holding.tenant_id) as tx:
            await store.delete_thread(tx, thread_id)

    def _put(
        self,
        config: RunnableConfig,
        place: Place,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
    ) -> Write:
        stripped = {**checkpoint, "channel_values": {}}
        kept = dict(get_serializable_checkpoint_metadata(config, metadata))
        parent = config["configurable"].get("checkpoint_id")
        return store.put(
            self._writer,
            place,
            parent,
            self._dump(stripped),
            json.dumps(kept),
            int(metadata.get("step", -1)),
            str(metadata.get("source", "loop")),
        )

    async def _tuple(self, tx: Connection, read: Read) -> CheckpointTuple:
        place = read.place
        checkpoint: Checkpoint = await self._load(read.checkpoint)
        versions = [(name, str(each)) for name, each in checkpoint["channel_versions"].items()]
        blobs = await store.blobs(tx, place, versions)
        checkpoint["channel_values"] = {
            channel: await self._load(stored) for channel, stored in blobs.items()
        }
        pending = [
            (task_id, channel, await self._load(stored))
            for task_id, channel, stored in await store.writes(tx, place)
        ]
        parent = read.parent_checkpoint_id
        return CheckpointTuple(
            config=_config(place),
            checkpoint=checkpoint,
            metadata=json.loads(read.metadata),
            parent_config=_config(Place(place.thread_id, place.checkpoint_ns, parent))
            if parent
            else None,
            pending_writes=pending,
        )

    def _dump(self, value: Any) -> Stored:
        return Stored(*self.serde.dumps_typed(value))

    async def _load(self, stored: Stored) -> Any:
        if len(stored.data) > _INLINE_BYTES_MAX:
            return await asyncio.to_thread(self.serde.loads_typed, (stored.type, stored.data))
        return self.serde.loads_typed((stored.type, stored.data))


def _place(config: RunnableConfig, checkpoint_id: str) -> Place:
    where = config["configurable"]
    return Place(where["thread_id"], where.get("checkpoint_ns", ""), checkpoint_id)


def _config(place: Place) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": place.thread_id,
            "checkpoint_ns": place.checkpoint_ns,
            "checkpoint_id": place.checkpoint_id,
        }
    }
