"""`GET /openapi.json`: the document of an application's API, as it is right now.

It is made at a request, in a thread, and kept until a model is registered, loaded or removed, or
anything else in it changes. The modules that make it are imported then.
"""

from collections.abc import Sequence
from typing import Any, Final

import orjson

from modelserve.endpoints import Target
from modelserve.exchange.exchange import Exchange
from modelserve.lifespan import Serving
from modelserve.models.registry import Entry
from modelserve.wire.headers import JSON
from modelserve.wire.json import to_json

__all__ = ["KeptDocuments", "document_of", "merged", "openapi"]

_MOUNTS: Final = 16  # paths below which an application's document is requested


async def openapi(serving: Serving, target: Target, exchange: Exchange) -> None:
    """GET /openapi.json."""
    exchange.ignore_body()
    kept = serving.documents
    if kept is None:
        kept = serving.documents = KeptDocuments(serving)
    body = await kept.body(serving.table.base_of(exchange.scope))
    exchange.check_reason()
    await exchange.send_document(200, [JSON], [body])


def document_of(serving: Serving, *, base: str = "", prefix: str = "") -> dict[str, Any]:
    """Return the OpenAPI document of an application.

    Args:
        base: The path below which it is requested, which is in `servers`.
        prefix: The beginning of all paths instead, for a document of several applications.
    """
    document: dict[str, Any] = orjson.loads(_written(serving, base=base, prefix=prefix))
    return document


def merged(host: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a host with another one added."""
    components = dict(host.get("components", {}))
    for kind, parts in document["components"].items():
        components[kind] = {**components.get(kind, {}), **parts}
    known = {tag["name"] for tag in host.get("tags", ())}
    tags = [tag for tag in document["tags"] if tag["name"] not in known]
    return {
        **host,
        "paths": {**host.get("paths", {}), **document["paths"]},
        "components": components,
        "tags": [*host.get("tags", ()), *tags],
    }


class KeptDocuments:
    """The documents of one application, encoded, by the path that it is mounted below."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._made_of: list[Any] = []
        self._bodies: dict[str, bytes] = {}

    async def body(self, base: str) -> bytes:
        """Return the document; a change of the models while it is made is in the next one."""
        made_of = self._state()
        if made_of != self._made_of:
            self._made_of, self._bodies = made_of, {}
        bodies = self._bodies
        body = bodies.get(base)
        if body is None:
            body = await self._serving.scraper.call("openapi", self._make, bodies, base)
        return body

    def _state(self) -> list[Any]:
        serving = self._serving
        models = [
            (name, id(entry), id(entry.plans), entry.is_awaited, bool(entry.model.ready))
            for name, entry in _models(serving)
        ]
        control, has_token = serving.is_controllable, serving.token is not None
        return [*models, *serving.table.aliases.items(), control, has_token]

    def _make(self, bodies: dict[str, bytes], base: str) -> bytes:
        """Make the document, unless an earlier request has: one thread makes all of them."""
        body = bodies.get(base)
        if body is None:
            body = _written(self._serving, base=base)
            if len(bodies) < _MOUNTS:
                bodies[base] = body
        return body


def _written(serving: Serving, **where: str) -> bytes:
    from modelserve.pages.description import describe

    return to_json(describe(serving, serving.table.rows, _models(serving), **where))


def _models(serving: Serving) -> Sequence[tuple[str, Entry]]:
    return list(serving.registry.entries.items())
