"""Tells whether a process of the stack serves by now."""

import grpc.aio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from services.standalone.children import Probe, Program

CHECK_SECONDS = 1.0


def serves_grpc(address: str) -> Probe:
    """A probe that asks the standard health service at `address` about the whole server.

    Every question uses a channel of its own: one that failed waits ever longer before it
    connects again, and a start is watched in hundredths of a second.
    """

    async def probe(program: Program) -> bool:
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=HealthCheckRequest.SerializeToString,
                response_deserializer=HealthCheckResponse.FromString,
            )
            try:
                answer = await check(
                    HealthCheckRequest(), timeout=CHECK_SECONDS, wait_for_ready=False
                )
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == HealthCheckResponse.SERVING)

    return probe
