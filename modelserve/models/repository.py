"""Models in a directory, and KServe's `ModelRepository`.

A directory holds a folder for each model, of the model's name, and in each folder a `model.py`:

    models/
        shout/
            model.py
            words.txt

`model.py` has one subclass of `Model`, which is called with the name; or a function
`load(path, name)`, which is called with the folder (a `Path`) and the name and returns a model: a
`Model`, an object with a `predict`, or a function. The other modules of a folder are imported with
`from . import helper`.

Every load runs `model.py` anew and makes a new model, so that what has changed in the folder
counts; a server goes on with the old model until the new one is ready.

A name is one component of a path. Names that are something else, that begin with a dot, or whose
folder or `model.py` is a link that leaves the directory, are those of no model.
"""

import inspect
import logging
import os
import re
import sys
from collections.abc import Awaitable
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from itertools import count
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final, Protocol

from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.models.model import Model, as_model

__all__ = ["MODEL_MOUNT_DIRS", "ModelRepository"]

logger = logging.getLogger("modelserve")

MODEL_MOUNT_DIRS: Final = "/mnt/models"

_PLAIN_NAME: Final = re.compile(r"[^./\\:\x00-\x1f\x7f][^/\\:\x00-\x1f\x7f]*")
_NUMBERS: Final = count(1)
# The files of the model that serves, and of the one before it, whose last requests may be running.
_IMPORTS_KEPT: Final = 2


class Server(Protocol):
    """What a repository tells of its models."""

    def adopt(self, name: str, model: Any) -> None: ...

    def forget(self, name: str) -> None: ...


