"""Find out whether user code is cleaning up by itself: whether it awaits in a `finally`.

A generator that has ended, or a handler that is about to return, may be in the middle of its
clean-up when its client leaves. Python has no interface that tells, but the compiled code does: it
contains each `finally` twice or more, once as a handler of exceptions, and all copies have the same
positions in the source. So a frame that waits at a position which also occurs in such a handler is
cleaning up. The exit of an `async with` is awaited by an instruction that names it.

The instructions are CPython's. The awaitable that reads a generator refers to it in a way that only
the garbage collector shows. If either is different, no code counts as cleaning up.
"""

import dis
import gc
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from types import AsyncGeneratorType, CodeType, FrameType
from typing import Any, Final, TypeAlias

__all__ = ["Ending", "endings_of", "is_cleaning_up", "is_ending"]

_OURS: Final = str(Path(__file__).parents[1]) + os.sep
_MOST_CODES: Final = 4096
_MOST_FRAMES: Final = 200
_NOWHERE: Final[frozenset[int]] = frozenset()

# One async generator, and the places where its frame waits in a `finally` of its own.
Ending: TypeAlias = tuple[Any, frozenset[int]]

_AWAITS: Final = frozenset(("GET_AWAITABLE", "GET_ANEXT"))
_WAITS: Final = frozenset(
    ("LOAD_CONST", "SEND", "YIELD_VALUE", "RESUME", "JUMP_BACKWARD_NO_INTERRUPT")
)
_OF_EXIT: Final = 2  # the argument of GET_AWAITABLE where it is for `__aexit__`
_END_OF_HANDLER: Final = ("COPY", "POP_EXCEPT", "RERAISE")
_BETWEEN: Final = frozenset(
    ("async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper")
)
# Instructions of a handler that is not a `finally`.
_MATCHES: Final = frozenset(("CHECK_EXC_MATCH", "CHECK_EG_MATCH", "WITH_EXCEPT_START"))


class _Code:
    """The places in one code object where frames wait while they clean up: offsets of instructions.

    Attributes:
        finallys: In a `finally`.
        exits: At the end of an `async with`.
    """

    def __init__(self, code: CodeType, finallys: frozenset[int], exits: frozenset[int]) -> None:
        self.code = code  # kept alive, since its id is the key
        self.finallys = finallys
        self.exits = exits


_CODES: Final[dict[int, _Code]] = {}  # comparing code objects takes too long


def is_cleaning_up(coroutine: Any) -> bool:
    """Return whether user code that a suspended coroutine awaits is cleaning up by itself.

    The end of a task group is no clean-up: it waits for the tasks that do the work.
    """
    is_exiting = False
    for code, frame in _frames(coroutine):
        if code.co_filename.startswith(_OURS):
            continue
        known = _known(code)
        if frame.f_lasti in known.finallys:
            return True
        name = code.co_qualname
        if name.endswith("__aexit__") and ("TaskGroup" in name or "Nursery" in name):
            return False
        is_exiting = is_exiting or frame.f_lasti in known.exits
    return is_exiting


def endings_of(opened: Iterable[Any]) -> list[Ending] | None:
    """Return the clean-ups of the iterators that are generators with one; None if none is."""
    endings: list[Ending] | None = None
    for iterator in opened:
        if type(iterator) is AsyncGeneratorType:
            code = iterator.ag_code
            known = _CODES.get(id(code)) or _known(code)
            if known.finallys:
                endings = [*(endings or ()), (iterator, known.finallys)]
    return endings


def is_ending(endings: Iterable[Ending]) -> bool:
    """Return whether one of the generators, which are being awaited, is in its clean-up."""
    for generator, offsets in endings:
        frame = generator.ag_frame
        if frame is not None and frame.f_lasti in offsets:
            return True
    return False


def _frames(awaited: Any) -> Iterator[tuple[CodeType, FrameType]]:
    """Yield the suspended frames of a coroutine, the outermost first."""
    for _ in range(_MOST_FRAMES):
        if inspect.iscoroutine(awaited):
            code, frame, awaited = awaited.cr_code, awaited.cr_frame, awaited.cr_await
        elif inspect.isasyncgen(awaited):
            code, frame, awaited = awaited.ag_code, awaited.ag_frame, awaited.ag_await
        elif inspect.isgenerator(awaited):
            code, frame, awaited = awaited.gi_code, awaited.gi_frame, awaited.gi_yieldfrom
        else:
            awaited = _inside(awaited)
            if awaited is None:
                return
            continue
        if frame is None:
            return
        yield code, frame


