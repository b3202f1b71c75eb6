"""What a hook may be, and the plan of hooks that each verb of a model runs.

Everything about a hook is determined here, once, when its model is registered: whether it runs on
the event loop or in a thread, whether it is known to stream, and which of payload, headers and
response headers it takes.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Final, Protocol

from modelserve.errors import InvalidInput
from modelserve.models.annotations import are_bytes
from modelserve.models.declared import Declared, Form, declared_input
from modelserve.models.iterating import Iterates, iterates
from modelserve.models.missing_return import Noted, noting_none, returns_nothing
from modelserve.models.model import (
    LIFECYCLE,
    METADATA,
    OPENAI_HOOKS,
    STREAMING_HOOKS,
    ServedObject,
    defines,
    is_function,
)
from modelserve.models.signatures import (
    HEADERS,
    POSITIONAL,
    layers_of,
    payload_annotation,
    payload_type,
)
from modelserve.wire.head import HookHeaders

__all__ = ["VERBS", "Hook", "Plan", "Plans", "callee_of", "check_lifecycle", "plans_of"]


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook of one model, with everything that registration found out about it.

    `function` is the hook itself; `call(payload, headers, response_headers)` passes it the
    arguments that it declares; with `takes_payload_alone` that is `function(payload)`. A hook that
    is not `on_loop` runs in a worker thread. `streams` is true if it is known to yield; a hook that
    `may_stream` may return a stream without that; the result of any other hook is passed on as it
    is. `is_default` is true for a hook that the model has not overridden. `iterates` is how it
    takes its instances one by one, if it does. `rows` is an async function like it, with an
    exception in place of each prediction that failed; None if it has no such form.
    """

    name: str
    function: Callable[..., Any]
    call: Callable[[Any, Any, Any], Any]
    on_loop: bool
    is_async_generator: bool
    streams: bool
    may_stream: bool
    is_default: bool
    takes_payload_alone: bool
    wants_headers: bool
    wants_response_headers: bool
    required_headers: tuple[str, ...] = ()
    iterates: Iterates | None = None
    rows: Callable[[Any], Any] | None = None

    def replaced_by(
        self,
        function: Callable[[Any], Any],
        *,
        streams: bool = False,
        rows: Callable[[Any], Any] | None = None,
    ) -> "Hook":
        """Return a hook of the same name that is an async function of the payload alone.

        With `streams` it is an async generator.
        """
        return Hook(
            self.name,
            function,
            lambda payload, headers, response_headers: function(payload),
            on_loop=True,
            is_async_generator=streams,
            streams=streams,
            may_stream=True,
            is_default=self.is_default and not streams,
            takes_payload_alone=True,
            wants_headers=False,
            wants_response_headers=False,
            rows=rows,
        )


class HasHeaders(Protocol):
    """A request, as far as its headers are concerned."""

    def hook_headers(self) -> HookHeaders:
        """Return a copy of its headers that hooks may write to, with its id."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The hooks that one verb of one model runs, in order.

    `is_direct` is true if there is only one hook, an async function and no generator, that takes
    the payload as it comes: neither `declared` nor iterated. `forwards` is true if the request's
    payload goes to a predictor, and to no hook of the model itself. `iterates` is how the first
    hook takes its instances one by one, if it does. `takes_bytes` is true if the first hook is
    annotated to take bytes, alone or in a union.
    """

    preprocess: Hook | None
    main: Hook
    postprocess: Hook | None
    is_direct: bool
    forwards: bool
    streams: bool
    wants_headers: bool
    wants_response_headers: bool
    declared: Declared | None = None
    iterates: Iterates | None = None
    takes_bytes: bool = False

    @classmethod
    def of(
        cls,
        preprocess: Hook | None,
        main: Hook,
        postprocess: Hook | None,
        declared: Declared | None = None,
        iterates: Iterates | None = None,
        *,
        takes_bytes: bool = False,
    ) -> "Plan":
        """Make a plan, and work out what its hooks have in common."""
        is_plain = declared is None and iterates is None
        is_plain = is_plain and main.on_loop and not main.is_async_generator
        hooks = [hook for hook in (preprocess, main, postprocess) if hook is not None]
        streams = any(hook.streams for hook in hooks)
        return cls(
            preprocess,
            main,
            postprocess,
            is_direct=is_plain and hooks == [main],
            forwards=preprocess is None and main.is_default,
            streams=streams and (postprocess is None or postprocess.streams),
            wants_headers=any(hook.wants_headers for hook in hooks),
            wants_response_headers=any(hook.wants_response_headers for hook in hooks),
            declared=declared,
            iterates=iterates,
            takes_bytes=takes_bytes,
        )

    def headers_for(self, request: HasHeaders) -> tuple[HookHeaders | None, HookHeaders | None]:
        """Return the request's headers and those for the answer, each if a hook takes them."""
        return (
            request.hook_headers() if self.wants_headers else None,
            HookHeaders(raw=[]) if self.wants_response_headers else None,
        )

    def with_main(self, main: Hook) -> "Plan":
        """Return a plan with another main hook."""
        return Plan.of(
            self.preprocess,
            main,
            self.postprocess,
            self.declared,
            self.iterates,
            takes_bytes=self.takes_bytes,
        )


