"""The same on Spark: one copy of the model a partition, `mapInPandas`.

Needs Java 17 or newer beside the packages (Debian: apt-get install default-jre-headless).

    pip install 'modelserve[tensors]' scikit-learn pyspark pandas pyarrow

    python examples/09_rows/rows.py 1000000 > rows.jsonl
    python examples/14_offline/spark.py rows.jsonl

The start of the workers included, on 2 cores:

    {'setosa': 307514, 'versicolor': 442251, 'virginica': 250235}: 56186 rows/s
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from pyspark.sql import SparkSession

from modelserve.offline import Runner

MODEL = Path(__file__).parent.parent / "09_rows" / "app.py"


def score(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Tell the species of one partition's lines; runs in Spark's Python workers."""
    from app import Iris  # which `addPyFile` has sent there

    with Runner(Iris("iris")) as run:
        for batch in batches:
            rows = [json.loads(line) for line in batch["value"]]
            yield pd.DataFrame({"species": run({"instances": rows})["predictions"]})


def main() -> None:
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers with the same packages
    settings = {
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
    }
    spark = SparkSession.builder.master("local[2]").config(map=settings).getOrCreate()
    spark.sparkContext.addPyFile(str(MODEL))
    begun = time.monotonic()
    scored = spark.read.text(str(Path(sys.argv[1]).resolve())).mapInPandas(score, "species string")
    found = {row["species"]: row["count"] for row in scored.groupBy("species").count().collect()}
    seconds = time.monotonic() - begun
    spark.stop()
    print(f"{dict(sorted(found.items()))}: {sum(found.values()) / seconds:.0f} rows/s")


if __name__ == "__main__":
    main()
