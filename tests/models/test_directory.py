"""Which names a directory has a model for, and what a `model.py` may hold."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from modelserve import Model, ModelServer
from modelserve.errors import ModelNotFound
from modelserve.models.repository import ModelRepository

ECHO = """
from modelserve import Model

class Echo(Model):
    def predict(self, payload):
        return {"name": self.name, "answer": 1}
"""

OBJECT = """
class Echo:
    def __init__(self, name):
        self.name = name

    def predict(self, payload):
        return {"name": self.name, "answer": 1}

def load(path, name):
    return Echo(name)
"""


def put(folder: Path, name: str, text: str = ECHO, file: str = "model.py") -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / name / file
    path.write_text(text)
    return path


def answer_of(model: Any) -> Any:
    return model.predict({})


# --- what is found ------------------------------------------------------------------------------


def test_folders_with_a_model_are_found(tmp_path: Path) -> None:
    for name in ("b", "a", ".git", "..data", "x:y"):
        put(tmp_path, name)
    put(tmp_path, "__pycache__", file="other.py")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert ModelRepository(tmp_path).names() == ["a", "b", "link"]


def test_the_folders_of_a_mounted_config_map_are_found(tmp_path: Path) -> None:
    put(tmp_path, "..2024_01_01/a")
    (tmp_path / "..data").symlink_to("..2024_01_01")
    (tmp_path / "a").symlink_to("..data/a")
    assert ModelRepository(tmp_path).names() == ["a"]
    assert answer_of(ModelRepository(tmp_path).make("a"))["answer"] == 1


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path / "none")
    for ask in (repository.names, repository.load_models):
        with pytest.raises(FileNotFoundError):
            ask()
    assert not repository.has("m")
    with pytest.raises(FileNotFoundError):
        ModelServer(repository=repository)


@pytest.mark.parametrize(
    ("given", "service", "name"),
    [("given", "service", "given"), (None, "service", "service"), (None, None, "folder")],
)
def test_a_model_py_in_the_directory_itself_is_its_one_model(
    given: str | None,
    service: str | None,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("INFERENCE_SERVICE_NAME", raising=False)
    if service is not None:
        monkeypatch.setenv("INFERENCE_SERVICE_NAME", service)
    put(tmp_path, "folder", "import words\n" + ECHO.replace("1", "words.answer"))
    put(tmp_path, "folder", "answer = 1", file="words.py")
    put(tmp_path, "folder/checkpoint")  # files of the model's own
    repository = ModelRepository(tmp_path / "folder", given)
    assert repository.names() == [name]
    assert repository.has(name)
    assert not repository.has("checkpoint")
    assert answer_of(repository.make(name)) == {"name": name, "answer": 1}
    with pytest.raises(ModelNotFound):
        repository.make("checkpoint")
    (tmp_path / "folder" / "model.py").unlink()
    assert repository.names() == ["checkpoint"]


def test_a_model_py_that_is_a_link_out_of_the_directory_is_not_run(tmp_path: Path) -> None:
    outside = put(tmp_path, "outside")
    put(tmp_path, "dir/m")
    (tmp_path / "dir" / "model.py").symlink_to(outside)
    assert ModelRepository(tmp_path / "dir").names() == ["m"]


STRANGE = [
    "",
    ".",
    "..",
    "../m",
    "../../etc",
    "m/../m",
    "./m",
    "m/",
    "/m",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "\\\\host\\m",
    "c:m",
    ".hidden",
    "m\0",
    "\0",
    "m\n",
    "x" * 5000,
    "\ufffd" * 300,
]


@pytest.mark.parametrize("name", STRANGE)
def test_names_that_lead_elsewhere_are_not_found(name: str, tmp_path: Path) -> None:
    put(tmp_path, "m")
    put(tmp_path, "dir/m")
    put(tmp_path, "dir/a/b")
    put(tmp_path, "dir/.hidden")
    repository = ModelRepository(tmp_path / "dir")
    assert not repository.has(name)
    for ask in (repository.make, repository.provide, repository.load, repository.load_model):
        with pytest.raises(ModelNotFound):
            ask(name)


def test_an_absolute_name_is_not_found(tmp_path: Path) -> None:
    put(tmp_path, "dir/m")
    with pytest.raises(ModelNotFound):
        ModelRepository(tmp_path / "dir").make(str(tmp_path / "dir" / "m"))


def test_links_that_leave_the_directory_are_not_followed(tmp_path: Path) -> None:
    outside = put(tmp_path, "outside")
    put(tmp_path, "dir/file").unlink()
    (tmp_path / "dir/file/model.py").symlink_to(outside)
    (tmp_path / "dir/folder").symlink_to(outside.parent)
    (tmp_path / "dir/up").symlink_to("..")
    (tmp_path / "dir/round").symlink_to("round")
    repository = ModelRepository(tmp_path / "dir")
    assert repository.names() == []
    for name in ("file", "folder", "up", "round"):
        with pytest.raises(ModelNotFound):
            repository.make(name)


# --- what a model.py may have -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        ECHO,
        "def load(path, name):\n    return lambda payload: {'name': name, 'answer': 1}",
        ECHO + "def load(path, name):\n    return Echo(name)",
        ECHO + "class Other(Model): pass\ndef load(path, name):\n    return Echo(name)",
        OBJECT,
        "from modelserve import Model\nclass Base(Model): pass\n"
        + ECHO.replace("(Model)", "(Base)"),
        "from .other import answer\n" + ECHO.replace("1", "answer"),
    ],
    ids=["class", "function", "both", "several", "object", "derived", "relative import"],
)
def test_what_makes_a_model(text: str, tmp_path: Path) -> None:
    put(tmp_path, "m", text)
    put(tmp_path, "m", "answer = 1", file="other.py")
    put(tmp_path, "n", "answer = 2", file="other.py")
    model = ModelRepository(tmp_path).make("m")
    assert isinstance(model, Model)
    assert not model.ready
    assert answer_of(model) == {"name": "m", "answer": 1}


def test_load_is_given_the_folder_and_the_name(tmp_path: Path) -> None:
    put(tmp_path, "m", "def load(path, name):\n    text = (path / 'x.txt').read_text()\n"
        "    return lambda payload: [name, text]")  # fmt: skip
    put(tmp_path, "m", "weights", file="x.txt")
    assert answer_of(ModelRepository(str(tmp_path)).make("m")) == ["m", "weights"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "needs a function load(path, name) or one subclass of Model, and has 0 subclasses"),
        ("from modelserve import Model", "and has 0 subclasses"),
        (ECHO + "class Other(Model): pass", "and has 2 subclasses"),
        ("async def load(path, name): pass", "must not be async"),
        ("def load(path, name): return 5", "5 is no model"),
        ("def load(path): return 5", "load() takes 1 positional argument"),
    ],
)
def test_what_makes_no_model(text: str, problem: str, tmp_path: Path) -> None:
    put(tmp_path, "m", text)
    with pytest.raises(TypeError) as caught:
        ModelRepository(tmp_path).make("m")
    assert problem in str(caught.value)


def test_a_model_py_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    put(tmp_path, "broken", "from . import other\n1 / 0")
    put(tmp_path, "broken", "", file="other.py")
    with pytest.raises(ZeroDivisionError):
        ModelRepository(tmp_path).make("broken")
    assert imported("broken") == []


def test_each_load_runs_the_files_anew(tmp_path: Path) -> None:
    repository = ModelRepository(tmp_path)
    times = (1_000_000_000,) * 2
    for number in range(5):  # of the same size, and within the same second
        os.utime(put(tmp_path, "again", ECHO.replace("1", str(number))), times)
        assert repository.load("again") is True
        assert answer_of(repository.get_model("again"))["answer"] == number
    assert len(imported("again")) == 2  # a package and its model.py


def imported(name: str) -> list[str]:
    return [module for module in sys.modules if f".folders.{name}@" in module]
