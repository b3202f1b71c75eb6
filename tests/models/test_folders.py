"""The modules of models' folders: what they import of each other, and what pickles of them name."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelserve.models.repository import ModelRepository

ROOT = Path(__file__).parents[2]

MODEL = """
from modelserve import Model
{imports}
class M(Model):
    def load(self):
{load}
        self.ready = True
    def predict(self, payload):
{predict}
"""


def put(
    folder: Path, name: str, *, imports: str = "", load: str = "", predict: str = "pass"
) -> Path:
    home = folder / name
    home.mkdir(parents=True, exist_ok=True)
    text = MODEL.format(
        imports=imports,
        load="\n".join(f"        {line}" for line in load.splitlines()),
        predict="\n".join(f"        {line}" for line in predict.splitlines()),
    )
    (home / "model.py").write_text(text)
    return home


def loaded(repository: ModelRepository, name: str) -> Any:
    assert repository.load(name) is True
    return repository.get_model(name)


@pytest.mark.parametrize(
    ("imports", "predict"),
    [
        ("from features import VALUE", "return VALUE"),
        ("import features", "return features.VALUE"),
        ("import features as f", "return f.VALUE"),
        ("", "import features\nreturn features.VALUE"),
        ("", "from features import VALUE\nreturn VALUE"),
        ("from . import features", "return features.VALUE"),
        ("from .features import VALUE", "return VALUE"),
        ("", "import importlib\nreturn importlib.import_module('features').VALUE"),
        ("import package.inner", "return package.inner.VALUE"),
        ("from package import inner", "return inner.VALUE"),
        ("from package.inner import VALUE", "return VALUE"),
        ("import package.inner as inner", "return inner.VALUE"),
        ("from package import *", "return VALUE"),
        ("from plain.inner import VALUE", "return VALUE"),
        ("", "import importlib\nreturn importlib.import_module('package.inner').VALUE"),
    ],
)
def test_each_model_imports_the_modules_of_its_own_folder(
    imports: str, predict: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        home = put(tmp_path, name, imports=imports, predict=predict)
        (home / "features.py").write_text(f"VALUE = 'of {name}'\n")
        (home / "package").mkdir()
        # a module of a package imports one beside the package
        (home / "package" / "__init__.py").write_text("from features import VALUE\n")
        (home / "package" / "inner.py").write_text("import features\nVALUE = features.VALUE\n")
        (home / "plain").mkdir()
        (home / "plain" / "inner.py").write_text("from features import VALUE\n")
    repository = ModelRepository(tmp_path)
    models = [loaded(repository, name) for name in ("a", "b")]
    for _ in range(2):
        assert [model.predict({}) for model in models] == ["of a", "of b"]


def test_a_folder_of_data_hides_no_package(tmp_path: Path) -> None:
    home = put(tmp_path, "m", imports="import json, numpy", predict="return numpy.__file__")
    (home / "numpy").mkdir()
    (home / "json").mkdir()
    import numpy

    assert loaded(ModelRepository(tmp_path), "m").predict({}) == numpy.__file__


def test_modules_of_a_folder_are_nothing_to_others(tmp_path: Path) -> None:
    home = put(tmp_path, "m", imports="import only_beside_m")
    (home / "only_beside_m.py").write_text("")
    loaded(ModelRepository(tmp_path), "m")
    with pytest.raises(ModuleNotFoundError):
        __import__("only_beside_m")


@pytest.mark.parametrize("module", ["features", "model"])
@pytest.mark.parametrize("reader", ["pickle.loads", "pickle._loads", "joblib_like"])
def test_an_artifact_names_its_classes_as_the_script_that_made_it_did(
    module: str, reader: str, tmp_path: Path
) -> None:
    load = (
        "import pathlib, pickle, copyreg\nimport io\n"
        "joblib_like = lambda data: type('U', (pickle._Unpickler,), {})(io.BytesIO(data)).load()\n"
        f"data = (pathlib.Path(__file__).parent / 'scaler.pkl').read_bytes()\n"
        f"self.scaler = {reader}(data)"
    )
    for name in ("a", "b"):
        home = put(tmp_path, name, load=load, predict="return self.scaler.k")
        (home / "features.py").write_text(f"class Scaler:\n    k = 'of {name}'\n")
        if module == "model":
            text = (home / "model.py").read_text()
            (home / "model.py").write_text(f"{text}\nfrom features import Scaler\n")
        # as `pickle.dump(Scaler())` in a script beside it writes it
        (home / "scaler.pkl").write_bytes(f"c{module}\nScaler\n(t\x81.".encode("latin-1"))
        pickled = b"\x80\x02c" + f"{module}\nScaler\n".encode() + b")\x81."
        (home / "scaler.pkl").write_bytes(pickled)
    repository = ModelRepository(tmp_path)
    models = [loaded(repository, name) for name in ("a", "b")]
    assert [model.predict({}) for model in models] == ["of a", "of b"]


CACHE = "import pathlib, pickle\nfrom features import Beside\nclass Scaler:\n    k = 3\n"
LOAD = (
    "cache = pathlib.Path(__file__).parent / 'cache.pkl'\n"
    "if not cache.exists():\n"
    "    cache.write_bytes(pickle.dumps([Scaler(), Beside()]))\n"
    "self.scaler, self.beside = pickle.loads(cache.read_bytes())\n"
    "assert type(self.scaler) is Scaler and type(self.beside) is Beside"
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m", "v1.2", "a-b", "50%", "ä b"])
def test_what_a_model_has_pickled_is_read_after_a_reload_and_a_restart(
    name: str, tmp_path: Path
) -> None:
    home = put(tmp_path, name, imports=CACHE, load=LOAD, predict="return self.scaler.k")
    (home / "features.py").write_text("class Beside: pass\n")
    repository = ModelRepository(tmp_path)
    for _ in range(3):
        assert loaded(repository, name).predict({}) == 3
    code = (
        "import sys\nfrom modelserve import ModelRepository\n"
        "assert ModelRepository(sys.argv[1]).load(sys.argv[2]) is True"
    )
    python(code, str(tmp_path), name)
    home.parent.rename(tmp_path.parent / f"{tmp_path.name}-moved")
    python(code, f"{tmp_path}-moved", name)


@pytest.mark.parametrize("cwd", [".", "m"])
def test_what_a_model_has_pickled_is_read_by_a_script(cwd: str, tmp_path: Path) -> None:
    home = put(tmp_path, "m", imports=CACHE, load=LOAD)
    (home / "features.py").write_text("class Beside: pass\n")
    loaded(ModelRepository(tmp_path), "m")
    file = str(home / "cache.pkl")
    code = "import pickle, sys\nassert pickle.load(open(sys.argv[1], 'rb'))[0].k == 3"
    python(code, file, cwd=tmp_path / cwd)


def python(code: str, *arguments: str, cwd: Path | None = None) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *arguments]
    subprocess.run(command, check=True, timeout=30, env=environment, cwd=cwd)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_pool_of_processes_finds_the_functions_of_a_folder(method: str, tmp_path: Path) -> None:
    predict = (
        f"with multiprocessing.get_context({method!r}).Pool(1) as pool:\n"
        "    results = [pool.map_async(f, [1, 2]) for f in (double, features.negative)]\n"
        "    return [result.get(20) for result in results]"
    )
    imports = "import multiprocessing, features\ndef double(x):\n    return 2 * x\n"
    for directory in ("one", "two"):  # of the same name, with other functions
        home = put(tmp_path / directory, "m", imports=imports, predict=predict)
        sign = "-" if directory == "one" else "100 - "
        (home / "features.py").write_text(f"def negative(x):\n    return {sign}x\n")
    models = [loaded(ModelRepository(tmp_path / directory), "m") for directory in ("one", "two")]
    assert models[0].predict({}) == [[2, 4], [-1, -2]]
    assert models[1].predict({}) == [[2, 4], [99, 98]]


def test_a_load_that_fails_leaves_the_modules_of_the_model_before(tmp_path: Path) -> None:
    predict = "import pickle\nfrom . import late\nreturn late.VALUE, pickle.dumps(Scaler())"
    imports = "class Scaler: pass"
    home = put(tmp_path, "m", imports=imports, predict=predict)
    (home / "late.py").write_text("VALUE = 1\n")
    repository = ModelRepository(tmp_path)
    model = loaded(repository, "m")
    put(tmp_path, "m", imports=f"{imports}\n1 / 0")
    with pytest.raises(ZeroDivisionError):
        repository.load("m")
    repository.withdraw("m")  # nothing more to go back to
    first = model.predict({})
    put(tmp_path, "m", imports=imports)
    repository.make("m")
    repository.withdraw("m")
    assert model.predict({}) == first
