"""Which gRPC services there are, and behind which attribute of a client each stands."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from google.protobuf.descriptor import ServiceDescriptor

from cogni.connections.v1 import connections_service_pb2, connections_service_pb2_grpc
from cogni.executor.v1 import (
    executor_service_pb2,
    executor_service_pb2_grpc,
    grant_service_pb2,
    grant_service_pb2_grpc,
)
from cogni.ledger.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from cogni.scheduler.v1 import (
    scheduler_service_pb2,
    scheduler_service_pb2_grpc,
    trigger_service_pb2,
    trigger_service_pb2_grpc,
)


@dataclass(frozen=True)
class Service:
    """One gRPC service: `attribute` on the client, served at the address of `server`."""

    attribute: str
    server: str
    descriptor: ServiceDescriptor
    stubs: ModuleType

    @property
    def stub_name(self) -> str:
        return f"{self.descriptor.name}Stub"


def _service(attribute: str, server: str, messages: ModuleType, stubs: ModuleType) -> Service:
    (descriptor,) = messages.DESCRIPTOR.services_by_name.values()
    return Service(attribute, server, descriptor, stubs)


CATALOGUE = (
    _service("executor", "executor", executor_service_pb2, executor_service_pb2_grpc),
    _service("grants", "executor", grant_service_pb2, grant_service_pb2_grpc),
    _service("scheduler", "scheduler", scheduler_service_pb2, scheduler_service_pb2_grpc),
    _service("triggers", "scheduler", trigger_service_pb2, trigger_service_pb2_grpc),
    _service("connections", "connections", connections_service_pb2, connections_service_pb2_grpc),
    _service("ledger", "ledger", ledger_service_pb2, ledger_service_pb2_grpc),
)
