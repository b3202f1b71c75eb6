"""The `Model` base class, what a hook may be, and a function or any object as a model.

All that can be known of a hook is found out here, once, when its model is registered: whether it
runs on the event loop or in a thread, whether it is known to stream, and which of payload, headers
and response headers it takes.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from modelserve.limits import Limits
from modelserve.models.predictor import PredictorConfig, config_of

if TYPE_CHECKING:
    from modelserve.models.remote import Remote

__all__ = ["Hook", "Model", "Plan", "as_model", "plan_of"]

STREAMING_HOOKS: Final = ("predict", "explain", "postprocess")
HOOKS: Final = ("preprocess", *STREAMING_HOOKS)
_SETTINGS: Final = (
    "coalesce",
    "heartbeat",
    "heartbeat_before_first",
    "limits",
    "platform",
    "ready",
    "versions",
)
LIFECYCLE: Final = ("load", "start", "stop", "start_engine", "stop_engine", "healthy")
_METADATA: Final = ("get_input_types", "get_output_types")


class Model:
    """Serve a model: override `predict`, and whatever else it needs.

    Attributes:
        ready: Whether requests are taken; `load` sets it.
        limits: Limits of this model's own, within the application's.
        coalesce: Send items that are made without a pause in one event; None leaves it to the
            application. Off, one item is one event.
        heartbeat: Seconds without an item after which a client whose `Accept` names SSE or NDJSON
            is sent a comment or a blank line; None for never.
        heartbeat_before_first: Begin before the first item, which commits the status to 200.
        versions: The versions that V2's versioned paths serve; None for no such paths.
        platform: What V2's metadata says of it.
        predictor_host: Where `predict`, unless overridden, sends its payload on to; `host[:port]`.
        explainer_host: The same for `explain`.
        protocol: What the predictor speaks, "v1" or "v2".
        use_ssl: Call it over TLS.
        timeout: Seconds that it has to answer in.
        retries: How often a connection to it is tried again.

    `preprocess`, `predict`, `explain` and `postprocess` may be sync or async and take as many of
    `(payload, headers, response_headers)` as they declare. The last three may yield: their items
    are streamed. Sync hooks run in worker threads. A hook that is cancelled (the client has left,
    a deadline has passed, the server stops) is told once; what its `finally` awaits completes.
    """

    engine: bool = False
    limits: Limits | None = None
    coalesce: bool | None = None
    heartbeat: float | None = None
    heartbeat_before_first: bool = False
    versions: Sequence[str] | None = None
    platform: str = ""
    predictor_host: str | None = None
    explainer_host: str | None = None
    protocol: str = "v1"
    use_ssl: bool = False
    timeout: float = 600
    retries: int = 0
    _remote: "Remote | None" = None  # what calls the predictor: the registry's to give

    def __init__(self, name: str, return_response_headers: bool = False) -> None:
        self.name = name
        self.ready = False
        self.return_response_headers = return_response_headers

    @property
    def predictor_config(self) -> PredictorConfig | None:
        """Where the predictor is and how it is called, all in one; None where there is none."""
        return config_of(self)

    @predictor_config.setter
    def predictor_config(self, config: PredictorConfig) -> None:
        self.predictor_host = config.predictor_host
        self.protocol = config.protocol
        self.use_ssl = config.use_ssl
        self.timeout = config.timeout
        self.retries = config.retries

    def load(self) -> Any:
        """Make the model ready; return False if it is not. Sync (in a thread) or async."""
        self.ready = True
        return True

    def start(self) -> Any:
        """Set up before loading. Sync (in a thread) or async."""

    def stop(self) -> Any:
        """Tear down after the last request. Sync (in a thread) or async."""

    async def start_engine(self) -> None:
        """Start an engine on the event loop before loading, where `engine` is true."""

    def stop_engine(self) -> Any:
        """Stop the engine, where `engine` is true."""

    async def healthy(self) -> bool:
        """Say whether the model can answer now; its readiness unless overridden."""
        return bool(self.ready)

    def get_input_types(self) -> Any:
        """Return V2's metadata of the inputs: name, datatype and shape of each."""
        return []

    def get_output_types(self) -> Any:
        """Return V2's metadata of the outputs."""
        return []

    def _remote_for(self, verb: str, host: str | None) -> "Remote":
        if not host:
            raise NotImplementedError(f"Model {self.name} does not implement {verb}.")
        if self._remote is None:
            raise RuntimeError(
                f"Model {self.name} must be registered with a ModelServer to call its predictor."
            )
        return self._remote

    if TYPE_CHECKING:
        # To a type checker a hook may be overridden by any kind of function.
        def preprocess(self, *args: Any, **kwargs: Any) -> Any: ...
        def predict(self, *args: Any, **kwargs: Any) -> Any: ...
        def explain(self, *args: Any, **kwargs: Any) -> Any: ...
        def postprocess(self, *args: Any, **kwargs: Any) -> Any: ...

    else:

        async def preprocess(self, payload, headers=None):
            """Turn the request's payload into what `predict` takes."""
            return payload

        async def predict(self, payload, headers=None, response_headers=None):
            """Return the answer, or yield the items of one; unless overridden, the predictor's."""
            remote = self._remote_for("predict", self.predictor_host)
            sets_type = not defines(self, "postprocess")
            return await remote.predict(
                self, payload, headers, response_headers, sets_type=sets_type
            )

        async def explain(self, payload, headers=None):
            """Return an explanation, or yield the items of one; as `predict`, the explainer's."""
            remote = self._remote_for("explain", self.explainer_host)
            return await remote.explain(self, payload, headers)

        async def postprocess(self, result, headers=None, response_headers=None):
            """Turn what `predict` returned into the answer; an async iterator if it streams."""
            return result


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of one model, with all that registration could settle.

    `call(payload, headers, response_headers)` passes on what the hook declares; `function` is the
    hook itself. `is_direct` says that it is an async function, and no generator. Pickled as its
    model and its name, and settled anew.
    """

    model: Any
    name: str
    function: Callable[..., Any]
    call: Callable[[Any, Any, Any], Any]
    on_loop: bool
    is_async_generator: bool
    is_direct: bool
    streams: bool
    wants_headers: bool
    wants_response_headers: bool

    @property
    def wants_payload_alone(self) -> bool:
        return not (self.wants_headers or self.wants_response_headers)

    def __reduce__(self) -> tuple[Any, ...]:
        return _hook, (self.model, self.name)


@dataclass(frozen=True, slots=True)
class Plan:
    """The hooks that one verb of one model runs, in order.

    `is_direct` says that there is but one, an async function.
    """

    preprocess: Hook | None
    main: Hook
    postprocess: Hook | None
    is_direct: bool
    streams: bool
    wants_headers: bool
    wants_response_headers: bool


def plan_of(model: Any, verb: str) -> Plan:
    """Settle the hooks of `predict` or `explain`.

    Raises TypeError, in one sentence, for a hook that cannot be served.
    """
    main = _hook(model, verb)
    preprocess = _hook(model, "preprocess") if defines(model, "preprocess") else None
    postprocess = _hook(model, "postprocess") if defines(model, "postprocess") else None
    hooks = [hook for hook in (preprocess, main, postprocess) if hook is not None]
    if postprocess and main.streams and postprocess.streams and not postprocess.is_async_generator:
        raise TypeError(
            f"postprocess of model {model.name!r} is a sync generator, and {verb} streams: "
            "what wraps a stream must be an async generator"
        )
    return Plan(
        preprocess,
        main,
        postprocess,
        is_direct=hooks == [main] and main.is_direct,
        streams=any(hook.streams for hook in hooks) and (postprocess is None or hooks[-1].streams),
        wants_headers=any(hook.wants_headers for hook in hooks),
        wants_response_headers=any(hook.wants_response_headers for hook in hooks),
    )


def check_lifecycle(model: Any) -> None:
    """Raise TypeError for a hook that must not be a generator."""
    for name in (*LIFECYCLE, *_METADATA):
        bare = _without_partial(getattr(model, name, None))
        if inspect.isasyncgenfunction(bare) or inspect.isgeneratorfunction(bare):
            raise TypeError(f"{name} of model {model.name!r} must not be a generator")


def as_model(target: Any, name: str | None = None) -> Any:
    """Return a model made of a function, a class, or any object with a `predict`.

    Raises TypeError where there is nothing to call.
    """
    if isinstance(target, type):
        target = target(name) if issubclass(target, Model) else target()  # type: ignore[arg-type]
    if isinstance(target, Model):
        return target
    name = name or getattr(target, "name", None)
    hooks = {
        hook: getattr(target, hook)
        for hook in (*HOOKS, *LIFECYCLE, *_METADATA)
        if hasattr(target, hook)
    }
    if "predict" not in hooks:
        if not callable(target):
            raise TypeError(f"{target!r} is no model: it is not callable and has no predict")
        hooks["predict"] = target
    model = Model(name)  # type: ignore[arg-type]  # whoever registers it looks at the name
    vars(model).update(hooks, engine=getattr(target, "engine", False))
    vars(model).update(
        {
            key: getattr(target, key)
            for key in ("limits", "coalesce", "ready")
            if hasattr(target, key)
        }
    )
    return model


def defines(model: Any, hook: str) -> bool:
    """Say whether a model has a hook of its own."""
    own = getattr(type(model), hook, None)
    return hook in vars(model) or own is not getattr(Model, hook)


def _hook(model: Any, name: str) -> Hook:
    function = getattr(model, name)
    bare = _without_partial(function)
    is_async_generator = inspect.isasyncgenfunction(bare)
    streams = is_async_generator or inspect.isgeneratorfunction(bare)
    if streams and name not in STREAMING_HOOKS:
        raise TypeError(f"{name} of model {model.name!r} must not be a generator")
    wanted = _wanted(function, f"{name} of model {model.name!r}")
    on_loop = is_async_generator or inspect.iscoroutinefunction(bare)
    return Hook(
        model,
        name,
        function,
        _bind(function, wanted),
        on_loop=on_loop,
        is_async_generator=is_async_generator,
        is_direct=on_loop and not is_async_generator,
        streams=streams,
        wants_headers="headers" in wanted,
        wants_response_headers="response_headers" in wanted,
    )


def _without_partial(function: Any) -> Any:
    """Return what is called in the end: of a partial its function, of an object its `__call__`."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        return getattr(function, "__call__", function)  # noqa: B004 - to inspect, not to test
    return function


