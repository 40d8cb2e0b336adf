"""Makes the Dramatiq broker of a URL, with the middleware this system has chosen.

A message is a hint that something is to be done; PostgreSQL knows what. So there are no retries
here: whoever keeps the work in PostgreSQL sends another hint. A message that fails, or is too old
to matter, is kept as a dead letter for a person to look at.
"""

from datetime import timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit

import pika.exceptions
import redis
from dramatiq import Broker, MessageProxy, Middleware
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.common import xq_name
from dramatiq.errors import BrokerError
from dramatiq.middleware import AgeLimit, AsyncIO, TimeLimit
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from services.runtime.message_trace import MessageTrace

NAMESPACE = "cogni"
AGE_MAX = timedelta(hours=1)
WORK_MAX = timedelta(minutes=1)
_CONNECT_SECONDS_MAX = 3
_ANSWER_SECONDS_MAX = 10
_REDIS = ("redis", "rediss", "unix")
_RABBITMQ = ("amqp", "amqps")
_PIKA_DEFAULTS = {
    "connection_attempts": "1",
    "socket_timeout": str(_CONNECT_SECONDS_MAX),
    "stack_timeout": str(_ANSWER_SECONDS_MAX),
    "blocked_connection_timeout": str(_ANSWER_SECONDS_MAX),
}


class BrokerUnusableError(Exception):
    """Raised when a process cannot work with its broker; the text says what to do."""


class DeadLetters(Middleware):
    """Keeps a message whose actor raised, where Dramatiq without retries would forget it."""

    def after_process_message(
        self,
        broker: Broker,
        message: MessageProxy,
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        """Mark the message failed when it was not processed."""
        if exception is not None:
            message.fail()


def make_broker(
    url: str, *, age_max: timedelta = AGE_MAX, work_max: timedelta = WORK_MAX
) -> Broker:
    """Return the broker at `url` (redis://, rediss://, amqp:// or amqps://) without connecting.

    Messages older than `age_max` are not worked on; an actor is interrupted after `work_max`.
    Raises BrokerUnusableError for any other URL.
    """
    middleware = [
        AgeLimit(max_age=_milliseconds(age_max)),
        TimeLimit(time_limit=_milliseconds(work_max)),
        DeadLetters(),
        MessageTrace(),
        AsyncIO(),
    ]
    scheme = urlsplit(url).scheme
    if scheme in _REDIS:
        return RedisBroker(  # type: ignore[no-untyped-call]
            client=_redis(url), namespace=NAMESPACE, middleware=middleware
        )
    if scheme in _RABBITMQ:
        return RabbitmqBroker(url=_pika_url(url), confirm_delivery=True, middleware=middleware)
    raise BrokerUnusableError(
        f"A broker's URL begins with redis:// or amqp://, not {scheme or 'nothing'!r}."
    )


def check_broker(broker: Broker) -> None:
    """Connect once; raise BrokerUnusableError with a sentence that says why it failed."""
    try:
        if isinstance(broker, RedisBroker):
            broker.client.ping()
        elif isinstance(broker, RabbitmqBroker):
            assert broker.channel.is_open
            del broker.connection
    except redis.AuthenticationError as error:
        raise BrokerUnusableError(
            f"The broker at {_where(broker)} refused the password; check the URL."
        ) from error
    except (redis.RedisError, pika.exceptions.AMQPError, BrokerError, OSError) as error:
        raise BrokerUnusableError(
            f"The broker at {_where(broker)} cannot be reached; check that it runs and the URL."
        ) from error


def count_dead_letters(broker: Broker, queue: str) -> int:
    """Return how many messages of `queue` are kept as dead letters (at most seven days)."""
    dead = xq_name(queue)
    if isinstance(broker, RedisBroker):
        return int(broker.client.zcard(f"{broker.namespace}:{dead}"))
    if isinstance(broker, RabbitmqBroker):
        broker.declare_queue(queue, ensure=True)
        return int(broker.channel.queue_declare(queue=dead, passive=True).method.message_count)
    raise TypeError(f"{type(broker).__name__} is no broker of make_broker")


def _redis(url: str) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=_CONNECT_SECONDS_MAX,
        socket_timeout=_ANSWER_SECONDS_MAX,
        health_check_interval=30,
        # One more try, for the connection that a restart of the server has cut.
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 1),
    )


def _pika_url(url: str) -> str:
    parts = urlsplit(url)
    query = {**_PIKA_DEFAULTS, **dict(parse_qsl(parts.query))}
    return parts._replace(query=urlencode(query)).geturl()


def _where(broker: Broker) -> str:
    if isinstance(broker, RedisBroker):
        options = broker.client.connection_pool.connection_kwargs
        return str(options.get("path") or f"{options.get('host')}:{options.get('port')}")
    if isinstance(broker, RabbitmqBroker):
        several = broker.parameters
        first = several[0] if isinstance(several, list) else several
        return f"{first.host}:{first.port}"
    return type(broker).__name__


def _milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)