_UNANNOTATED: Final = inspect.Parameter.empty
_TAKING_PAYLOADS: Final = frozenset(("preprocess", "predict", "explain"))


class Plans(dict[str, Plan]):
    """The plans of one model by verb. Another verb raises InvalidInput, which a client may read."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @property
    def openai(self) -> list[str]:
        """The hooks of OpenAI's protocol that the model has."""
        return [verb for verb in OPENAI_HOOKS if verb in self]

    @property
    def has_openai(self) -> bool:
        """Whether the model has one of them."""
        return bool(self.openai)

    def __missing__(self, verb: str) -> Plan:
        raise InvalidInput(f"Model {self._name} does not support {_VERB_NAMES.get(verb, verb)}.")


_VERB_NAMES: Final = {"chat": "chat completions", "complete": "completions", "embed": "embeddings"}


def plans_of(model: Any) -> "Plans":
    """Make the plan of each verb that a model answers to.

    Raises TypeError, in one sentence, for a hook that cannot be served.
    """
    plans = Plans(model.name)
    for verb, make in VERBS.items():
        plan = make(model, verb)
        if plan is not None:
            plans[verb] = plan
    return plans


def check_lifecycle(model: Any) -> None:
    """Raise TypeError for a hook outside requests that is a generator, or cannot be called."""
    for name in (*LIFECYCLE, *METADATA):
        hook = getattr(model, name, None)
        if hook is not None and not callable(hook):  # the stop strings of a language model, say
            raise TypeError(f"{name} of model {model.name!r} cannot be called: it is {hook!r}")
        callee = callee_of(hook)
        if inspect.isasyncgenfunction(callee) or inspect.isgeneratorfunction(callee):
            raise TypeError(f"{name} of model {model.name!r} must not be a generator")


def _staged_plan(model: Any, verb: str) -> Plan:
    """Plan preprocess, the verb's own hook and postprocess, where the model defines them."""
    main = _hook(model, verb)
    preprocess = _hook(model, "preprocess") if defines(model, "preprocess") else None
    postprocess = _hook(model, "postprocess") if defines(model, "postprocess") else None
    if postprocess and main.streams and postprocess.streams and not postprocess.is_async_generator:
        raise TypeError(
            f"postprocess of model {model.name!r} is a sync generator, and {verb} streams: "
            "what wraps a stream must be an async generator"
        )
    first = preprocess or main
    how = first.iterates
    if preprocess is not None and payload_annotation(preprocess.function) is _UNANNOTATED:
        how = main.iterates
    declared = declared_input(model, first.name, iterates=how is not None)
    takes_bytes = how is None and are_bytes(payload_type(first.function)[1])
    return Plan.of(preprocess, main, postprocess, declared, how, takes_bytes=takes_bytes)


def _lone_plan(model: Any, verb: str) -> Plan | None:
    """Plan a hook that runs without any other, if the model has it."""
    if isinstance(model, ServedObject) or not callable(getattr(model, verb, None)):
        return None
    declared = declared_input(model, verb)
    if declared is not None and declared.form is not Form.PAYLOAD:
        declared = None  # what it describes is V1's
    return Plan.of(None, _hook(model, verb), None, declared)