class ModelRepository:
    """The models of a directory, and any others that `update` is given.

    The methods are KServe's. As there, a subclass may override `load` (sync or async) or
    `load_model` to get its models in a way of its own, and `update` the repository with them; names
    that would lead out of the directory do not reach either from a server. A server stops a model
    itself, after its last request: it does not call `unload`.
    """

    _server: Server | None = None

    def __init__(self, models_dir: str | os.PathLike[str] = MODEL_MOUNT_DIRS) -> None:
        self.models: dict[str, Any] = {}
        self.models_dir = models_dir
        self._imported: dict[str, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_server"}

    # -- KServe's

    def set_models_dir(self, models_dir: str | os.PathLike[str]) -> None:
        """Change the directory; what has been loaded stays."""
        self.models_dir = models_dir

    def get_model(self, name: str) -> Any:
        """Return the model of a name, or None."""
        return self.models.get(name)

    def get_models(self) -> dict[str, Any]:
        """Return all models by name."""
        return self.models

    async def is_model_ready(self, name: str) -> bool:
        """Ask a model whether it can answer; False for a name that has none."""
        model = self.get_model(name)
        healthy = model is not None and model.healthy()
        return bool(await healthy if isinstance(healthy, Awaitable) else healthy)

    def update(self, model: Any, name: str | None = None) -> None:
        """Put a model in, under its own name or another one; one of that name is replaced."""
        name = name or str(model.name)
        self.models[name] = model
        if self._server is not None:
            self._server.adopt(name, model)

    def load_models(self) -> None:
        """Load each model of the directory. Raises what a load raises, OSError for no directory."""
        for name in self.names():
            self.load_model(name)

    def load(self, name: str) -> Any:
        """Load a model, again if need be; return whether it is ready."""
        return self.load_model(name)

    def load_model(self, name: str) -> bool:
        """Make a model of the directory, load it, and put it in unless it says that it is not ready.

        A model whose `load` is async is put in as it is: loading it is left to the server. Raises
        ModelNotFound, TypeError for a `model.py` without a model, and what that raises itself.
        """
        model = self.make(name)
        if not inspect.iscoroutinefunction(model.load):
            loaded = model.ready or model.load()
            model.ready = loaded is None or bool(loaded)
            if not model.ready:
                return False
        self.update(model, name)
        return bool(model.ready)

    def unload(self, name: str) -> None:
        """Take a model out and stop it; if it is served, after its last request.

        Raises KeyError for a name that has no model.
        """
        if name not in self.models:
            raise KeyError(f"model with name {name} does not exist")
        model = self.models.pop(name)
        if self._server is not None:
            self._server.forget(name)
            return
        if model.engine:
            model.stop_engine()
        model.stop()

    # -- for servers

    def names(self) -> list[str]:
        """Return the names that the directory has a model for now. Raises OSError for no directory.

        For a subclass that loads in a way of its own, that is each folder.
        """
        names = sorted(path.name for path in Path(self.models_dir).iterdir() if path.is_dir())
        return [name for name in names if self.has(name)]

    def has(self, name: str) -> bool:
        """Say whether `provide` can be asked for a name.

        For a subclass that loads in a way of its own, that is any name that cannot lead elsewhere.
        """
        try:
            return bool(self._folder(name) if self._has_own_load else self._file(name))
        except ModelNotFound:
            return False

    def serve_on(self, server: Server) -> None:
        """Tell a server of the models, now and from now on."""
        self._server = server
        for name, model in self.models.items():
            server.adopt(name, model)

    def provide(self, name: str) -> Any:
        """Return a model for a server to start, load and serve, or an awaitable of one.

        Where a subclass loads in a way of its own, it has done so. Raises ModelNotFound,
        ModelNotReady, and what the model's code raises.
        """
        if not self._has_own_load:
            return self.make(name)
        self._folder(name)
        loaded = self.load(name)
        if isinstance(loaded, Awaitable):
            return self._await(name, loaded)
        return self._loaded(name, loaded)

    def make(self, name: str) -> Any:
        """Return a new model of the directory, not loaded.

        Raises ModelNotFound, TypeError for a `model.py` without a model, and what it raises itself.
        """
        path = self._file(name)
        return _model_in(self._import(path, name), path.parent, name)

    @property
    def _has_own_load(self) -> bool:
        own, base = type(self), ModelRepository
        return own.load is not base.load or own.load_model is not base.load_model

    async def _await(self, name: str, loading: Awaitable[Any]) -> Any:
        return self._loaded(name, await loading)

    def _loaded(self, name: str, loaded: Any) -> Any:
        model = self.models.get(name)
        if model is None or not (loaded is None or loaded):
            raise ModelNotReady(name)
        return model

    # -- the directory

    def _file(self, name: str) -> Path:
        path = self._folder(name) / "model.py"
        self._check_inside(path, name)
        try:
            if path.is_file():
                return path
        except OSError:  # a name that is too long, a folder that we may not read
            pass
        raise ModelNotFound(name)

    def _folder(self, name: str) -> Path:
        """Return the folder of a model, there or not. Raises ModelNotFound."""
        if not _PLAIN_NAME.fullmatch(name):
            raise ModelNotFound(name)
        folder = Path(self.models_dir) / name
        self._check_inside(folder, name)
        return folder

    def _check_inside(self, path: Path, name: str) -> None:
        try:
            inside = path.resolve().is_relative_to(Path(self.models_dir).resolve())
        except (OSError, RuntimeError):  # links in a circle
            inside = False
        if not inside:
            raise ModelNotFound(name)

    def _import(self, path: Path, name: str) -> ModuleType:
        """Run a `model.py` as a module of a package of its own, whose path is the folder."""
        package = ModuleType(f"modelserve_{re.sub(r'[^0-9a-zA-Z]', '_', name)}_{next(_NUMBERS)}")
        package.__path__ = [str(path.parent)]
        sys.modules[package.__name__] = package
        try:
            module = _run(f"{package.__name__}.model", path)
        except BaseException:
            _forget_import(package.__name__)
            raise
        kept = self._imported.setdefault(name, [])
        kept.append(package.__name__)
        while len(kept) > _IMPORTS_KEPT:
            _forget_import(kept.pop(0))
        return module


class _Loader(SourceFileLoader):
    """Compile the file as it is now; compiled files are told apart by size and whole seconds."""

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


def _forget_import(package: str) -> None:
    for module in list(sys.modules):
        if module == package or module.startswith(f"{package}."):
            del sys.modules[module]


def _model_in(module: ModuleType, folder: Path, name: str) -> Any:
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
    last = [kind for kind in classes if not any(issubclass(c, kind) for c in classes if c != kind)]
    if len(last) != 1:
        raise TypeError(
            f"{module.__file__} needs a function load(path, name) or one subclass of Model, "
            f"and has {len(last)} subclasses"
        )
    return last[0](name)
