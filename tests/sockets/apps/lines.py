"""Models whose requests are streamed; rows are `{"key": ..., "x": ...}`."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from apps.ledger import note

from modelserve import Limits, Model, ModelServer


class Rows(Model):
    """Lists."""

    def predict(self, payload: dict[str, Any]) -> dict[str, Any]:
        return {"predictions": [{"y": row["x"] * 2} for row in payload["instances"]]}


class Iterates(Model):
    """An async generator that notes how it ends."""

    async def predict(  # type: ignore[override]
        self, instances: AsyncIterator[dict[str, Any]]
    ) -> AsyncIterator[dict[str, Any]]:
        key = None
        try:
            async for row in instances:
                if key is None:
                    key = row.get("key")
                    note(key, "start")
                yield {"y": row["x"] * 2}
        finally:
            note(key, "end")


class IteratesInThread(Model):
    """The same in a thread."""

    def predict(  # type: ignore[override]
        self, instances: Iterator[dict[str, Any]]
    ) -> Iterator[dict[str, Any]]:
        key = None
        try:
            for row in instances:
                if key is None:
                    key = row.get("key")
                    note(key, "start")
                yield {"y": row["x"] * 2}
        finally:
            note(key, "end")


app = ModelServer([Rows("rows"), Iterates("async"), IteratesInThread("sync")])
cut = Iterates("cut")
cut.limits = Limits(send_timeout=0.5)
app.add_model(cut)
