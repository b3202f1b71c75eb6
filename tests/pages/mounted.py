"""The models below a mount of another application, which shows the page there."""

from shown import app as models
from starlette.applications import Starlette
from starlette.routing import Mount

models.playground = True
app = Starlette(routes=[Mount("/deep/er", models)])
