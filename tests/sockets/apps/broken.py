"""One good model among those that are not ready."""

import anyio
from apps.ledger import note

from modelserve import Model, ModelServer


class Good(Model):
    def predict(self, payload):
        return {"predictions": payload["instances"]}


class Refusing(Good):
    def load(self):
        return False


class Raising(Good):
    def load(self):
        raise RuntimeError("no disk at /secret")


class Waiting(Good):
    async def load(self):
        await anyio.sleep(3600)
        return True

    def predict(self, payload):
        note("waiting", "predict")


app = ModelServer([Refusing("refusing"), Good("good"), Raising("raising"), Waiting("waiting")])
