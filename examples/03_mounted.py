"""Mount a model server into a Starlette application that has other routes.

Shows: `Mount`, the model server's lifespan run by the host, limits for one model. FastAPI takes
the same two lines: `FastAPI(lifespan=models.lifespan)` and `app.mount("/ml", models)`. Leaves out:
authentication, which is left to the host.

    uvicorn --app-dir examples 03_mounted:app    # or modelserve examples/03_mounted.py --port 8000

    curl localhost:8000/
    curl localhost:8000/ml/v1/models/shout:predict -d '{"instances": ["hello"]}'
"""

from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from modelserve import Limits, Model, ModelServer, instances


class Shout(Model):
    limits = Limits(concurrency=4, timeout=10)

    async def predict(self, payload: Any) -> dict[str, list[str]]:
        return {"predictions": [text.upper() for text in instances(payload, str)]}


async def home(request: Request) -> PlainTextResponse:
    return PlainTextResponse("models are served below /ml\n")


models = ModelServer([Shout("shout")])
app = Starlette(
    routes=[Route("/", home), Mount("/ml", app=models)],
    lifespan=models.lifespan,
)
