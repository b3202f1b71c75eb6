"""The folders of models as packages, whose modules have the same names in every process.

`model.py` in a folder `churn` is the module `modelserve.models.folders.churn@1a2b3c4d.model`; the
number is a checksum of the folder's path. A `features.py` beside it ends in `.features`. Pickles
name classes by their modules. So these names can be imported after a reload, after a restart and in
a worker process of `multiprocessing`, and lead to the files as they are then; if the folder has
moved, to a folder of the same name. Worker processes inherit `sys.path`: an entry of it, which
nothing else reads, tells them where the folders are.

Modules of a folder import each other by `from . import features` or, as scripts in that folder do,
by `import features`: two models with a `features.py` each have their own. An artifact that was
pickled by such a script names a class `features.Scaler`. Pickle looks for the name in
`sys.modules`, where a stand-in leads to the module of the model that asks.
"""

import builtins
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final
from urllib.parse import unquote
from zlib import crc32

__all__ = ["Modules", "modules_of"]

_PREFIX: Final = f"{__name__}."
_MARKER: Final = f"*{os.sep}model.py"
# Packages are found below this module by `_FolderFinder` alone.
__path__: list[str] = []


class _Folder:
    """One folder: its package, and the names that `import` finds in it."""

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.package = _PREFIX + key
        self.modules: frozenset[str] = frozenset()
        self.data: frozenset[str] = frozenset()  # folders: packages, unless a module has the name
        self.builtins: dict[str, Any] = {}
        self.renew()

    def renew(self) -> None:
        """List the modules that the folder has now."""
        paths = list(self.path.iterdir())
        self.modules = frozenset(
            path.name.partition(".")[0]
            for path in paths
            if path.suffix in (".py", ".so", ".pyd") or (path / "__init__.py").is_file()
        )
        self.data = frozenset(path.name for path in paths if path.is_dir()) - self.modules
        self.builtins = vars(builtins) | {"__import__": self._import}

    def has(self, name: str) -> bool:
        return name in self.modules or name in self.data

    def _import(
        self,
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import as the `import` statement does, but look into the folder first."""
        top = name.partition(".")[0]
        # C code, such as pickle's, passes a list, and wants the module under that very name.
        if level or not self.has(top) or isinstance(fromlist, list):
            return __import__(name, globals, locals, fromlist or (), level)
        if top in self.data:
            try:
                return __import__(name, globals, locals, fromlist or (), 0)
            except ModuleNotFoundError as exc:
                if exc.name != top:
                    raise
        module = __import__(f"{self.package}.{name}", globals, locals, fromlist or ("*",), 0)
        return module if fromlist else sys.modules[f"{self.package}.{top}"]


_folders: dict[str, _Folder] = {}


class Modules:
    """The modules of one folder as they are imported now, and as they were before."""

    def __init__(self, folder: _Folder) -> None:
        self._folder = folder
        self._before: dict[str, ModuleType] = {}

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.path

    def run(self) -> ModuleType:
        """Run `model.py` again, with the modules of its folder that it imports; return the module.

        Raises what the files raise; the modules are then as they were before.
        """
        before, self._before = self._take(), {}
        try:
            self._folder.renew()
            importlib.invalidate_caches()
            module = importlib.import_module(f"{self._folder.package}.model")
        except BaseException:
            self._take()
            sys.modules.update(before)
            raise
        self._before = before
        return module

    def restore(self) -> None:
        """Go back to the modules before the last `run`, if there were any."""
        if self._before:
            self._take()
            sys.modules.update(self._before)
            self._before = {}

    def _take(self) -> dict[str, ModuleType]:
        package = self._folder.package
        names = [n for n in list(sys.modules) if n == package or n.startswith(f"{package}.")]
        return {name: sys.modules.pop(name) for name in names}


def modules_of(path: Path) -> Modules:
    """Return the modules of a folder, and make it importable."""
    return Modules(_claim(path.absolute()))


def _claim(path: Path) -> _Folder:
    """Return the folder of a path. Its key is made of its name and its path."""
    name = path.name.replace("%", "%25").replace(".", "%2E").replace("@", "%40")
    key = f"{name}@{crc32(os.fsencode(path)):08x}"
    if key not in _folders:
        marker = str(path.parent / _MARKER)
        if marker not in sys.path:
            sys.path.append(marker)
        _folders[key] = _Folder(path, key)
    return _folders[key]


def _find(key: str) -> _Folder | None:
    """Return the folder of a key, perhaps of another process; else a folder of the same name."""
    if key in _folders:
        return _folders[key]
    name = unquote(key.partition("@")[0])
    paths = [path for path in _candidates(name) if (path / "model.py").is_file()]
    same = [path for path in paths if key.endswith(f"@{crc32(os.fsencode(path)):08x}")]
    if same:
        return _claim(same[0])
    known = [folder for folder in (_asking(), *reversed(_folders.values())) if folder is not None]
    named = [folder for folder in known if folder.path.name == name]
    if named:
        return named[0]
    return _claim(paths[0]) if paths else None


def _candidates(name: str) -> Iterator[Path]:
    """Yield the places of a folder of this name: below a marked directory, and in `sys.path`."""
    for entry in sys.path:
        path = Path(entry.removesuffix(_MARKER)).absolute()
        yield path / name
        if path.name == name and not entry.endswith(_MARKER):
            yield path


# --- finding modules ----------------------------------------------------------------------------


class _FolderFinder(MetaPathFinder):
    """Finds the packages of folders, and the modules in them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        key, _, inner = fullname.removeprefix(_PREFIX).partition(".")
        folder = _find(key)
        if folder is None:
            return None
        if folder.package != _PREFIX + key:  # the folder has moved since the pickle was made
            return _stand_in(fullname, f"{folder.package}.{inner}".rstrip("."))
        if not inner:
            package = ModuleSpec(fullname, None, is_package=True)
            package.submodule_search_locations = [str(folder.path)]
            return package
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _FileLoader(fullname, spec.loader.path, folder)
        return spec


class _FileLoader(SourceFileLoader):
    """Compile a file of a folder anew: Python checks its cache by size and whole seconds only."""

    def __init__(self, fullname: str, path: str, folder: _Folder) -> None:
        super().__init__(fullname, path)
        self._folder = folder

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._folder.builtins
        super().exec_module(module)


class _StandInFinder(MetaPathFinder):
    """Finds modules of a folder that its code imports by plain names, if nothing else is found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = _asking()
        if folder is None or not folder.has(fullname.partition(".")[0]):
            return None
        return _stand_in(fullname, f"{folder.package}.{fullname}")


def _stand_in(name: str, of: str) -> ModuleSpec | None:
    """Return the spec of a stand-in; None if no folder has such a module."""
    try:
        module = importlib.import_module(of)
    except ModuleNotFoundError as exc:
        if exc.name == of:
            return None
        raise
    return ModuleSpec(name, _StandInLoader(), is_package=hasattr(module, "__path__"))


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _StandIn(ModuleType):
    """Stands in `sys.modules` for the modules of that name in all folders."""

    def __getattr__(self, attribute: str) -> Any:
        name = None if attribute.startswith("__") else _meant(self.__name__)
        if name is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {attribute!r}")
        return getattr(importlib.import_module(name), attribute)


def _meant(name: str) -> str | None:
    """Return the name of the module that a stand-in means for the code that is running."""
    if name.startswith(_PREFIX):
        key, _, inner = name.removeprefix(_PREFIX).partition(".")
        folder = _find(key)
        return None if folder is None else f"{folder.package}.{inner}".rstrip(".")
    top = name.partition(".")[0]
    known = [folder for folder in (_asking(), *reversed(_folders.values())) if folder is not None]
    having = [folder for folder in known if folder.has(top)]
    return f"{having[0].package}.{name}" if having else None


def _asking() -> _Folder | None:
    """Return the folder whose code is running, the innermost one."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if isinstance(name, str) and name.startswith(_PREFIX):
            return _folders.get(name.removeprefix(_PREFIX).partition(".")[0])
        frame = frame.f_back  # type: ignore[assignment]
    return None


sys.meta_path.insert(0, _FolderFinder())
sys.meta_path.append(_StandInFinder())