# How the plan of each verb is made. Every model answers to the first two, if only with 501.
VERBS: Final[Mapping[str, Callable[[Any, str], Plan | None]]] = {
    "predict": _staged_plan,
    "explain": _staged_plan,
    **dict.fromkeys(OPENAI_HOOKS, _lone_plan),
}


def _hook(model: Any, name: str) -> Hook:
    function = getattr(model, name)
    callee = callee_of(function)
    is_async_generator = inspect.isasyncgenfunction(callee)
    streams = is_async_generator or inspect.isgeneratorfunction(callee)
    may_stream = name in STREAMING_HOOKS
    if streams and not may_stream:
        raise TypeError(f"{name} of model {model.name!r} must not be a generator")
    label = f"{name} of model {model.name!r}"
    _check_is_method(function, label)
    names_all = isinstance(model, ServedObject) or _is_object(function)
    arguments = _arguments_of(function, label, names_all=names_all)
    required_headers = _required_headers(function)
    on_loop = is_async_generator or inspect.iscoroutinefunction(callee)
    how = None
    if name in _TAKING_PAYLOADS:
        how = iterates(function, label, on_loop=on_loop, is_generator=streams)
    if returns_nothing(callee):
        noted: Noted = vars(model).setdefault("_noted_none", set())
        function = noting_none(function, callee, label=label, noted=noted)
    return Hook(
        name,
        function,
        _bind(function, arguments),
        on_loop=on_loop,
        is_async_generator=is_async_generator,
        streams=streams,
        may_stream=may_stream,
        is_default=not defines(model, name),
        takes_payload_alone=arguments == _PAYLOAD_ALONE,
        wants_headers="headers" in arguments,
        wants_response_headers="response_headers" in arguments,
        required_headers=required_headers,
        iterates=how,
    )


# A first parameter with one of these names means that `self` was forgotten.
_NOT_SELF: Final = frozenset(("payload", "instances", "inputs", "request", "headers"))


def _check_is_method(function: Any, label: str) -> None:
    """Raise TypeError for what cannot be called, and for a method whose `self` was forgotten."""
    if not callable(function):
        raise TypeError(f"{label} cannot be called: it is {function!r}")
    code = getattr(function, "__code__", None) if inspect.ismethod(function) else None
    if code is not None and code.co_argcount and code.co_varnames[0] in _NOT_SELF:
        raise TypeError(f"{label} has no self: its first parameter is {code.co_varnames[0]!r}")


def _required_headers(function: Any) -> tuple[str, ...]:
    """Return the parameters for headers that have no default."""
    _, parameters = next(layers_of(function), (None, []))
    missing = inspect.Parameter.empty
    return tuple(p.name for p in parameters if p.name in HEADERS and p.default is missing)


def _is_object(function: Any) -> bool:
    """Return whether a hook is a callable object, neither a function nor a method."""
    while isinstance(function, functools.partial):
        function = function.func
    return not inspect.ismethod(function) and not is_function(function)