def _inside(awaited: Any) -> Any:
    """Return what is awaited by an object that Python puts between two frames (for `async for`)."""
    if type(awaited).__name__ in _BETWEEN:
        return next(iter(gc.get_referents(awaited)), None)
    return None


def _known(code: CodeType) -> _Code:
    known = _CODES.get(id(code))
    if known is None:
        if len(_CODES) >= _MOST_CODES:
            _CODES.clear()
        known = _CODES[id(code)] = _analysed(code)
    return known


def _analysed(code: CodeType) -> _Code:
    instructions = {i.offset: i for i in dis.get_instructions(code)}
    awaits = list(_awaits(list(instructions.values())))
    if not awaits:
        return _Code(code, _NOWHERE, _NOWHERE)
    handlers = _Handlers(code, instructions)
    places = {place for start, _, place in awaits if handlers.is_in_finally(start.offset)}
    return _Code(
        code,
        frozenset(o for _, offsets, place in awaits if place in places for o in offsets),
        frozenset(o for start, offsets, _ in awaits if _is_exit(start) for o in offsets),
    )


def _is_exit(start: dis.Instruction) -> bool:
    return start.opname == "GET_AWAITABLE" and start.arg == _OF_EXIT


def _awaits(
    instructions: Sequence[dis.Instruction],
) -> Iterator[tuple[dis.Instruction, list[int], Any]]:
    """Yield each `await`: its first instruction, where it waits, and its place in the source.

    The beginning and the end of an `async with` have the same place; the argument differs.
    """
    for index, start in enumerate(instructions):
        if start.opname in _AWAITS:
            offsets = [i.offset for i in takewhile(_waits, instructions[index + 1 :])]
            yield start, offsets, (start.positions, start.arg)


def _waits(instruction: dis.Instruction) -> bool:
    return instruction.opname in _WAITS


class _Handlers:
    """The handlers of exceptions in one code object."""

    def __init__(self, code: CodeType, instructions: Mapping[int, dis.Instruction]) -> None:
        entries = getattr(dis.Bytecode(code), "exception_entries", ())
        # The innermost handler of each instruction: entries do not overlap.
        self._handler_of = {
            offset: entry.target for entry in entries for offset in range(entry.start, entry.end, 2)
        }
        self._instructions = instructions
        self._finally_ends = {
            entry.target
            for entry in entries
            if self._is_end(entry.target) and self._ends_finally(entry.target)
        }

    def is_in_finally(self, offset: int) -> bool:
        """Return whether an instruction is in a handler that is a `finally`."""
        target = self._handler_of.get(offset)
        seen: set[int] = set()
        while target is not None and target not in seen:
            seen.add(target)
            if target in self._finally_ends:
                return True
            if not self._is_end(target):  # not in that handler, but in the block that it guards
                own_end = self._handler_of.get(target)
                if self._is_handler(target) and own_end is not None:
                    target = own_end
            target = self._handler_of.get(target)
        return False

    def _is_handler(self, target: int) -> bool:
        return self._instructions[target].opname == "PUSH_EXC_INFO"

    def _is_end(self, target: int) -> bool:
        """Return whether this ends a handler that raises: it is the handler's own handler."""
        names = (self._opname(target + step) for step in (0, 2, 4))
        return tuple(names) == _END_OF_HANDLER

    def _ends_finally(self, end: int) -> bool:
        inside = [
            i for offset, i in self._instructions.items() if self._handler_of.get(offset) == end
        ]
        names = [i.opname for i in inside]
        if _MATCHES.intersection(names):
            return False
        return names[:1] == ["PUSH_EXC_INFO"] and names[1:2] != ["POP_TOP"]  # of a bare `except`

    def _opname(self, offset: int) -> str:
        instruction = self._instructions.get(offset)
        return "" if instruction is None else instruction.opname
