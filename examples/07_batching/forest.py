"""Classify handwritten digits by a random forest of scikit-learn's, batched and not.

Shows: `batching`, with which `predict` is called once for the instances of many requests, though it
is written as for one; V1 and V2. Leaves out: a model from a file. The forest is grown when the
model is loaded, from scikit-learn's own pictures, of 8 x 8 pixels.

    pip install 'modelserve[tensors]' scikit-learn
    modelserve examples/07_batching/forest.py

    python examples/07_batching/measure.py forest
"""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

from modelserve import Batching, InvalidInput, Limits, Model, ModelServer

PIXELS = 64


class Forest(Model):
    """A call takes milliseconds, most of them for its hundred trees and not for its rows."""

    def load(self) -> None:
        digits = load_digits()
        self.forest = RandomForestClassifier(100, random_state=0)
        self.forest.fit(digits.data, digits.target)
        self.ready = True

    def preprocess(self, payload: Any) -> Any:
        """Refuse what is no picture here: it is then nobody else's concern."""
        rows = np.asarray(payload["instances"], dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != PIXELS:
            raise InvalidInput(f"An instance is a list of {PIXELS} numbers.")
        return payload

    def predict(self, payload: Any) -> Any:
        rows = np.asarray(payload["instances"], dtype=np.float32)
        return {"predictions": self.forest.predict(rows)}


class Batched(Forest):
    batching = Batching(max_size=32)


class OneByOne(Forest):
    limits = Limits(concurrency=1)


app = ModelServer([Batched("digits"), OneByOne("digits-one-by-one")])
