"""Runs a coroutine with a limit on its time."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T], seconds: float = 20) -> T:
    async def within_time() -> T:
        async with asyncio.timeout(seconds):
            return await work

    return asyncio.run(within_time())
