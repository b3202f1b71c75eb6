"""Tell the species of irises in a file of any length, by a model of scikit-learn's.

Shows: a `predict` that is written for one request, and answers a million rows in one request, with
the memory of 256; a bad row that fails alone, in its place. Leaves out: a model from a file (this
one is fitted when it is loaded, from the table that comes with scikit-learn), and `Batching`, with
which the rows would join those of other requests.

    pip install 'modelserve[tensors,client]' scikit-learn
    modelserve examples/09_rows/app.py

    python examples/09_rows/rows.py 1000000 > rows.jsonl
    curl -N -T - -X POST -H 'Content-Type: application/x-ndjson' \
        localhost:8080/v1/models/iris:predict < rows.jsonl > species.jsonl
    modelserve call localhost:8080 iris < rows.jsonl > species.jsonl

    python examples/09_rows/measure.py 1000000
"""

from typing import Any

import numpy as np
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelserve import InvalidInput, Model, ModelServer, instances

MEASURES = 4  # length and width of sepal and petal, in cm


class Iris(Model):
    def load(self) -> None:
        irises = load_iris()
        self.names = irises.target_names
        self.pipeline = make_pipeline(StandardScaler(), LogisticRegression())
        self.pipeline.fit(irises.data, irises.target)
        self.ready = True

    def predict(self, payload: Any) -> Any:
        try:
            rows = np.asarray(instances(payload), dtype=np.float64)
        except (TypeError, ValueError):
            rows = np.empty(0)
        if rows.ndim != 2 or rows.shape[1] != MEASURES or not np.isfinite(rows).all():
            raise InvalidInput(f"An instance is a list of {MEASURES} numbers.")
        return {"predictions": self.names[self.pipeline.predict(rows)].tolist()}


app = ModelServer([Iris("iris")])
