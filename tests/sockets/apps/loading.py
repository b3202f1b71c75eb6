"""A model whose loading blocks for a second."""

import time

from modelserve import Model, ModelServer


class Slow(Model):
    def load(self):
        time.sleep(1.5)
        self.ready = True
        return True

    def predict(self, payload):
        return payload


app = ModelServer([Slow("slow")])
