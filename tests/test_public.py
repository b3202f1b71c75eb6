"""The public names: what `__all__` says is what there is, and all of it is documented."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import modelserve
from modelserve import errors

# Modules that are run, or have nothing but a dunder or a docstring.
WITHOUT_ALL = {
    "modelserve.__main__",
    "modelserve.version",
    "modelserve.concurrency",
    "modelserve.exchange",
    "modelserve.metrics",
    "modelserve.models",
    "modelserve.protocols",
    "modelserve.server",
    "modelserve.server.connections",
    "modelserve.wire",
}
KSERVE_ERRORS = {
    "InferenceError",
    "InvalidInput",
    "ModelMissingError",
    "ModelNotFound",
    "ModelNotReady",
    "NoModelReady",
    "ServerNotLive",
    "ServerNotReady",
    "UnsupportedProtocol",
    "WorkersShouldBeLessThanMaxWorkersError",
}


def names_of_modules() -> list[str]:
    found = pkgutil.walk_packages(modelserve.__path__, "modelserve.")
    # modelserve.kserve has KServe's names, which are not ours to choose: it has a test of its own.
    return [m.name for m in found if not m.name.startswith("modelserve.kserve")]


MODULES = [name for name in names_of_modules() if name not in WITHOUT_ALL]


def public_of(module: ModuleType) -> list[tuple[str, Any]]:
    """Return the public classes and functions that a module defines."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def test_the_package_has_the_names_that_it_says_and_no_others() -> None:
    names: dict[str, Any] = {}
    exec("from modelserve import *", names)  # noqa: S102 - in no function can this be written
    del names["__builtins__"]
    assert names.keys() == set(modelserve.__all__) <= set(dir(modelserve))
    assert modelserve.__all__ == sorted(modelserve.__all__)
    public = {name for name, value in vars(modelserve).items() if is_public(name, value)}
    assert public == names.keys()


def is_public(name: str, value: Any) -> bool:
    helpers = ("Any", "Final", "TYPE_CHECKING", "import_module")
    return not (name.startswith("_") or inspect.ismodule(value) or name in helpers)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'modelserve' has no attribute 'Modle'"):
        modelserve.Modle  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_is_small() -> None:
    assert len(modelserve.__all__) <= 22


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_the_names_that_it_says(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", None)
    assert names is not None, f"{name} has no __all__"
    assert len(names) == len(set(names))
    for public in names:
        value = getattr(module, public)
        owner = getattr(value, "__module__", name)
        if value is not Any and (inspect.isclass(value) or inspect.isfunction(value)):
            inside = owner == name or owner.startswith(f"{name}.")  # a package passes on its own
            assert inside, f"{public} is {owner}'s"


@pytest.mark.parametrize("public", modelserve.__all__)
def test_a_name_of_the_package_is_public_where_it_is_defined(public: str) -> None:
    value = getattr(modelserve, public)
    assert public in importlib.import_module(value.__module__).__all__


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    missing = [public for public, value in public_of(module) if not own_docstring(value)]
    assert missing == []


def own_docstring(value: Any) -> str:
    """Return a docstring that was written; dataclasses and named tuples get one made."""
    written = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
    made = (f"{value.__name__}(", "Alias for field")
    return "" if written is None or written.startswith(made) else written


@pytest.mark.parametrize("public", modelserve.__all__)
def test_what_users_meet_is_documented(public: str) -> None:
    value = getattr(modelserve, public)
    members = {
        name: member
        for name, member in inspect.getmembers(value, inspect.isroutine)
        if not name.startswith("_")
        and str(getattr(member, "__module__", "")).startswith("modelserve")
    }
    assert own_docstring(value)
    assert [name for name, member in members.items() if not inspect.getdoc(member)] == []


def test_kserves_exceptions_are_there() -> None:
    assert KSERVE_ERRORS <= set(errors.__all__)


def test_the_version_is_the_packages() -> None:
    assert modelserve.__version__.count(".") == 2


@pytest.mark.parametrize(
    "statement",
    ["import modelserve", "from modelserve import Model, ModelServer", "from modelserve import *"],
)
def test_importing_does_nothing(statement: str) -> None:
    """No logging set up, no arguments read, no event loop, no thread, nothing of KServe's."""
    code = (
        "import sys, threading, logging\n"
        "sys.argv = ['x', '--no-such-flag']\n"
        f"{statement}\n"
        "assert threading.active_count() == 1\n"
        "assert not logging.getLogger().handlers\n"
        "assert not logging.getLogger('modelserve').handlers\n"
        "late = ('numpy', 'prometheus_client', 'uvicorn', 'trio', 'httpx', 'modelserve.kserve',\n"
        "        'modelserve.models.remote', 'modelserve.models.folders',\n"
        "        'modelserve.wire.decoders', 'grpc', 'google.protobuf')\n"
        "assert [m for m in late if m in sys.modules] == []\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_a_name_is_loaded_when_it_is_asked_for() -> None:
    code = (
        "import sys, modelserve\n"
        "ours = {m for m in sys.modules if m.startswith('modelserve')}\n"
        "assert ours == {'modelserve', 'modelserve.version'}\n"
        "from modelserve import InvalidInput\n"
        "assert 'modelserve.errors' in sys.modules\n"
        "assert 'modelserve.app' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_the_changelog_says_where_the_internal_modules_are() -> None:
    path = Path(modelserve.__file__).parents[1] / "CHANGELOG.md"
    rows = re.findall(r"^\| .* \| (.*) \|$", path.read_text(encoding="utf-8"), re.MULTILINE)
    listed: set[str] = set()
    for row in rows:
        package = ""
        for name in re.findall(r"`((?:modelserve)?\.[a-z_.0-9]+|modelserve[a-z_.0-9]*)`", row):
            package = package if name.startswith(".") else name.rpartition(".")[0]
            listed.add(package + name if name.startswith(".") else name)
    assert listed <= set(names_of_modules())
