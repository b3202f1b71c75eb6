"""Forward a model's payloads to a predictor or an explainer (KServe's transformers).

The answer is what a hook would return. `http` and `grpc` call a predictor, by its protocol; each is
imported by the first call that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from modelserve.concurrency.loops import current_loop
from modelserve.errors import PredictorError, ServingError, UnsupportedProtocol
from modelserve.models.predictor import config_of
from modelserve.models.remote.calls import Caller, Incoming, logger

if TYPE_CHECKING:
    from modelserve.models.remote.http import HttpCaller

__all__ = ["Remote", "connect", "disconnect"]


class Remote:
    """The connections of one model to its predictor and its explainer.

    Each event loop has its own of each kind, made by the first call.
    """

    def __init__(self) -> None:
        self._callers: WeakKeyDictionary[Any, dict[Callable[[], Caller], Caller]]
        self._callers = WeakKeyDictionary()

    def __reduce__(self) -> Any:
        return Remote, ()  # models are pickled for worker processes; connections cannot be

    async def predict(
        self, model: Any, payload: Any, headers: Any, response_headers: Any, *, sets_type: bool
    ) -> Any:
        """Send a payload to a model's predictor; return the answer, or an async iterator of items.

        With `sets_type`, `response_headers` gets the content type of an answer that is bytes.
        Cancellation ends the call. Raises HookMissing or ExtraMissing if a package is missing,
        UnsupportedProtocol, PredictorError, and InvalidInput for a payload that cannot be sent.
        """
        config = config_of(model)
        assert config is not None
        caller = self._caller(config.protocol)
        answer = await caller.predict(config, model.name, payload, Incoming.of(headers))
        if response_headers is not None:
            if sets_type and answer.content_type is not None:
                response_headers.setdefault("content-type", answer.content_type)
            if model.return_response_headers:
                response_headers.update(answer.headers)
        return answer.result

    async def explain(self, model: Any, payload: Any, headers: Any) -> Any:
        """Send a payload to a model's explainer, which speaks V1; otherwise as `predict`."""
        config = config_of(model, explainer=True)
        assert config is not None
        caller: HttpCaller = self._caller(config.protocol)
        return (await caller.explain(config, model.name, payload, Incoming.of(headers))).result

    async def is_ready(self, model: Any) -> bool:
        """Return whether a model's predictor says that its model of this name is ready.

        False for a predictor that cannot be asked; the log says why.
        """
        config = config_of(model)
        assert config is not None
        try:
            caller: Caller = self._caller(config.protocol)
            return await caller.is_ready(config, model.name)
        except PredictorError:  # it is in the log
            return False
        except ServingError as exc:
            logger.warning("The predictor of model %s cannot be asked: %s", model.name, exc)
            return False

    async def close(self) -> None:
        """Close the connections of this event loop."""
        async with AsyncExitStack() as stack:  # the others are closed even if one fails
            for caller in self._callers.pop(current_loop(), {}).values():
                stack.push_async_callback(caller.close)

    def _caller(self, protocol: str) -> Any:
        make = _CALLERS.get(protocol)
        if make is None:
            raise UnsupportedProtocol(protocol)
        callers = self._callers.setdefault(current_loop(), {})
        caller = callers.get(make)
        if caller is None:
            caller = callers[make] = make()
        return caller


def connect(model: Any) -> None:
    """Enable a model to call its predictor. No connection is made before the first call."""
    if vars(model).get("_remote") is None:
        model._remote = Remote()


async def disconnect(model: Any) -> None:
    """Close the connections of this event loop to a model's predictor, if there are any."""
    remote = vars(model).get("_remote")
    if remote is not None:
        await remote.close()


def _http_caller() -> Caller:
    from modelserve.models.remote.http import HttpCaller

    return HttpCaller()


def _grpc_caller() -> Caller:
    from modelserve.models.remote.grpc import GrpcCaller

    return GrpcCaller()


# By the protocol of the predictor.
_CALLERS: Final[Mapping[str, Callable[[], Caller]]] = {
    "v1": _http_caller,
    "v2": _http_caller,
    "grpc-v2": _grpc_caller,
}
