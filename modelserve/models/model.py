"""The `Model` base class, and functions and other objects served as one."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypedDict, get_origin

from modelserve.errors import HookMissing
from modelserve.limits import Limits
from modelserve.models.connecting import connect
from modelserve.models.policies import Batching, Stepping
from modelserve.models.predictor import PredictorConfig, config_of
from modelserve.models.stepped import Stepped

if TYPE_CHECKING:
    from modelserve.models.remote import Remote

__all__ = [
    "ANSWERS",
    "HOOKS",
    "LIFECYCLE",
    "METADATA",
    "OPENAI_HOOKS",
    "SETTINGS",
    "STREAMING_HOOKS",
    "Model",
    "ModelSettings",
    "ServedObject",
    "as_model",
    "check_answers",
    "check_forwarding",
    "configure",
    "defines",
    "host_of",
    "is_function",
    "misspelt_answer",
]

# Only subclasses of `Model` may have these: on another object, a method of such a name may be
# anything.
OPENAI_HOOKS: Final = ("chat", "complete", "embed")
STREAMING_HOOKS: Final = ("predict", "explain", "postprocess", *OPENAI_HOOKS)
HOOKS: Final = ("preprocess", "predict", "explain", "postprocess")
# A model needs at least one of these hooks to answer anything.
ANSWERS: Final = ("predict", "explain", *OPENAI_HOOKS)
LIFECYCLE: Final = ("load", "start", "stop", "start_engine", "stop_engine", "healthy")
METADATA: Final = ("get_input_types", "get_output_types")
# Where the base class forwards a verb.
_HOSTS: Final = {"predict": "predictor_host", "explain": "explainer_host"}


class ModelSettings(TypedDict, total=False):
    """The attributes that decide how a model is served, except `name` and `ready`."""

    return_response_headers: bool
    engine: bool
    own_thread: bool | None
    limits: Limits | None
    batching: Batching | None
    stepping: Stepping | None
    coalesce: bool | None
    heartbeat: float | None
    heartbeat_before_first: bool
    versions: Sequence[str] | None
    platform: str
    example: Any
    input_schema: Any
    output_schema: Any
    predictor_host: str | None
    explainer_host: str | None
    protocol: str
    use_ssl: bool
    timeout: float
    retries: int
    predictor_health_check: bool


SETTINGS: Final = tuple(ModelSettings.__annotations__)
_SCHEMAS: Final = ("input_schema", "output_schema")
# Settings of calls to a predictor or an explainer.
_OF_CALLS: Final = ("timeout", "retries", "use_ssl", "protocol", "predictor_health_check")


class Model:
    """Serve a model: override `predict`, and the other hooks as needed.

    Attributes:
        ready: Whether the model takes requests; set by `load`.
        own_thread: Run `load`, `start`, `stop` and all other sync hooks but `healthy` on one thread
            of this model alone, one at a time. None means yes if the model's own `limits` say
            `concurrency=1`.
        limits: Limits of this model, applied within the application's.
        batching: How `predict` is called once for the items of several requests; None is once for
            each request.
        stepping: How `step`, which a model may have instead of `predict`, is called for the streams
            of many requests at once.
        coalesce: Send items that are made without a pause in one event; None leaves the choice to
            the application. If false, each item is one event.
        heartbeat: Seconds without an item after which a client whose `Accept` names SSE or NDJSON
            is sent a comment or a blank line; None for never.
        heartbeat_before_first: Start the heartbeat before the first item, which commits the
            status to 200.
        versions: The versions that V2's versioned paths serve; None for no such paths.
        platform: The platform in V2's metadata.
        example: A payload that the model answers, for its documentation.
        input_schema: The form of V1's payloads: a JSON Schema, for the documentation only, or a
            class (pydantic's or msgspec's, a dataclass, a TypedDict) that they are checked by as
            well. A hook's annotation takes precedence, and also converts the payload to its type.
        output_schema: What the answers are, for the documentation.
        engine: Whether `start_engine` and `stop_engine` are called.
        predictor_host: Where `predict` forwards its payload unless overridden; `host[:port]`.
        explainer_host: The same for `explain`.
        protocol: The predictor's protocol: "v1", "v2", or "grpc-v2" for V2 over gRPC.
        use_ssl: Call the predictor over TLS.
        timeout: Seconds for the start of the predictor's answer, and from one part of it to the
            next. `limits=Limits(timeout=...)` limits the requests themselves.
        retries: How often a connection to the predictor is tried again.
        predictor_health_check: Let probes find the model ready only while the predictor's is.

    `preprocess`, `predict`, `explain` and `postprocess` may be sync or async, and are given those
    of `(payload, headers, response_headers)` that they declare. The last three may yield: their
    items are streamed. The same holds for `chat`, `complete` and `embed`, which a subclass may have
    for OpenAI's protocol: their payload is the request's document, and no other hook runs before or
    after. Sync hooks run in worker threads. A hook is cancelled at most once (the client has left,
    a deadline has passed, the server stops); awaits in its `finally` complete.
    """

    # Those of `__init__`, since a subclass (a dataclass, say) may not call it.
    name: str
    ready: bool = False
    return_response_headers: bool = False

    engine: bool = False
    own_thread: bool | None = None
    limits: Limits | None = None
    batching: Batching | None = None
    stepping: Stepping | None = None
    coalesce: bool | None = None
    heartbeat: float | None = None
    heartbeat_before_first: bool = False
    versions: Sequence[str] | None = None
    platform: str = ""
    example: Any = None
    input_schema: Any = None
    output_schema: Any = None
    predictor_host: str | None = None
    explainer_host: str | None = None
    protocol: str = "v1"
    use_ssl: bool = False
    timeout: float = 600
    retries: int = 0
    predictor_health_check: bool = False
    # Set when the model is registered: what calls the predictor, and what calls `step`.
    _remote: "Remote | None" = None
    _stepped: Stepped | None = None

    def __init__(
        self,
        name: str,
        return_response_headers: bool | PredictorConfig | None = False,
        *,
        predictor_config: PredictorConfig | None = None,
    ) -> None:
        self.name = name
        self.ready = False
        if isinstance(return_response_headers, PredictorConfig):  # it stood here up to KServe 0.15
            predictor_config, return_response_headers = return_response_headers, False
        if predictor_config is not None:
            self.predictor_config = predictor_config
        self.return_response_headers = bool(return_response_headers)

    @property
    def predictor_config(self) -> PredictorConfig | None:
        """Where the predictor is and how it is called; None without a `predictor_host`."""
        return config_of(self)

    @predictor_config.setter
    def predictor_config(self, config: PredictorConfig) -> None:
        self.predictor_host = config.predictor_host
        self.protocol = config.protocol
        self.use_ssl = config.use_ssl
        self.timeout = config.timeout
        self.retries = config.retries
        self.predictor_health_check = config.predictor_health_check

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

    def get_input_types(self) -> Any:
        """Return V2's metadata of the inputs: name, datatype and shape of each."""
        return []

    def get_output_types(self) -> Any:
        """Return V2's metadata of the outputs."""
        return []

    def _remote_for(self, verb: str) -> "Remote":
        check_forwarding(self, verb)
        if self._remote is None:  # outside of any server, in a test for example
            connect(self)
        assert self._remote is not None
        return self._remote

    if TYPE_CHECKING:
        # Lets a type checker accept any kind of function as an override.
        def healthy(self) -> Any: ...
        def preprocess(self, *args: Any, **kwargs: Any) -> Any: ...
        def predict(self, *args: Any, **kwargs: Any) -> Any: ...
        def explain(self, *args: Any, **kwargs: Any) -> Any: ...
        def postprocess(self, *args: Any, **kwargs: Any) -> Any: ...

    else:

        async def healthy(self):
            """Return whether the model can answer now, sync or async; `ready` unless overridden."""
            return bool(self.ready)

        async def preprocess(self, payload, headers=None):
            """Turn the request's payload into the one that `predict` takes."""
            return payload

        async def predict(self, payload, headers=None, response_headers=None):
            """Return the result, or yield its items.

            The default returns the predictor's answer, or the items that `step` puts into a slot.
            """
            if self._stepped is not None:
                return self._stepped.stream(payload)
            remote = self._remote_for("predict")
            sets_type = not defines(self, "postprocess")
            return await remote.predict(
                self, payload, headers, response_headers, sets_type=sets_type
            )

        async def explain(self, payload, headers=None):
            """Return an explanation, or yield its items; unless overridden, the explainer's."""
            remote = self._remote_for("explain")
            return await remote.explain(self, payload, headers)

        async def postprocess(self, result, headers=None, response_headers=None):
            """Turn the result of `predict`, an async iterator if it streams, into the answer."""
            return result


