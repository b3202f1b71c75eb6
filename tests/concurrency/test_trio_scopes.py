"""The private names of trio, on the installed release and without them."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from modelserve.concurrency.trio_scopes import is_ending, is_visible_to

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "trio"


async def test_a_task_sees_the_scopes_around_it() -> None:
    with anyio.CancelScope() as outer, anyio.CancelScope() as inner:
        await anyio.lowlevel.checkpoint()
        task = trio.lowlevel.current_task()
        assert is_visible_to(task, outer)
        assert is_visible_to(task, inner)


async def test_a_shield_hides_the_scopes_outside_of_it() -> None:
    with anyio.CancelScope() as outer, anyio.CancelScope(shield=True) as shield:
        await anyio.lowlevel.checkpoint()
        task = trio.lowlevel.current_task()
        assert not is_visible_to(task, outer)
        assert is_visible_to(task, shield)


async def test_a_nursery_ends_once_its_body_has() -> None:
    seen: list[bool] = []
    async with trio.open_nursery() as nursery:

        async def look() -> None:
            await trio.testing.wait_all_tasks_blocked()
            seen.append(is_ending(nursery))

        nursery.start_soon(look)
        assert not is_ending(nursery)
    assert seen == [True]


async def test_without_the_names_every_cancellation_is_ours_and_no_nursery_ends() -> None:
    other: Any = object()
    with anyio.CancelScope() as outer, anyio.CancelScope(shield=True):
        await anyio.lowlevel.checkpoint()
        assert is_visible_to(other, outer)
    assert not is_ending(other)
