"""A custom predictor: it names a flower by four measures, as that of the nearest centre.

before.py is a program for KServe, after.py the same program on modelserve. Only the imports differ.
README.md lists what they do differently. Both need numpy (pip install 'modelserve[tensors]').

    python after.py --model_name flowers --http_port 8080
"""

import argparse
from math import dist
from typing import Any

from kserve import InferRequest, InferResponse, Model, ModelServer, logging, model_server
from kserve.errors import InvalidInput
from kserve.logging import logger
from kserve.utils.utils import get_predict_input, get_predict_response


class Flowers(Model):
    def __init__(self, name: str) -> None:
        super().__init__(name, return_response_headers=True)
        self.centres: dict[str, list[float]] = {}

    def load(self) -> bool:
        self.centres["setosa"] = [5.0, 3.4, 1.5, 0.2]
        self.centres["versicolor"] = [5.9, 2.8, 4.3, 1.3]
        self.centres["virginica"] = [6.6, 3.0, 5.6, 2.0]
        self.ready = True
        logger.info("Model %s is loaded", self.name)
        return self.ready

    def preprocess(
        self, payload: dict[str, Any] | InferRequest, headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferRequest:
        shape = get_predict_input(payload).shape
        if shape[1:] != (4,):
            raise InvalidInput(f"a flower has 4 measures; the input has the shape {shape}")
        return payload

    def predict(
        self,
        payload: dict[str, Any] | InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        distances = self.distances(payload)
        if response_headers is not None:
            response_headers["x-farthest"] = str(max(min(row.values()) for row in distances))
        nearest = [min(row, key=row.__getitem__) for row in distances]
        return get_predict_response(payload, nearest, self.name)

    def explain(
        self, payload: dict[str, Any], headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        return {"explanations": self.distances(payload)}

    def distances(self, payload: dict[str, Any] | InferRequest) -> list[dict[str, float]]:
        rows = get_predict_input(payload).tolist()
        return [{k: round(dist(row, c), 2) for k, c in self.centres.items()} for row in rows]


parser = argparse.ArgumentParser(parents=[model_server.parser])
args, _ = parser.parse_known_args()

if __name__ == "__main__":
    if args.configure_logging:
        logging.configure_logging(args.log_config_file)
    model = Flowers(args.model_name)
    model.load()
    ModelServer().start([model])
