"""Tell the species of irises in a file of any length on Ray Data: one copy of the model an actor.

Shows: the model of examples/09_rows as it is, without a server: `Runner` loads it once an actor and
runs its hooks. Leaves out: several machines (`ray.init` joins a cluster that is running, and the
file has to be where all its nodes can read it), and what to do with a bad row, which fails here:
`run` raises InvalidInput for its batch.

    pip install 'modelserve[tensors]' scikit-learn 'ray[data]'

    python examples/09_rows/rows.py 1000000 > rows.jsonl
    python examples/14_offline/ray_data.py rows.jsonl

The start of the actors included, on 2 cores:

    {'setosa': 307514, 'versicolor': 442251, 'virginica': 250235}: 92422 rows/s
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray

from modelserve.offline import Runner

ROWS = Path(__file__).parent.parent / "09_rows"
sys.path.insert(0, str(ROWS))

from app import Iris

ACTORS = 2


class Score:
    """What an actor does with one batch of lines after another."""

    def __init__(self) -> None:
        self.run = Runner(Iris("iris")).start()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [json.loads(line) for line in batch["text"]]
        return {"species": self.run({"instances": rows})["predictions"]}


def main() -> None:
    # Less than a CPU each: actors that take all of them leave none to read the file, and Ray waits.
    half = {"compute": ray.data.ActorPoolStrategy(size=ACTORS), "num_cpus": 0.5}
    ray.init(num_cpus=ACTORS, include_dashboard=False, runtime_env={"working_dir": str(ROWS)})
    begun = time.monotonic()
    lines = ray.data.read_text(str(Path(sys.argv[1]).resolve()), override_num_blocks=2 * ACTORS)
    scored = lines.map_batches(Score, batch_size=4096, **half)
    found = Counter[str]()
    for batch in scored.iter_batches(batch_size=None):
        found.update(batch["species"].tolist())
    seconds = time.monotonic() - begun
    print(f"{dict(sorted(found.items()))}: {found.total() / seconds:.0f} rows/s")


if __name__ == "__main__":
    main()
