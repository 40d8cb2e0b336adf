"""A contract made at run time, so that runtime tests need no proto of their own under proto/.

`PetService` covers what a service can have: unary, server-streaming and never-built methods, and
a request with one field of every shape.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
)

from cogni.type.v1 import amount_pb2
from services.runtime.access import Access
from services.runtime.server import Application, Registration

PACKAGE = "cogni.test.v1"
SERVICE = f"{PACKAGE}.PetService"

_FIELD = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "string": _FIELD.TYPE_STRING,
    "bytes": _FIELD.TYPE_BYTES,
    "int64": _FIELD.TYPE_INT64,
    "bool": _FIELD.TYPE_BOOL,
}


def _field(
    message: descriptor_pb2.DescriptorProto,
    kind: str,
    name: str,
    *,
    repeated: bool = False,
    optional: bool = False,
    oneof: int | None = None,
) -> None:
    field = message.field.add(name=name, number=len(message.field) + 1)
    field.label = _FIELD.LABEL_REPEATED if repeated else _FIELD.LABEL_OPTIONAL
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    elif kind == "Species":
        field.type, field.type_name = _FIELD.TYPE_ENUM, f".{PACKAGE}.Species"
    else:
        field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".{kind}"
    if oneof is not None:
        field.oneof_index = oneof
    if optional:
        # protoc makes a synthetic oneof for each proto3 `optional`.
        message.oneof_decl.add(name=f"_{name}")
        field.oneof_index, field.proto3_optional = len(message.oneof_decl) - 1, True


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="cogni/test/v1/pet_service.proto", package=PACKAGE, syntax="proto3"
    )
    for module in (amount_pb2, duration_pb2, field_mask_pb2, struct_pb2, timestamp_pb2):
        file.dependency.append(module.DESCRIPTOR.name)
    species = file.enum_type.add(name="Species")
    for number, name in enumerate(("UNSPECIFIED", "CAT", "DOG")):
        species.value.add(name=f"SPECIES_{name}", number=number)
    toy = file.message_type.add(name="Toy")
    _field(toy, "string", "name")
    _field(toy, "cogni.type.v1.Amount", "price")
    _feed_request(file.message_type.add(name="FeedPetRequest"))
    response = file.message_type.add(name="FeedPetResponse")
    _field(response, "string", "name")
    service = file.service.add(name="PetService")
    for method, streams in (("FeedPet", False), ("WatchPet", True), ("GroomPet", False)):
        service.method.add(
            name=method,
            input_type=f".{PACKAGE}.FeedPetRequest",
            output_type=f".{PACKAGE}.FeedPetResponse",
            server_streaming=streams,
        )
    return file


def _feed_request(request: descriptor_pb2.DescriptorProto) -> None:
    request.oneof_decl.add(name="food")
    _field(request, "string", "request_id")
    _field(request, "string", "name")
    _field(request, "bytes", "photo")
    _field(request, "int64", "age")
    _field(request, "Species", "species")
    _field(request, "Species", "friends", repeated=True)
    _field(request, "string", "pet_ids", repeated=True)
    _field(request, f"{PACKAGE}.Toy", "toys", repeated=True)
    _field(request, f"{PACKAGE}.Toy", "favourite")
    _field(request, "cogni.type.v1.Amount", "price")
    _field(request, "google.protobuf.Timestamp", "birth_time")
    _field(request, "google.protobuf.Duration", "patience")
    _field(request, "google.protobuf.FieldMask", "update_mask")
    _field(request, "google.protobuf.Struct", "input")
    _field(request, "string", "page_token")
    _field(request, "int64", "page_size")
    _field(request, "string", "fish", oneof=0)
    _field(request, "string", "meat", oneof=0)
    entry = request.nested_type.add(name="LabelsEntry")
    entry.options.map_entry = True
    _field(entry, "string", "key")
    _field(entry, "string", "value")
    _field(request, f"{PACKAGE}.FeedPetRequest.LabelsEntry", "labels", repeated=True)
    _field(request, "int64", "lives", optional=True)
    _field(request, "Species", "rival", optional=True)


def _message(name: str) -> Any:
    pool = descriptor_pool.Default()
    try:
        found = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
    except KeyError:
        pool.AddSerializedFile(_file().SerializeToString())
        found = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
    return message_factory.GetMessageClass(found)


FeedPetRequest = _message("FeedPetRequest")
FeedPetResponse = _message("FeedPetResponse")


class UnbuiltPets:
    """What protoc generates for a servicer: every method answers UNIMPLEMENTED."""

    def FeedPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _unimplemented(context)

    def WatchPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _unimplemented(context)

    def GroomPet(self, request: Any, context: Any) -> Any:  # noqa: N802
        return _unimplemented(context)


def _unimplemented(context: Any) -> Any:
    context.set_code(grpc.StatusCode.UNIMPLEMENTED)
    context.set_details("Method not implemented!")
    raise NotImplementedError("Method not implemented!")


def add_pets_to_server(servicer: UnbuiltPets, server: grpc.aio.Server) -> None:
    """What protoc generates beside the servicer."""
    codec = {
        "request_deserializer": FeedPetRequest.FromString,
        "response_serializer": FeedPetResponse.SerializeToString,
    }
    handlers = {
        "FeedPet": grpc.unary_unary_rpc_method_handler(servicer.FeedPet, **codec),
        "WatchPet": grpc.unary_stream_rpc_method_handler(servicer.WatchPet, **codec),
        "GroomPet": grpc.unary_unary_rpc_method_handler(servicer.GroomPet, **codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


#: People with the scope may feed and watch, the executor too; runs may only feed.
ACCESS = {
    f"/{SERVICE}/FeedPet": Access("pets:write", services=frozenset({"executor"}), runs=True),
    f"/{SERVICE}/WatchPet": Access(
        "pets:read", services=frozenset({"executor"}), cross_tenant=True
    ),
    f"/{SERVICE}/GroomPet": Access(users=False, services=frozenset({"scheduler"})),
}


def pet_application(servicer: UnbuiltPets, **changes: Any) -> Application:
    """The application of one PetService; keyword arguments replace its parts."""
    parts = {"access": ACCESS, **changes}
    return Application(
        registrations=(Registration(add_pets_to_server, servicer, SERVICE),), **parts
    )
