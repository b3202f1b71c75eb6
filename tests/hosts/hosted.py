"""The application that a host runs: `app`, built as HOSTED in the environment says."""

import os
from collections.abc import Callable
from typing import Any

from hostmodels import serve

__all__ = ["APPLICATIONS", "app"]

MOUNT = "/ml"


def bare() -> Any:
    return serve()


def starlette(lifespan: bool) -> Any:
    from starlette.applications import Starlette
    from starlette.routing import Mount

    models = serve()
    routes = [Mount(MOUNT, app=models)]
    return Starlette(routes=routes, lifespan=models.lifespan if lifespan else None)


def fastapi(lifespan: bool) -> Any:
    from fastapi import FastAPI

    models = serve()
    app = FastAPI(lifespan=models.lifespan if lifespan else None)
    app.mount(MOUNT, models)
    return app


def litestar(lifespan: bool) -> Any:
    from litestar import Litestar, asgi

    models = serve()

    @asgi(MOUNT, is_mount=True, copy_scope=True)
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await models(scope, receive, send)

    return Litestar(route_handlers=[mounted], lifespan=[models.lifespan] if lifespan else [])


def quart(lifespan: bool) -> Any:
    from quart import Quart

    models = serve(prefix=MOUNT)
    app = Quart("hosted")
    of_quart = app.asgi_app

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        own = scope["type"] == "lifespan" or not scope["path"].startswith(f"{MOUNT}/")
        await (of_quart if own else models)(scope, receive, send)

    async def while_serving() -> Any:
        async with models.lifespan():
            yield

    app.asgi_app = asgi_app
    if lifespan:
        app.while_serving(while_serving)
    return app


def django(lifespan: bool) -> Any:
    """Dispatch by hand; Django itself refuses the scope of a lifespan, and may be spared it."""
    from django.conf import settings
    from django.core.asgi import get_asgi_application

    settings.configure(ROOT_URLCONF="hosted", SECRET_KEY="hosted", ALLOWED_HOSTS=["*"])
    models = serve(prefix=MOUNT)
    of_django: Any = get_asgi_application()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await (models if lifespan else of_django)(scope, receive, send)
        else:
            own = not scope["path"].startswith(f"{MOUNT}/")
            await (of_django if own else models)(scope, receive, send)

    return app


def cors() -> Any:
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(serve(), allow_origins=["*"])


def gzip() -> Any:
    from starlette.middleware.gzip import GZipMiddleware

    return GZipMiddleware(serve())


def base() -> Any:
    from starlette.middleware.base import BaseHTTPMiddleware

    async def dispatch(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    return BaseHTTPMiddleware(serve(), dispatch)


APPLICATIONS: dict[str, Callable[[], Any]] = {
    "bare": bare,
    "cors": cors,
    "gzip": gzip,
    "base": base,
    **{
        f"{mount.__name__}{suffix}": lambda mount=mount, lifespan=lifespan: mount(lifespan)
        for mount in (starlette, fastapi, litestar, quart, django)
        for suffix, lifespan in (("", True), ("-without", False))
    },
}
urlpatterns: list[Any] = []  # Django's own

app = APPLICATIONS[os.environ["HOSTED"]]() if "HOSTED" in os.environ else None
