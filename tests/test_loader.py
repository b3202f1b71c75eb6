import importlib
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelserve.errors import LoadError
from modelserve.loader import load_target, source_folder, users_traceback

SOURCE = """
class App:
    async def __call__(self, scope, receive, send): ...

class Payload: ...

class Echo:
    def predict(self, payload): ...

async def function(scope, receive, send): ...
async def two(scope, receive): ...
async def lenient(scope, receive, send, more=None): ...
def sync(scope, receive, send): ...
async def generator(scope, receive, send):
    yield

app = App()
app.inner = App()
text = "text"
model = Echo()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, the current one, with a module of its own name and a package."""
    known = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "served.py").write_text(SOURCE)
    (tmp_path / "bundle" / "deep").mkdir(parents=True)
    (tmp_path / "bundle" / "__init__.py").touch()
    (tmp_path / "bundle" / "inner.py").write_text(SOURCE)
    (tmp_path / "bundle" / "deep" / "file.py").write_text("import sibling\n" + SOURCE)
    (tmp_path / "bundle" / "deep" / "sibling.py").touch()
    importlib.invalidate_caches()
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("served.py", "served"),
        ("./served.py", "served"),
        ("served.py:app", "served"),
        ("served.py:app.inner", "served"),
        ("served.py:function", "served"),
        ("served.py:lenient", "served"),
        ("served", "served"),
        ("served:app", "served"),
        ("bundle.inner:app.inner", "bundle.inner"),
        ("bundle/inner.py", "inner"),
        ("bundle/deep/file.py:app", "file"),
    ],
)
def test_target(folder: Path, target: str, name: str) -> None:
    app: Any = load_target(target)
    module = sys.modules[name]
    found = [module.app, module.app.inner, module.function, module.lenient]
    assert app in found
    assert target.partition(":")[2] in ("", "app") or app is not module.app


def test_absolute_path(folder: Path) -> None:
    assert load_target(f"{folder}/bundle/deep/file.py") is sys.modules["file"].app
    assert sys.path[0] == f"{folder}/bundle/deep"


def test_the_same_target_again_is_the_same_application(folder: Path) -> None:
    assert load_target("served.py") is load_target("served")


def test_what_a_file_defines_can_be_pickled(folder: Path) -> None:
    load_target("bundle/deep/file.py")
    payload = sys.modules["file"].Payload()
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer))"
    shown = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(payload),
        env={"PYTHONPATH": sys.path[0]},
        capture_output=True,
        check=True,
    ).stdout
    assert shown.startswith(b"<file.Payload object")


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("gone.py", "There is no file {folder}/gone.py."),
        ("gone/served", "There is no file {folder}/gone/served."),
        ("bundle.py:app", "There is no file {folder}/bundle.py."),
        (
            "bundle/deep/",
            "{folder}/bundle/deep is a folder: name a file, or serve its models by --model-dir.",
        ),
        ("gone", "There is no module 'gone': No module named 'gone'."),
        ("gone.inner:app", "There is no module 'gone.inner': No module named 'gone'."),
        (
            "served.inner",
            (
                "There is no module 'served.inner': No module named 'served.inner';"
                " 'served' is not a package."
            ),
        ),
        ("", "'' is neither the name of a module nor the path of a .py file."),
        ("my-app", "'my-app' is neither the name of a module nor the path of a .py file."),
        ("..served", "'..served' is neither the name of a module nor the path of a .py file."),
        (":app", "The target ':app' has no module or file before its colon."),
        ("served.py:", "The target 'served.py:' has no attribute's name after its colon."),
        ("served:make()", "The target 'served:make()' has no attribute's name after its colon."),
        (
            "served.py:gone",
            "There is no attribute 'gone' in served.py; there is served.py:app.",
        ),
        (
            "served:app.gone.app",
            "There is no attribute 'app.gone.app' in served; there is served:app.",
        ),
        (
            "bundle",
            "There is no attribute 'app' in bundle: make one of models by app = ModelServer([...]).",
        ),
        ("served.py:text", "'text' in served.py is an instance of str, not an ASGI application."),
        (
            "served:model",
            (
                "'model' in served is an instance of Echo, not an ASGI application:"
                " ModelServer([...]) makes one of models."
            ),
        ),
        ("served:App", "'App' in served is the class App, not an ASGI application."),
        ("served:two", "'two' in served is the function two, not an ASGI application."),
        ("served:sync", "'sync' in served is the function sync, not an ASGI application."),
        (
            "served:generator",
            "'generator' in served is the function generator, not an ASGI application.",
        ),
    ],
)
def test_one_sentence(folder: Path, target: str, sentence: str) -> None:
    with pytest.raises(LoadError) as caught:
        load_target(target)
    assert str(caught.value) == sentence.format(folder=folder)


@pytest.mark.parametrize("name", ["json", "time", "__main__", "bundle"])
def test_file_with_the_name_of_another_module(folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(SOURCE)
    with pytest.raises(LoadError, match=f"has the name of another module, '{name}'"):
        load_target(f"{name}.py")


@pytest.mark.parametrize("name", ["served.v2.py", "served.txt", "served"])
def test_file_that_is_not_named_like_a_module(folder: Path, name: str) -> None:
    (folder / "bundle" / name).touch()
    with pytest.raises(LoadError, match="is not named like a Python module"):
        load_target(f"bundle/{name}")


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import not_there_at_all", ModuleNotFoundError),
        ("from json import not_there_at_all", ImportError),
        ("import served_too", ModuleNotFoundError),
        ("1 / 0", ZeroDivisionError),
        ("raise SystemExit(7)", SystemExit),
        ("def (", SyntaxError),
    ],
)
def test_what_the_module_raises_passes_through(
    folder: Path, source: str, error: type[BaseException]
) -> None:
    (folder / "broken.py").write_text(f"\n\n{source}\n")
    with pytest.raises(error) as caught:
        load_target("broken.py")
    assert not isinstance(caught.value, LoadError)


def test_traceback_begins_in_the_users_module(folder: Path) -> None:
    (folder / "broken.py").write_text("import broken_too\n")
    (folder / "broken_too.py").write_text("def fail():\n    1 / 0\nfail()\n")
    with pytest.raises(ZeroDivisionError) as caught:
        load_target("broken")
    tests_own = caught.value.__traceback__
    assert tests_own is not None
    frames = traceback.extract_tb(users_traceback(caught.value.with_traceback(tests_own.tb_next)))
    names = [Path(frame.filename).name for frame in frames]
    assert names[0] == "broken.py"
    assert names[-2:] == ["broken_too.py", "broken_too.py"]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("bundle/inner.py:app", "bundle"),
        ("served.py", "."),
        ("served:app", "."),
        ("bundle.inner", "."),
    ],
)
def test_folder_of_a_targets_code(folder: Path, target: str, name: str) -> None:
    (folder / "bundle" / "inner.py").touch()
    assert source_folder(target) == folder / name


def test_folder_of_a_file_that_is_not_there(folder: Path) -> None:
    with pytest.raises(LoadError, match="There is no file"):
        source_folder("gone.py")
