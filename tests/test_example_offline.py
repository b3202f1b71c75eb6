"""The examples that score a file of rows on Ray Data and on Spark.

    pip install -e '.[test]' 'ray[data]' scikit-learn pyspark && pytest -m ray tests/test_example_offline.py

Spark needs Java.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from modelserve.offline import Runner

ROOT = Path(__file__).parent.parent
FOLDER = next((ROOT / "examples").glob("*_offline"))
ROWS = next((ROOT / "examples").glob("*_rows"))
COUNT = 20_000

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),  # scikit-learn's
]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of rows, as the examples take it."""
    path = tmp_path_factory.mktemp("offline") / "rows.jsonl"
    with path.open("wb") as target:
        subprocess.run([sys.executable, ROWS / "rows.py", str(COUNT)], stdout=target, check=True)
    return path


@pytest.mark.parametrize("program", ["ray_data", "spark"])
def test_all_rows_are_scored(
    rows: Path, program: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("ray.data" if program == "ray_data" else "pyspark")
    if program == "spark" and shutil.which("java") is None:
        pytest.skip("Java is not installed")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
    }
    done = subprocess.run(
        [sys.executable, FOLDER / f"{program}.py", rows],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"^(\{.*\}): (\d+) rows/s$", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    assert int(found[2]) > 0
    assert ast.literal_eval(found[1]) == scored_here(rows, monkeypatch)


def scored_here(rows: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return what the model says in this process, where it is given all rows at once."""
    monkeypatch.syspath_prepend(ROWS)
    monkeypatch.delitem(sys.modules, "app", raising=False)
    from app import Iris

    with Runner(Iris("iris")) as run:
        instances = [json.loads(line) for line in rows.read_text().splitlines()]
        species = run({"instances": instances})["predictions"]
    monkeypatch.delitem(sys.modules, "app")
    assert len(species) == COUNT
    return dict(Counter(species))