class ServedObject(Model):
    """An object that is neither a `Model` nor a function, served as a model.

    It has the object's hooks, and the object's attributes that are settings of a model. Its hooks
    are given only the arguments that they name: other libraries' `**kwargs` are for something else.
    """

    def __init__(self, name: str, served: Any) -> None:
        super().__init__(name)
        self.served = served


class _ReadyAsServed(ServedObject):
    """A served object with a `ready` of its own."""

    @property
    def ready(self) -> Any:
        return self.served.ready

    @ready.setter
    def ready(self, ready: Any) -> None:
        try:
            self.served.ready = ready
        except AttributeError:
            pass  # read-only: the object's own value counts

    def __init__(self, name: str, served: Any) -> None:
        self.name = name
        self.served = served


def as_model(target: Any, name: str | None = None) -> Any:
    """Make a model of a function, a class, or any object with a `predict`.

    Raises TypeError for anything else.
    """
    if isinstance(target, type):
        target = _instance(target, name) if issubclass(target, Model) else target()
    if isinstance(target, Model):
        if name is not None and getattr(target, "name", None) is None:
            target.name = name
        return target
    names = (*HOOKS, *LIFECYCLE, *METADATA)
    hooks = {hook: getattr(target, hook) for hook in names if hasattr(target, hook)}
    if "predict" not in hooks:
        if not callable(target):
            raise TypeError(f"{target!r} is no model: it is not callable and has no predict")
        hooks["predict"] = target
    model = _model_of(target, name or getattr(target, "name", None))
    vars(model).update(hooks)
    vars(model).update(_values_of(SETTINGS, target))
    return model


