"""Find the models of a directory, and make a model of its `model.py`.

A model's name is one component of a path. There is no model for a name that begins with a dot, or
whose folder or `model.py` is a link that leads out of the directory.
"""

import inspect
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from modelserve.errors import ModelNotFound
from modelserve.models.model import Model, as_model

__all__ = ["file_of", "folder_of", "has_one_model", "model_in", "only_name"]

_PLAIN_NAME: Final = re.compile(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]*")


def folder_of(directory: str | os.PathLike[str], name: str) -> Path:
    """Return the folder of a model, whether it exists or not. Raises ModelNotFound."""
    if not _PLAIN_NAME.fullmatch(name):
        raise ModelNotFound(name)
    folder = Path(directory) / name
    _check_inside(directory, folder, name)
    return folder


def file_of(directory: str | os.PathLike[str], name: str, model_name: str | None = None) -> Path:
    """Return the `model.py` of a model. Raises ModelNotFound where there is none.

    Args:
        model_name: The model's name where the directory has a `model.py` itself.
    """
    if not has_one_model(directory):
        path = folder_of(directory, name) / "model.py"
        if _is_file_inside(directory, path):
            return path
    elif name == only_name(directory, model_name):
        return Path(directory) / "model.py"
    raise ModelNotFound(name)


def has_one_model(directory: str | os.PathLike[str]) -> bool:
    """Return whether a directory is the folder of one model: whether it has a `model.py` itself."""
    return _is_file_inside(directory, Path(directory) / "model.py")


def only_name(directory: str | os.PathLike[str], model_name: str | None) -> str:
    """Name the one model of a directory: the given name, else KServe's, else the directory's."""
    name = model_name or os.environ.get("INFERENCE_SERVICE_NAME")
    return name or Path(directory).resolve().name or "model"


def _is_file_inside(directory: str | os.PathLike[str], path: Path) -> bool:
    try:
        _check_inside(directory, path, path.name)
        return path.is_file()
    except (ModelNotFound, OSError):  # a name that is too long, a folder that we may not read
        return False


def _check_inside(directory: str | os.PathLike[str], path: Path, name: str) -> None:
    try:
        is_inside = path.resolve().is_relative_to(Path(directory).resolve())
    except (OSError, RuntimeError):  # links in a circle
        is_inside = False
    if not is_inside:
        raise ModelNotFound(name)


def model_in(module: ModuleType, folder: Path, name: str) -> Any:
    """Make a model by the function `load` of a `model.py`, or by its one subclass of `Model`.

    Raises TypeError if it has neither, and what its code raises.
    """
    load = getattr(module, "load", None)
    if callable(load):
        if inspect.iscoroutinefunction(load):
            raise TypeError(f"The function load in {module.__file__} must not be async")
        return as_model(load(folder, name), name)
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Model)
        if value.__module__ == module.__name__
    ]
    most_derived = [
        kind for kind in classes if not any(issubclass(c, kind) for c in classes if c != kind)
    ]
    if len(most_derived) != 1:
        raise TypeError(
            f"{module.__file__} needs a function load(path, name) or one subclass of Model, "
            f"and has {len(most_derived)} subclasses"
        )
    return most_derived[0](name)
