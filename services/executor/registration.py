"""Registers the Executor's servicers, WatchRun among them with bytes instead of messages."""

from collections.abc import Mapping
from typing import Any

import grpc

from cogni.executor.v1 import executor_service_pb2 as executor
from cogni.executor.v1 import executor_service_pb2_grpc as executor_grpc
from services.executor.server import ExecutorServicer

SERVICE = "cogni.executor.v1.ExecutorService"


def add_executor_to_server(servicer: ExecutorServicer, server: Any) -> None:
    """Register the servicer as the generated function does, except for WatchRun's serializer.

    A WatchRunResponse that was parsed and serialized again could come out with other bytes than
    were stored: protobuf writes maps, and so every Struct, in any order.
    """
    sender: Any = _Sender(server, servicer)
    executor_grpc.add_ExecutorServiceServicer_to_server(servicer, sender)


class _Sender:
    """Passes registrations on to a server, with one handler exchanged."""

    def __init__(self, server: Any, servicer: ExecutorServicer) -> None:
        self._server = server
        self._watch_run: Any = grpc.unary_stream_rpc_method_handler(
            servicer.WatchRun,
            request_deserializer=executor.WatchRunRequest.FromString,
            response_serializer=None,
        )

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Left out: `add_registered_method_handlers` makes the generic handler too."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Register the handlers under both ways in which a server looks them up."""
        changed = {**handlers, "WatchRun": self._watch_run}
        generic = grpc.method_handlers_generic_handler(service, changed)
        self._server.add_generic_rpc_handlers((generic,))
        self._server.add_registered_method_handlers(service, changed)
