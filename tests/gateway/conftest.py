"""Tests of the gateway run on asyncio, as the node does."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
