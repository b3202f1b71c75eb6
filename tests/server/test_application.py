from typing import Any

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Mount, Route, Router

from modelserve import ModelServer
from modelserve.server.application import find_drainables


async def endpoint(scope: Any, receive: Any, send: Any) -> None: ...


def test_model_servers_are_found_wherever_they_are_mounted() -> None:
    one, two = ModelServer(), ModelServer()
    inner = Router([Mount("/two", app=CORSMiddleware(two)), Route("/x", endpoint)])
    app = Starlette(routes=[Mount("/one", app=one), Mount("/in", app=inner), Mount("/1", app=one)])
    assert find_drainables(one) == [one.serving]
    assert set(find_drainables(CORSMiddleware(app))) == {one.serving, two.serving}
    assert len(find_drainables(app)) == 2
    assert find_drainables(endpoint) == []


def test_an_application_with_another_idea_of_serving_is_none_of_ours() -> None:
    class Other:
        serving = True
        app = None

    assert find_drainables(Other()) == []
