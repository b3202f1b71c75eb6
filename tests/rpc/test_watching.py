"""Many that watch one status: one looks at a time, whoever leaves."""

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve.grpc.watching import Seen, Watch, watching

pytestmark = pytest.mark.anyio

DOWN, UP = Seen("down", is_last=False), Seen("up", is_last=False)


class Looked:
    """What is looked at; each look but the first of each watcher waits until it is let go on."""

    def __init__(self) -> None:
        self.seen = DOWN
        self.looks = self.running = self.most = 0
        self.begun, self.go = anyio.Event(), anyio.Event()
        self.go.set()

    async def look(self) -> Seen:
        self.looks += 1
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return self.seen

    def hold(self) -> None:
        self.begun, self.go = anyio.Event(), anyio.Event()


async def test_one_of_many_looks_and_all_see_it() -> None:
    looked, found = Looked(), list[Seen]()
    watch = Watch(looked.look)

    async def wait() -> None:
        found.append(await watch.after(DOWN))

    assert await watch.now() == DOWN
    looked.hold()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(wait)
            await looked.begun.wait()
            await anyio.wait_all_tasks_blocked()
            looked.seen = UP
            looked.go.set()
    assert found == [UP] * 50
    assert (looked.most, looked.looks) == (1, 2)


async def test_another_looks_where_the_one_that_did_leaves() -> None:
    looked, scopes = Looked(), [anyio.CancelScope() for _ in range(3)]
    watch = Watch(looked.look)
    found: list[Seen] = []

    async def wait(scope: anyio.CancelScope) -> None:
        with scope:
            found.append(await watch.after(DOWN))

    assert await watch.now() == DOWN
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for scope in scopes:
                looked.hold()
                group.start_soon(wait, scope)
                await anyio.wait_all_tasks_blocked()
            for scope in scopes[:2]:  # the first looks, then the second does
                await looked.begun.wait()
                looked.hold()
                scope.cancel()
            await looked.begun.wait()
            looked.seen = UP
            looked.go.set()
    assert found == [UP]


async def test_one_that_leaves_when_it_should_look_lets_another_look() -> None:
    looked, scopes = Looked(), [anyio.CancelScope() for _ in range(3)]
    watch = Watch(looked.look)
    found: list[Seen] = []

    async def wait(scope: anyio.CancelScope) -> None:
        with scope:
            found.append(await watch.after(DOWN))

    assert await watch.now() == DOWN
    looked.hold()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for scope in scopes:
                group.start_soon(wait, scope)
                await anyio.wait_all_tasks_blocked()
            await looked.begun.wait()
            for scope in scopes[:2]:
                scope.cancel()
            looked.seen = UP
            looked.go.set()
    assert found == [UP]


async def test_what_one_sees_when_it_joins_is_seen_by_all() -> None:
    looked, found = Looked(), list[Seen]()
    watch = Watch(looked.look)

    async def wait() -> None:
        found.append(await watch.after(DOWN))

    assert await watch.now() == DOWN
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            looked.seen = UP
            assert await watch.now() == UP
    assert found == [UP, UP]


async def test_nothing_is_kept_of_those_that_have_left() -> None:
    watches: dict[Any, Watch] = {}
    looked = Looked()
    with watching(watches, "a", looked.look) as one, watching(watches, "a", looked.look) as same:
        assert one is same
        with watching(watches, "b", looked.look) as other:
            assert other is not one
    assert watches == {}


async def test_another_looks_where_the_one_that_did_has_seen_what_a_newcomer_has_told() -> None:
    looked, found, left = Looked(), list[Seen](), anyio.Event()
    watch = Watch(looked.look)

    async def look_and_leave() -> None:
        await watch.after(DOWN)
        left.set()

    async def wait_twice() -> None:
        found.append(await watch.after(DOWN))
        found.append(await watch.after(UP))

    assert await watch.now() == DOWN
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(look_and_leave)
            await anyio.lowlevel.checkpoint()
            group.start_soon(wait_twice)
            await anyio.lowlevel.checkpoint()
            looked.seen = UP
            assert await watch.now() == UP  # the newcomer's, which tells the others
            await left.wait()
            looked.seen = DOWN
    assert found == [UP, DOWN]
