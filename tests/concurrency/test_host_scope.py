"""What tells whether a host runs us inside a cancel scope, by anyio's inside and by its outside."""

import asyncio
import subprocess
import sys

import anyio
import pytest

from modelserve.concurrency.host_scope import KNOWN_TASKS, in_host_scope, may_be_in_scope

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def answers() -> tuple[bool, bool]:
    return bool(KNOWN_TASKS and in_host_scope()), may_be_in_scope()


async def test_a_plain_task_is_in_no_scope() -> None:
    assert await asyncio.create_task(answers()) == (False, False)


async def test_a_scope_with_a_deadline_is_seen_both_ways() -> None:
    async def inside() -> tuple[bool, bool]:
        with anyio.move_on_after(60):
            return await answers()

    assert await asyncio.create_task(inside()) == (True, True)


async def test_a_task_of_a_group_is_in_its_scope() -> None:
    seen: list[tuple[bool, bool]] = []

    async def child() -> None:
        seen.append(await answers())

    async def host() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)

    await asyncio.create_task(host())
    assert seen == [(True, True)]


async def test_a_scope_without_a_deadline_is_seen_by_the_inside_of_anyio() -> None:
    async def inside() -> tuple[bool, bool]:
        with anyio.CancelScope():
            return await answers()

    assert (await asyncio.create_task(inside()))[0]


def test_the_inside_of_anyio_is_where_we_look_for_it() -> None:
    """A release of anyio that moves it makes small requests slower: this says so."""
    from anyio._backends._asyncio import _task_states

    assert KNOWN_TASKS is vars(_task_states)["data"]


def test_without_the_inside_of_anyio_requests_are_served() -> None:
    code = (
        "import anyio._backends._asyncio as inside\n"
        "del inside._task_states.__dict__['data']\n"
        "from modelserve.concurrency import host_scope\n"
        "assert host_scope.KNOWN_TASKS == ('any task',)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
