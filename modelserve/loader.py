"""Import the application to serve: `package.module:attr` or `path/to/file.py:attr`."""

import importlib
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Final

from starlette.types import ASGIApp

from modelserve.errors import LoadError

__all__ = ["load_target", "source_folder", "users_traceback"]

DEFAULT_ATTRIBUTE: Final = "app"
_OUR_FRAMES: Final = (
    str(Path(__file__).parent) + os.sep,
    importlib.__file__,
    "<frozen importlib",
)


def load_target(target: str) -> ASGIApp:
    """Import a target and return its ASGI application.

    The attribute is `app` by default, and may be dotted. A file's folder, or for a module the
    current directory, is put first in `sys.path`: a file becomes importable by its name, so that
    pickle and worker processes find its classes.

    Raises LoadError if the target is missing or no ASGI application, and whatever the module itself
    raises.
    """
    where, attribute = _split(target)
    module = _import_file(Path(where)) if _is_path(where) else _import_module(where)
    app = _find(module, attribute, where)
    if not _is_asgi(app):
        hint = ": ModelServer([...]) makes one of models" if hasattr(app, "predict") else ""
        raise LoadError(f"{attribute!r} in {where} is {_kind(app)}, not an ASGI application{hint}.")
    return app  # type: ignore[no-any-return]


def source_folder(target: str) -> Path:
    """Return the folder of a target's code; for a module, the current directory.

    Raises LoadError if the target is a missing file.
    """
    where, _ = _split(target)
    return _existing(Path(where)).parent if _is_path(where) else Path.cwd()


def users_traceback(exc: BaseException) -> TracebackType | None:
    """Return an exception's traceback without the leading frames of this package and of imports;
    None if no other is left.
    """
    found = exc.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_OUR_FRAMES):
        found = found.tb_next
    return found


# --- parsing ------------------------------------------------------------------------------------


def _split(target: str) -> tuple[str, str]:
    where, colon, attribute = target.rpartition(":")
    if not colon or "/" in attribute or "\\" in attribute:
        return target, DEFAULT_ATTRIBUTE
    if not where:
        raise LoadError(f"The target {target!r} has no module or file before its colon.")
    if not _is_dotted_name(attribute):
        raise LoadError(f"The target {target!r} has no attribute's name after its colon.")
    return where, attribute


def _is_path(where: str) -> bool:
    return where.endswith(".py") or "/" in where or os.sep in where


def _is_dotted_name(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


# --- importing ----------------------------------------------------------------------------------


def _import_file(path: Path) -> ModuleType:
    path = _existing(path)
    if path.suffix != ".py" or "." in path.stem:
        raise LoadError(f"The file {path} is not named like a Python module.")
    _put_first(path.parent)
    module = _import(path.stem)
    found = getattr(module, "__file__", None)
    if found is None or not path.samefile(found):
        raise LoadError(f"The file {path} has the name of another module, {path.stem!r}.")
    return module


def _existing(path: Path) -> Path:
    path = path.absolute()
    if path.is_dir():
        raise LoadError(f"{path} is a folder: name a file, or serve its models by --model-dir.")
    if not path.is_file():
        raise LoadError(f"There is no file {path}.")
    return path


def _import_module(name: str) -> ModuleType:
    if not _is_dotted_name(name):
        raise LoadError(f"{name!r} is neither the name of a module nor the path of a .py file.")
    _put_first(Path.cwd())
    return _import(name)


def _put_first(folder: Path) -> None:
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if users_traceback(exc) is not None:
            raise
        raise LoadError(f"There is no module {name!r}: {exc}.") from None


# --- the application ----------------------------------------------------------------------------


def _find(module: ModuleType, attribute: str, where: str) -> Any:
    found: Any = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            hint = _hint(module, where)
            raise LoadError(f"There is no attribute {attribute!r} in {where}{hint}.") from None
    return found


def _hint(module: ModuleType, where: str) -> str:
    """Return a hint that names the applications in a module, or says how to make one."""
    things = vars(module).items()
    names = [name for name, it in things if _is_asgi(it) and not inspect.isroutine(it)]
    if not names:
        return ": make one of models by app = ModelServer([...])"
    return f"; there is {' and '.join(f'{where}:{name}' for name in names)}"


def _is_asgi(app: Any) -> bool:
    if isinstance(app, type):
        return False
    call = app if inspect.isroutine(app) else getattr(app, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(call) and _takes_three(app)


def _takes_three(function: Any) -> bool:
    try:
        inspect.signature(function).bind("scope", "receive", "send")
    except (TypeError, ValueError):
        return False
    return True


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}"
    return f"an instance of {type(value).__name__}"