def callee_of(function: Any) -> Any:
    """Return the function behind partials and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        return getattr(function, "__call__", function)  # noqa: B004 - to inspect, not to test
    return function


# --- which arguments a hook takes ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Arguments:
    """The arguments that a hook is called with: those by position, in order, and those by name."""

    by_position: tuple[str, ...]
    by_name: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.by_position or name in self.by_name


_PAYLOAD_ALONE: Final = _Arguments(("payload",), ())


def _bind(function: Callable[..., Any], arguments: _Arguments) -> Callable[[Any, Any, Any], Any]:
    """Return a function of all three arguments that passes on those that the hook takes."""
    if arguments == _PAYLOAD_ALONE:
        return lambda payload, headers, response_headers: function(payload)
    if arguments == _Arguments(("payload",), ("headers",)):
        return lambda payload, headers, response_headers: function(payload, headers=headers)
    if arguments == _Arguments(("payload",), ("headers", "response_headers")):
        return lambda payload, headers, response_headers: function(
            payload, headers=headers, response_headers=response_headers
        )

    def call(payload: Any, headers: Any, response_headers: Any) -> Any:
        given = {"payload": payload, "headers": headers, "response_headers": response_headers}
        args = [given[name] for name in arguments.by_position]
        return function(*args, **{name: given[name] for name in arguments.by_name})

    return call


def _arguments_of(function: Any, label: str, *, names_all: bool = False) -> _Arguments:
    """Read a signature: the payload goes by position, headers by name wherever they are declared.

    An argument that would go through `*args` or `**kwargs` of a wrapper is passed only if the
    wrapped function takes it; with `names_all`, only if some function names it. Raises TypeError
    for a required parameter that no hook is given.
    """
    layers = [_Signature(parameters) for _, parameters in layers_of(function)]
    if not layers:
        return _PAYLOAD_ALONE
    layers[0].check(label)
    passed = {name for name in ("payload", *HEADERS) if all(s.accepts(name) for s in layers)}
    if names_all:
        passed = {n for n in passed if n == "payload" or any(s.declares(n) for s in layers)}
    return layers[0].arguments(passed)


class _Signature:
    """The parameters of one callable, as far as hooks are concerned."""

    def __init__(self, parameters: list[inspect.Parameter]) -> None:
        self.parameters = parameters
        kinds = {p.kind for p in parameters}
        self.has_args = inspect.Parameter.VAR_POSITIONAL in kinds
        self.has_kwargs = inspect.Parameter.VAR_KEYWORD in kinds
        self.positional = [p for p in parameters if p.kind in POSITIONAL]
        first = self.positional[0] if self.positional else None
        self.payload = first if first is not None and first.name not in HEADERS else None

    def declares(self, name: str) -> bool:
        """Return whether an argument has a parameter, `*args` and `**kwargs` apart."""
        if name == "payload":
            return self.payload is not None
        return any(p.name == name and p is not self.payload for p in self.parameters)

    def accepts(self, name: str) -> bool:
        """Return whether an argument can be passed, even through `*args` or `**kwargs`."""
        return self.declares(name) or self.has_args or (self.has_kwargs and name != "payload")

    def check(self, label: str) -> None:
        """Raise TypeError for a parameter that cannot be filled, or if none takes the payload."""
        for p in self.parameters:
            known = p is self.payload or p.name in HEADERS or p.kind in _VARIADIC
            if not known and p.default is inspect.Parameter.empty:
                if p.name == "payload":
                    raise TypeError(f"{label} takes 'payload', which must be its first argument")
                raise TypeError(
                    f"{label} takes {p.name!r}, which no hook is given: "
                    "it may take the payload, headers and response_headers"
                )
        if self.has_kwargs and not (self.positional or self.has_args):
            raise TypeError(f"{label} takes no payload: it must be the first positional parameter")

    def arguments(self, passed: set[str]) -> _Arguments:
        """Choose the arguments: those declared, and those in `passed` that are accepted."""
        names = [
            name
            for name in ("payload", *HEADERS)
            if self.declares(name) or (name in passed and self.accepts(name))
        ]
        by_position = self._by_position(names)
        others = (name for name in names if name not in by_position)
        return _Arguments(tuple(by_position), tuple(n for n in others if self._goes_by_name(n)))

    def _by_position(self, names: list[str]) -> list[str]:
        """Order the positional arguments: the payload, required ones, those for `*args` only."""
        declared = ["payload" if p is self.payload else p.name for p in self.positional]
        filled = list(takewhile(names.__contains__, declared))  # up to one that has a default
        if not self.has_args or self.has_kwargs:
            must = [name for name in filled if not self._goes_by_name(name)]
            return must if "payload" in must or "payload" not in names else ["payload", *must]
        undeclared = [name for name in names if not self.declares(name)]
        return filled + undeclared if filled == declared else filled

    def _goes_by_name(self, name: str) -> bool:
        """Return whether an argument is passed by name; the payload never is."""
        if name == "payload":
            return False
        if not self.declares(name):
            return self.has_kwargs
        return any(p.name == name and p.kind in _BY_NAME for p in self.parameters)


_BY_NAME: Final = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)
_VARIADIC: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
