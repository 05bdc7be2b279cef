"""What differs between the two clients: how they wait, and where they do work that blocks. `make sdk` swaps names."""

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

Args = ParamSpec("Args")
Result = TypeVar("Result")


async def async_sleep(seconds: float) -> None:
    """Let other tasks run meanwhile."""
    await asyncio.sleep(seconds)


def sleep(seconds: float) -> None:
    """Block this thread."""
    time.sleep(seconds)


async def async_run(work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Do it in a thread, while other tasks run."""
    return await asyncio.to_thread(work, *args, **kwargs)


def run(work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Do it here."""
    return work(*args, **kwargs)
