"""What a client sends, read ahead and taken."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from modelserve.concurrency.budget import Budget, Share
from modelserve.errors import ClientGone, Overloaded, Stopped
from modelserve.exchange.intake import InputRefused, InputTimedOut, Intake, messages
from modelserve.wire.lines import Lines

pytestmark = pytest.mark.anyio

PIECE = b"".join(b"%099d\n" % number for number in range(1000))  # 100,000 bytes


class Sender:
    """A client that sends some messages, and then leaves, or stays and sends nothing.

    The first `sends` times that the intake looks, a `send` to it is on its way.
    """

    def __init__(self, *sent: dict[str, Any], sends: int = 0, stays: bool = False) -> None:
        self.left = [*sent]
        self.sends, self.stays = sends, stays
        self.looks = 0

    @property
    def sending(self) -> bool:
        self.looks += 1
        return self.looks <= self.sends

    async def receive(self) -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        if self.stays and not self.left:
            await anyio.sleep_forever()
        return self.left.pop(0) if self.left else {"type": "http.disconnect"}


def parts(*bodies: bytes) -> list[dict[str, Any]]:
    last = len(bodies) - 1
    return [
        {"type": "http.request", "body": body, "more_body": number < last}
        for number, body in enumerate(bodies)
    ]


@asynccontextmanager
async def receiving(
    sender: Any, *, share: Share | None = None, **settings: Any
) -> AsyncIterator[Intake]:
    intake = Intake(sender, Lines(1 << 20), **settings)
    if share is not None:
        intake.note_queued(share)
    reasons: list[Stopped] = []

    async def receive() -> None:
        try:
            await intake.receive()
        except Stopped as reason:
            reasons.append(reason)

    async with anyio.create_task_group() as group:
        group.start_soon(receive)
        with anyio.fail_after(30):
            yield intake
        group.cancel_scope.cancel()


async def test_records_are_taken_in_order_with_their_numbers_256_at_most() -> None:
    async with receiving(Sender(*parts(PIECE, PIECE, b"last"))) as intake:
        intake.note_admitted()
        await anyio.wait_all_tasks_blocked()
        taken, expected = [], 1
        while records := (await intake.take())[1]:
            taken.append(len(records))
            expected += len(records)
        assert taken == [256] * 7 + [209]
        assert await intake.take() == (2002, [])
    assert expected == 2002


async def test_no_more_is_read_than_a_request_may_hold() -> None:
    sender = Sender(*parts(*[PIECE] * 30))
    async with receiving(sender) as intake:
        await anyio.wait_all_tasks_blocked()
        assert (intake.is_full, len(sender.left)) == (True, 29)  # it has no slot yet
        intake.note_admitted()
        await anyio.wait_all_tasks_blocked()
        held = 30 - len(sender.left)
        assert intake.is_full and 5 <= held <= 8  # 164 bytes a record
        count = 0
        while records := (await intake.take())[1]:
            count += len(records)
        assert count == 30_000


async def read_while_it_sends(sender: Sender) -> tuple[int, bool]:
    """Return how many messages are received in the end, and whether the intake is full."""
    sent = len(sender.left)
    async with receiving(sender) as intake:
        intake.note_admitted()
        while sender.left and sender.looks < sender.sends + 2:  # noqa: ASYNC110
            await anyio.sleep(0.001)
        return sent - len(sender.left), intake.is_full


@pytest.mark.parametrize(
    ("sends", "sent", "read"), [(0, 30, 7), (1, 30, 8), (6, 30, 13), (6, 9, 9)]
)
async def test_while_a_send_lasts_more_is_read_again_and_again(
    sends: int, sent: int, read: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelserve.exchange.intake._PATIENCE_SECONDS", 0.0005)
    sender = Sender(*parts(*[PIECE] * 30)[:sent], sends=sends, stays=True)
    assert await read_while_it_sends(sender) == (read, True)


async def test_while_a_send_lasts_many_small_messages_are_read_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelserve.exchange.intake._PATIENCE_SECONDS", 0.0005)
    small = b"%099d\n" % 1 * 10
    sender = Sender(*parts(*[small] * 1000), sends=1, stays=True)
    assert await read_while_it_sends(sender) == (640 + 80, True)  # of 1,640 bytes


async def test_a_client_that_has_left_is_noticed_while_a_send_lasts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelserve.exchange.intake._PATIENCE_SECONDS", 0.0005)
    intake = Intake(Sender(*parts(*[PIECE] * 14)[:-1], sends=1000), Lines(1 << 20))
    intake.note_admitted()
    with pytest.raises(ClientGone):
        await intake.receive()


async def test_what_waits_for_a_slot_is_counted_a_part_of_a_line_too() -> None:
    budget = Budget(1 << 20, lambda: Overloaded("full", retry_after=1))
    share = budget.hold(0)
    sender = Sender(*parts(*[b"1" * 20_000] * 30))
    async with receiving(sender, share=share) as intake:
        await anyio.wait_all_tasks_blocked()
        assert (intake.is_full, len(sender.left), budget.held) == (True, 26, 80_000)
        share.close()
        intake.note_admitted()
        await anyio.wait_all_tasks_blocked()
        assert (intake.is_full, len(sender.left), budget.held) == (False, 0, 0)
        assert await intake.take() == (1, [b"1" * 600_000])


async def test_what_there_is_no_room_for_ends_a_request_that_waits_for_a_slot() -> None:
    budget = Budget(100_000, lambda: Overloaded("full", retry_after=7))
    budget.hold(30_000)
    intake = Intake(Sender(*parts(PIECE, PIECE)), Lines(1 << 20))
    intake.note_queued(budget.hold(0))
    with pytest.raises(InputRefused, match="full") as caught:
        await intake.receive()
    assert (caught.value.status, caught.value.headers) == (503, {"retry-after": "7"})
    assert budget.held == 30_000


async def test_a_taker_that_is_cancelled_loses_nothing() -> None:
    has_sent = anyio.Event()

    class Late(Sender):
        async def receive(self) -> dict[str, Any]:
            await has_sent.wait()
            return await super().receive()

    async with receiving(Late(*parts(b"1\n2\n", b"3"))) as intake:
        with anyio.move_on_after(0.01) as scope:
            await intake.take()
        assert scope.cancelled_caught
        has_sent.set()
        await anyio.wait_all_tasks_blocked()
        assert await intake.take() == (1, [b"1", b"2", b"3"])


async def test_all_who_wait_for_a_record_learn_of_the_end() -> None:
    has_sent = anyio.Event()

    class Late(Sender):
        async def receive(self) -> dict[str, Any]:
            await has_sent.wait()
            return await super().receive()

    found: list[Any] = []

    async def take(intake: Intake) -> None:
        found.append(await intake.take())

    async with receiving(Late(*parts(b"1\n"))) as intake, anyio.create_task_group() as group:
        group.start_soon(take, intake)
        group.start_soon(take, intake)
        await anyio.wait_all_tasks_blocked()
        has_sent.set()
    assert sorted(found) == [(1, [b"1"]), (2, [])]


async def test_leaving_in_the_middle_is_raised_once_all_has_been_taken() -> None:
    sender = Sender({"type": "http.request", "body": b"1\n", "more_body": True})
    async with receiving(sender) as intake:
        await anyio.wait_all_tasks_blocked()
        assert await intake.take() == (1, [b"1"])
        with pytest.raises(ClientGone):
            await intake.take()


async def test_silence_is_raised_after_its_time() -> None:
    class Silent:
        async def receive(self) -> Any:
            await anyio.sleep_forever()

    async with receiving(Silent(), timeout=0.01) as intake:
        with pytest.raises(InputTimedOut, match=r"no line was received for 0\.01 s"):
            while True:
                await anyio.wait_all_tasks_blocked()
                with anyio.move_on_after(0.1):
                    await intake.take()


async def test_silence_is_no_failure_once_nothing_is_wanted_any_more() -> None:
    class Silent:
        async def receive(self) -> Any:
            await anyio.sleep_forever()

    intake: Any = Intake(Silent(), Lines(1 << 20), timeout=0.01)  # type: ignore[arg-type]
    intake.throw_away()
    with anyio.move_on_after(0.1) as scope:
        await intake.receive()
    assert (scope.cancelled_caught, intake.ended) == (True, False)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"type": "websocket.receive", "text": "a"}, ("a", True)),
        ({"type": "websocket.receive", "bytes": None, "text": "a"}, ("a", True)),
        ({"type": "websocket.receive", "bytes": b"a"}, (b"a", True)),
        ({"type": "websocket.receive", "bytes": bytearray(b"a"), "text": None}, (b"a", True)),
        ({"type": "websocket.receive", "text": ""}, ("", False)),
        ({"type": "websocket.receive", "bytes": b""}, (b"", False)),
        ({"type": "websocket.disconnect", "code": 1000}, (None, False)),
        ({"type": "http.disconnect"}, (None, False)),
    ],
)
def test_what_is_in_a_message(message: Any, found: Any) -> None:
    read = messages(message)
    assert read == found and type(read[0]) is type(found[0])
