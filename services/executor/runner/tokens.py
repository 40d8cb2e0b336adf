"""Run tokens: fetched from the Executor server in threads, kept for as long as they work."""

import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from cogni.executor.v1.runner_service_pb2 import MintRunTokenRequest
from cogni.executor.v1.runner_service_pb2_grpc import RunnerServiceStub
from services.executor.runner.journal import Holding
from services.executor.runner.threads import in_thread
from services.runtime.channels import acting_for

#: A token that ends sooner is not used for another call.
_REST_SECONDS_MIN = 2.0
_KEPT_MAX = 1000
_THREADS = 2


@dataclass(frozen=True)
class _Token:
    text: str
    expire_time: float


class RunTokens:
    """Mints the token of an attempt when it first needs one.

    Synchronous gRPC in threads: grpc.aio's poller would share the loop with graph code.
    """

    def __init__(
        self, channel: Callable[[], grpc.Channel], clock: Callable[[], float] = time.time
    ) -> None:
        self._channel = channel
        self._clock = clock
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="run-tokens")
        self._kept: OrderedDict[tuple[str, int], _Token] = OrderedDict()
        self._stub: RunnerServiceStub | None = None

    async def token(self, holding: Holding) -> str:
        """Return a token that works for now. Raises PeerError, LEASE_LOST among its reasons."""
        key = (holding.run_id, holding.epoch)
        kept = self._kept.get(key)
        if kept is None or kept.expire_time - self._clock() < _REST_SECONDS_MIN:
            kept = await in_thread(self._threads, self._mint, holding)
            self._kept[key] = kept
            while len(self._kept) > _KEPT_MAX:
                self._kept.popitem(last=False)
        return kept.text

    def forget(self, holding: Holding) -> None:
        """Drop the attempt's token."""
        self._kept.pop((holding.run_id, holding.epoch), None)

    def close(self) -> None:
        """Fetch no more tokens."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _mint(self, holding: Holding) -> _Token:
        if self._stub is None:
            self._stub = RunnerServiceStub(self._channel())
        request = MintRunTokenRequest(run_id=holding.run_id, epoch=holding.epoch)
        with acting_for(holding.tenant_id):
            minted = self._stub.MintRunToken(request)
        return _Token(minted.token, minted.expire_time.ToNanoseconds() / 1e9)
