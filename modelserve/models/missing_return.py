"""Log, once, that a hook seems to have forgotten its `return`.

Hooks without a `return` are found when a model is registered; only their calls are checked.
"""

import ast
import dis
import inspect
import logging
import textwrap
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Noted", "noting_none", "returns_nothing"]

logger = logging.getLogger("modelserve")

_FUNCTIONS: Final = (ast.FunctionDef, ast.AsyncFunctionDef)
_LAMBDA: Final = "<lambda>"

Noted = set[str]  # the hooks of one model that have been reported


def returns_nothing(callee: Any) -> bool:
    """Return whether a function can return only None, by its code; False if that is not known.

    A decorated function is judged by the innermost one. Generators and lambdas return something.
    """
    code = getattr(inspect.unwrap(callee), "__code__", None)
    if code is None or code.co_name == _LAMBDA:
        return False
    if code.co_flags & (inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR):
        return False
    returned, is_none = [], False
    for instruction in dis.get_instructions(code):
        if instruction.opname == "RETURN_CONST":  # Python 3.12 and 3.13
            returned.append(instruction.argval is None)
        elif instruction.opname == "RETURN_VALUE":
            returned.append(is_none)
        is_none = instruction.opname == "LOAD_CONST" and instruction.argval is None
    return all(returned)


def noting_none(
    function: Callable[..., Any], callee: Any, *, label: str, noted: Noted
) -> Callable[..., Any]:
    """Wrap a hook that `returns_nothing`: the first time that it returns None, that is logged.

    Args:
        callee: The function that a call of the hook runs; the wrapper is async if that is.
        label: The hook's name in the log.
        noted: The labels of the hooks that have been reported.
    """

    def note(result: Any) -> Any:
        if result is None and label not in noted:
            noted.add(label)
            if not _says_return(callee):
                logger.warning("%s returned None: it has no `return`. Is one missing?", label)
        return result

    async def call_async(*args: Any, **kwargs: Any) -> Any:
        return note(await function(*args, **kwargs))

    def call(*args: Any, **kwargs: Any) -> Any:
        return note(function(*args, **kwargs))

    return call_async if inspect.iscoroutinefunction(callee) else call


def _says_return(callee: Any) -> bool:
    """Return whether the source of a function has a `return`, which bytecode does not show."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(callee))))
    except (OSError, TypeError, SyntaxError):
        return False
    return _has_return(tree.body[0])


def _has_return(node: ast.AST) -> bool:
    """Return whether a node has a `return` of its own, not one of a function inside."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Return):
            return True
        if not isinstance(child, (*_FUNCTIONS, ast.ClassDef)) and _has_return(child):
            return True
    return False
