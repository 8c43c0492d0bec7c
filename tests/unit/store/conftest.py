"""A fake broker for each test that asks for one."""

from collections.abc import AsyncIterator

import pytest

from tests.fake_broker import FakeBroker, fake_broker


@pytest.fixture
async def peer() -> AsyncIterator[FakeBroker]:
    """A fake broker that answers as a healthy server."""
    async with fake_broker() as peer:
        yield peer
