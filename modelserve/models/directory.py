"""Find the models of a directory, and run their code.

A name is one component of a path. Names that are something else, that begin with a dot, or whose
folder or `model.py` is a link that leaves the directory, are those of no model.
"""

import inspect
import os
import re
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from modelserve.errors import ModelNotFound
from modelserve.models.model import Model, as_model

__all__ = ["Imports", "file_of", "folder_of", "model_in"]

_PLAIN_NAME: Final = re.compile(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]*")
_NUMBERS: Final = count(1)
# The files of the model that serves, and of the one before it, whose last requests may be running.
_IMPORTS_KEPT: Final = 2


def folder_of(directory: str | os.PathLike[str], name: str) -> Path:
    """Return the folder of a model, whether it exists or not. Raises ModelNotFound."""
    if not _PLAIN_NAME.fullmatch(name):
        raise ModelNotFound(name)
    folder = Path(directory) / name
    _check_inside(directory, folder, name)
    return folder


def file_of(directory: str | os.PathLike[str], name: str) -> Path:
    """Return the `model.py` of a model. Raises ModelNotFound where there is none."""
    path = folder_of(directory, name) / "model.py"
    _check_inside(directory, path, name)
    try:
        if path.is_file():
            return path
    except OSError:  # a name that is too long, a folder that we may not read
        pass
    raise ModelNotFound(name)


def _check_inside(directory: str | os.PathLike[str], path: Path, name: str) -> None:
    try:
        is_inside = path.resolve().is_relative_to(Path(directory).resolve())
    except (OSError, RuntimeError):  # links in a circle
        is_inside = False
    if not is_inside:
        raise ModelNotFound(name)


class Imports:
    """The modules that the models of one repository have been imported as."""

    def __init__(self) -> None:
        self._packages: dict[str, list[str]] = {}

    def run(self, path: Path, name: str) -> ModuleType:
        """Run a `model.py` as a module of a new package whose path is the model's folder.

        Raises what the file raises.
        """
        package = ModuleType(f"modelserve_{re.sub(r'[^0-9a-zA-Z]', '_', name)}_{next(_NUMBERS)}")
        package.__path__ = [str(path.parent)]
        sys.modules[package.__name__] = package
        try:
            module = _run(f"{package.__name__}.model", path)
        except BaseException:
            _forget(package.__name__)
            raise
        kept = self._packages.setdefault(name, [])
        kept.append(package.__name__)
        while len(kept) > _IMPORTS_KEPT:
            _forget(kept.pop(0))
        return module


class _Loader(SourceFileLoader):
    """Compile the file as it is now: a cached compilation is only checked by size and second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _run(module_name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(module_name, path, loader=_Loader(module_name, str(path)))
    assert spec is not None and spec.loader is not None
    module = sys.modules[module_name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _forget(package: str) -> None:
    for module in list(sys.modules):
        if module == package or module.startswith(f"{package}."):
            del sys.modules[module]


def model_in(module: ModuleType, folder: Path, name: str) -> Any:
    """Make the model of a `model.py`, by its function `load` or its one subclass of `Model`.

    Raises TypeError where it has neither, and what its code raises.
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
