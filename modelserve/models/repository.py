"""Models in a directory, and KServe's `ModelRepository`.

A directory holds a folder for each model, of the model's name, and in each folder a `model.py`:

    models/
        shout/
            model.py
            words.txt

A directory that has a `model.py` itself is the folder of one model: KServe mounts a model's own
files there. `model.py` has one subclass of `Model`, which is called with the name; or a function
`load(path, name)`, which is called with the folder (a `Path`) and the name and returns a model: a
`Model`, an object with a `predict`, or a function. It may import other modules of its folder, by
`from . import helper` or `import helper`.

Every load runs `model.py` again and makes a new model, so that changes in the folder take effect;
a server keeps serving the old model until the new one is ready.
"""

import inspect
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from modelserve.errors import ModelNotFound, ModelNotReady
from modelserve.models.directory import (
    file_of,
    folder_of,
    has_one_model,
    model_in,
    only_name,
)

if TYPE_CHECKING:
    from modelserve.models.folders import Modules

__all__ = ["MODEL_MOUNT_DIRS", "ModelRepository"]

MODEL_MOUNT_DIRS: Final = "/mnt/models"


class Server(Protocol):
    """What serves a repository's models; the repository reports changes to it."""

    def adopt(self, name: str, model: Any) -> None: ...

    def forget(self, name: str) -> None: ...


class ModelRepository:
    """The models of a directory, and any others that `update` is given.

    The methods are KServe's. As in KServe, a subclass may override `load` (sync or async) or
    `load_model` to load models in its own way and `update` the repository with them. A server never
    calls either with a name that leads out of the directory. It stops a model itself, after its
    last request, and does not call `unload`.

    Args:
        models_dir: The directory.
        model_name: The model's name if `models_dir` has a `model.py` itself. The default is the
            environment variable INFERENCE_SERVICE_NAME, else the name of the directory.
    """

    _server: Server | None = None
    _model_name: str | None = None

    def __init__(
        self,
        models_dir: str | os.PathLike[str] = MODEL_MOUNT_DIRS,
        model_name: str | None = None,
    ) -> None:
        self.models: dict[str, Any] = {}
        self.models_dir = models_dir
        self._model_name = model_name
        self._modules: dict[str, Modules] = {}

    def __getstate__(self) -> dict[str, Any]:
        # An application is pickled for worker processes, with its repository but not the server.
        return {k: v for k, v in vars(self).items() if k != "_server"} | {"_modules": {}}

    # -- KServe's

    def set_models_dir(self, models_dir: str | os.PathLike[str]) -> None:
        """Change the directory; loaded models stay."""
        self.models_dir = models_dir

    def get_model(self, name: str) -> Any:
        """Return the model of a name, or None."""
        return self.models.get(name)

    def get_models(self) -> dict[str, Any]:
        """Return all models by name."""
        return self.models

    async def is_model_ready(self, name: str) -> bool:
        """Ask a model whether it can answer; False for an unknown name."""
        model = self.get_model(name)
        healthy = model is not None and model.healthy()
        return bool(await healthy if isinstance(healthy, Awaitable) else healthy)

    def update(self, model: Any, name: str | None = None) -> None:
        """Add a model, under its own name or another one; one of that name is replaced."""
        name = name or str(model.name)
        self.models[name] = model
        if self._server is not None:
            self._server.adopt(name, model)

    def load_models(self) -> None:
        """Load each model of the directory. Raises what a load raises, OSError if there is none."""
        for name in self.names():
            self.load_model(name)

    def load(self, name: str) -> Any:
        """Load a model, again if need be; return whether it is ready."""
        return self.load_model(name)

    def load_model(self, name: str) -> bool:
        """Make a model of the directory, load it, and add it if it is ready.

        A model whose `load` is async is added without loading it: the server does that. Raises
        ModelNotFound, TypeError for a `model.py` without a model, and what its code raises.
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
        """Remove a model and stop it; if it is served, after its last request.

        Raises KeyError for an unknown name.
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
        """Return the names of the models in the directory. Raises OSError if there is none.

        For a subclass that loads in its own way, each folder is a model.
        """
        names = sorted(path.name for path in Path(self.models_dir).iterdir() if path.is_dir())
        if not self._overrides_load and has_one_model(self.models_dir):
            return [only_name(self.models_dir, self._model_name)]
        return [name for name in names if self.has(name)]

    def has(self, name: str) -> bool:
        """Return whether `provide` can be called with a name.

        For a subclass that loads in its own way, that is any name that stays in the directory.
        """
        try:
            if self._overrides_load:
                return bool(folder_of(self.models_dir, name))
            return bool(file_of(self.models_dir, name, self._model_name))
        except ModelNotFound:
            return False

    def serve_on(self, server: Server) -> None:
        """Give a server the models, present ones and those that are added later."""
        self._server = server
        for name, model in self.models.items():
            server.adopt(name, model)

    def provide(self, name: str) -> Any:
        """Return a model, or an awaitable of one, for a server to start, load and serve.

        A subclass that loads in its own way returns it loaded. Raises ModelNotFound, ModelNotReady,
        and what the model's code raises.
        """
        if not self._overrides_load:
            return self.make(name)
        folder_of(self.models_dir, name)  # raises for a name that leads elsewhere
        loaded = self.load(name)
        if isinstance(loaded, Awaitable):
            return self._await(name, loaded)
        return self._loaded(name, loaded)

    def make(self, name: str) -> Any:
        """Return a new model of the directory, not loaded.

        Raises ModelNotFound, TypeError for a `model.py` without a model, and what its code raises.
        """
        from modelserve.models.folders import modules_of  # this module changes how Python imports

        folder = file_of(self.models_dir, name, self._model_name).parent
        modules = self._modules.get(name)
        if modules is None or modules.path != folder.absolute():
            modules = self._modules[name] = modules_of(folder)
        return model_in(modules.run(), folder, name)

    def withdraw(self, name: str) -> None:
        """Return to the code of the model before the last one that was made, if there was one."""
        if name in self._modules:
            self._modules[name].restore()

    @property
    def _overrides_load(self) -> bool:
        kind, base = type(self), ModelRepository
        return kind.load is not base.load or kind.load_model is not base.load_model

    async def _await(self, name: str, loading: Awaitable[Any]) -> Any:
        return self._loaded(name, await loading)

    def _loaded(self, name: str, loaded: Any) -> Any:
        model = self.models.get(name)
        if model is None or not (loaded is None or loaded):
            raise ModelNotReady(name)
        return model
