"""A Dramatiq worker that echoes into Redis, run by the tests as `dramatiq` runs any worker."""

import os

import dramatiq
import redis
from opentelemetry import trace

from services.runtime.broker import make_broker

URL = os.environ["COGNI_BROKER_URL"]
dramatiq.set_broker(make_broker(URL))


@dramatiq.actor(queue_name="echo", actor_name="echo")
async def echo(word: str) -> None:
    """Push the word and the trace id it came with."""
    trace_id = trace.get_current_span().get_span_context().trace_id
    with redis.Redis.from_url(URL) as client:
        client.rpush("echoes", f"{word} {trace_id:032x}")