# --- which arguments a hook takes ---------------------------------------------------------------

_NAMED: Final = ("headers", "response_headers")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What goes in: these by position, in order, and these by name."""

    by_position: tuple[str, ...]
    by_name: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.by_position or name in self.by_name


_PAYLOAD_ALONE: Final = _Wanted(("payload",), ())


def _bind(function: Callable[..., Any], wanted: _Wanted) -> Callable[[Any, Any, Any], Any]:
    """Return a function of all three arguments that passes on those that are wanted."""
    if wanted == _PAYLOAD_ALONE:
        return lambda payload, headers, response_headers: function(payload)
    if wanted == _Wanted(("payload",), ("headers",)):
        return lambda payload, headers, response_headers: function(payload, headers=headers)
    if wanted == _Wanted(("payload",), ("headers", "response_headers")):
        return lambda payload, headers, response_headers: function(
            payload, headers=headers, response_headers=response_headers
        )

    def call(payload: Any, headers: Any, response_headers: Any) -> Any:
        given = {"payload": payload, "headers": headers, "response_headers": response_headers}
        args = [given[name] for name in wanted.by_position]
        return function(*args, **{name: given[name] for name in wanted.by_name})

    return call


def _wanted(function: Any, what: str) -> _Wanted:
    """Read a signature: the payload goes by position, the headers by name wherever declared.

    What would go through `*args` or `**kwargs` of a wrapper goes only if what it wraps takes it.
    Raises TypeError for a required parameter that nothing is given to.
    """
    layers = [_Signature(parameters) for parameters in _signatures(function)]
    if not layers:
        return _PAYLOAD_ALONE
    layers[0].check(what)
    passed = {name for name in ("payload", *_NAMED) if all(layer.takes(name) for layer in layers)}
    return layers[0].wanted(passed)


class _Signature:
    """The parameters of one callable, as far as hooks are concerned."""

    def __init__(self, parameters: list[inspect.Parameter]) -> None:
        self.parameters = parameters
        kinds = {p.kind for p in parameters}
        self.any_position = inspect.Parameter.VAR_POSITIONAL in kinds
        self.any_name = inspect.Parameter.VAR_KEYWORD in kinds
        self.positional = [p for p in parameters if p.kind in _POSITIONAL]
        first = self.positional[0] if self.positional else None
        self.payload = first if first is not None and first.name not in _NAMED else None

    def names(self, name: str) -> bool:
        """Say whether an argument has a parameter of its own."""
        if name == "payload":
            return self.payload is not None
        return any(p.name == name and p is not self.payload for p in self.parameters)

    def takes(self, name: str) -> bool:
        return self.names(name) or self.any_position or (self.any_name and name != "payload")

    def check(self, what: str) -> None:
        """Raise TypeError for a parameter that cannot be filled, or a payload that cannot go in."""
        for p in self.parameters:
            known = p is self.payload or p.name in _NAMED or p.kind in _VARIADIC
            if not known and p.default is inspect.Parameter.empty:
                raise TypeError(
                    f"{what} takes {p.name!r}, which no hook is given: "
                    "it may take the payload, headers and response_headers"
                )
        if self.any_name and not (self.positional or self.any_position):
            raise TypeError(f"{what} takes no payload: it must be the first positional parameter")

    def wanted(self, passed: set[str]) -> _Wanted:
        """Say how to call: an argument with a parameter always goes, others if they may pass."""
        goes = [n for n in ("payload", *_NAMED) if self.names(n) or (n in passed and self.takes(n))]
        if self.any_position and not self.any_name:
            order = self._positions(goes)
        else:
            order = [n for n in goes if n == "payload"]
            order += [p.name for p in self.positional if self._only_by_position(p)]
        return _Wanted(tuple(order), tuple(n for n in goes if n not in order))

    def _only_by_position(self, p: inspect.Parameter) -> bool:
        return p.kind is inspect.Parameter.POSITIONAL_ONLY and p.name in _NAMED

    def _positions(self, goes: list[str]) -> list[str]:
        """Order what goes by position where the rest goes into `*args`: named parameters first."""
        named = ["payload" if p is self.payload else p.name for p in self.positional]
        by_keyword = {p.name for p in self.parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
        known = [n for n in named if n in goes]
        rest = [n for n in goes if n not in known and n not in by_keyword]
        return known + rest if known == named else known


_POSITIONAL: Final = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _signatures(function: Any) -> Iterator[list[inspect.Parameter]]:
    """Yield the parameters of a callable and of each function that it says it wraps."""
    bound = inspect.ismethod(function)
    first = True
    while function is not None:
        try:
            signature = inspect.signature(function, follow_wrapped=False)
        except (TypeError, ValueError):  # some builtins have none
            return
        parameters = list(signature.parameters.values())
        yield parameters if first or not bound else _without_self(parameters)
        first = False
        function = getattr(function, "__wrapped__", None)


def _without_self(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    named = parameters and parameters[0].kind in _POSITIONAL
    return parameters[1:] if named else parameters
