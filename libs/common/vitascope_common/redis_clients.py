"""Redis clients with timeouts and retries said out loud.

redis-py 8 retries ten times by default, which can run a write twice, and cuts blocking reads off after five seconds.
Nothing of ours repeats a command behind the caller's back: scripts are idempotent and the caller decides.
"""

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

CONNECT_TIMEOUT_S = 2.0
COMMAND_TIMEOUT_S = 5.0
BLOCKING_TIMEOUT_S = 30.0  # longer than any BLOCK of ours; a dead server still ends the read


def connect(url: str, *, is_blocking: bool = False) -> Redis:
    """Make a synchronous client; `is_blocking` for a client that waits in XREAD BLOCK."""
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=BLOCKING_TIMEOUT_S if is_blocking else COMMAND_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


def connect_async(url: str, *, is_blocking: bool = False) -> AsyncRedis:
    """Make an asyncio client; `is_blocking` for a client that waits in XREAD BLOCK."""
    return AsyncRedis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=BLOCKING_TIMEOUT_S if is_blocking else COMMAND_TIMEOUT_S,
        retry=AsyncRetry(NoBackoff(), 0),
    )