def check_answers(model: Any) -> None:
    """Raise TypeError for a model of a user's class that has no predict, explain or predictor."""
    kind = type(model)
    if not isinstance(model, Model) or kind is Model:
        return
    if _answers(model) or model.predictor_host or model.explainer_host:
        return
    if callable(getattr(model, "step", None)):
        raise TypeError(f"The class {kind.__name__} has a step: set stepping = Stepping()")
    misspelt = misspelt_answer(model)
    hint = "" if misspelt is None else f" (it has {misspelt!r})"
    raise TypeError(
        f"The class {kind.__name__} has no predict{hint}: define it, or set predictor_host "
        "before the model is registered"
    )


def _answers(model: Any) -> bool:
    """Return whether a model answers itself, without a predictor or an explainer."""
    return any(defines(model, hook) for hook in ANSWERS) or model.stepping is not None


def misspelt_answer(model: Any) -> str | None:
    """Return the name of an attribute that is spelt almost like predict or explain, if any."""
    own = [name for name in dir(type(model)) if not hasattr(Model, name)]
    return next((name for name in own if get_close_matches(name.lower(), ANSWERS)), None)


def configure(model: Any, settings: Mapping[str, Any]) -> None:
    """Set attributes of `ModelSettings` on a model.

    Raises TypeError, in one sentence, for an unknown setting, for one that cannot be set on this
    model, and for a setting of calls to a predictor if the model makes none.
    """
    for setting, value in settings.items():
        if setting not in SETTINGS:
            known = ", ".join(SETTINGS)
            raise TypeError(f"A model has no setting {setting!r}: there are {known}")
        try:
            setattr(model, setting, value)
        except AttributeError:  # a frozen dataclass, or a property
            sentence = f"The setting {setting!r} of model {model.name!r} cannot be set"
            raise TypeError(sentence) from None
    _check_calls(model, settings)


def _check_calls(model: Any, settings: Mapping[str, Any]) -> None:
    """Raise TypeError for a setting of calls to a predictor, on a model that answers itself.

    One that only prepares payloads may be told its predictor later.
    """
    given = next((setting for setting in _OF_CALLS if setting in settings), None)
    if given is None or model.predictor_host or model.explainer_host or not _answers(model):
        return
    hint = ": limits=Limits(timeout=...) limits its requests" if given == "timeout" else ""
    raise TypeError(
        f"The setting {given!r} is for calls to a predictor, and model {model.name!r} has no "
        f"predictor_host or explainer_host{hint}"
    )


def _instance(kind: type[Model], name: str | None) -> Any:
    """Make a model of a class; its name is the argument `name`, or the first one, if it has any."""
    parameters = inspect.signature(kind).parameters
    if "name" in parameters:
        return kind(name=name)  # type: ignore[arg-type]  # checked later
    takes_name = parameters and not is_dataclass(kind)
    return kind(name) if takes_name else kind()  # type: ignore[arg-type, call-arg]


def _model_of(target: Any, name: Any) -> Model:
    """Return a model without hooks of its own for what is not a `Model`."""
    has_ready = bool(_values_of(["ready"], target))
    if is_function(target):
        model = Model(name)
        model.ready = has_ready and target.ready
        return model
    return _ReadyAsServed(name, target) if has_ready else ServedObject(name, target)


def _values_of(names: Sequence[str], target: Any) -> dict[str, Any]:
    """Return the attributes that are set, except callables: those are methods of another meaning.

    A class is kept where a schema may be one.
    """
    values = {name: getattr(target, name, None) for name in names}
    return {
        name: value
        for name, value in values.items()
        if value is not None and (not callable(value) or (name in _SCHEMAS and _is_type(value)))
    }


def _is_type(value: Any) -> bool:
    return isinstance(value, type) or get_origin(value) is not None


def is_function(target: Any) -> bool:
    """Return whether a callable is a function, decorated or not, or a method of a `Model`.

    It is false for other callable objects, and for their methods.
    """
    while isinstance(target, partial):
        target = target.func
    if inspect.ismethod(target):
        return isinstance(target.__self__, Model | type)
    return inspect.isroutine(inspect.unwrap(target))


def defines(model: Any, hook: str) -> bool:
    """Return whether a model has a hook of its own, in its class or on itself."""
    own = getattr(type(model), hook, None)
    return hook in vars(model) or own is not getattr(Model, hook, None)


def host_of(model: Any, verb: str) -> str | None:
    """Return the server to which a model forwards a verb that it does not define, if it has one."""
    host: str | None = getattr(model, _HOSTS.get(verb, ""), None)
    return host or None


def check_forwarding(model: Any, verb: str) -> None:
    """Raise HookMissing for a verb that a model does not define, unless it forwards it."""
    if host_of(model, verb) is None:
        raise HookMissing(f"Model {model.name} does not implement {verb}.")
