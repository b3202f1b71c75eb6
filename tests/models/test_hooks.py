"""What a hook may be, what it is given, and the plan that a verb runs."""

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import pytest

from modelserve import InvalidInput, Model, ModelServer
from modelserve.models.hooks import Hook, check_lifecycle, plans_of
from modelserve.testing import request

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

PREDICT = ("POST", "/v1/models/m:predict")


def with_hooks(**hooks: Any) -> Model:
    model = Model("m")
    vars(model).update(hooks)
    return model


def hook_of(function: Any, name: str = "predict") -> Hook:
    plan = plans_of(with_hooks(**{name: function}))["explain" if name == "explain" else "predict"]
    hook = {"preprocess": plan.preprocess, "postprocess": plan.postprocess}.get(name, plan.main)
    assert hook is not None
    return hook


# --- which arguments a hook is given ------------------------------------------------------------


def payload_only(payload: Any) -> Any:
    return payload


def any_name(instances: Any) -> Any:
    return instances


def positional_only(payload: Any, /) -> Any:
    return payload


def with_headers(payload: Any, headers: Any) -> Any:
    return payload, headers


def with_default_headers(payload: Any, headers: Any = None) -> Any:
    return payload, headers


def with_both(payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
    return payload, headers, response_headers


def other_order(payload: Any, response_headers: Any, headers: Any) -> Any:
    return payload, headers, response_headers


def with_response_headers(payload: Any, response_headers: Any) -> Any:
    return payload, response_headers


def keyword_only(payload: Any, *, headers: Any, response_headers: Any = None) -> Any:
    return payload, headers, response_headers


def positional_only_headers(payload: Any, headers: Any, /) -> Any:
    return payload, headers


def positional_only_response_headers(payload: Any, response_headers: Any, /) -> Any:
    return payload, response_headers


def all_positional_only(payload: Any, headers: Any, response_headers: Any, /) -> Any:
    return payload, headers, response_headers


def mixed(payload: Any, /, headers: Any, *, response_headers: Any) -> Any:
    return payload, headers, response_headers


def nothing() -> Any:
    return ()


def headers_only(headers: Any) -> Any:
    return (headers,)


def response_headers_only(*, response_headers: Any) -> Any:
    return (response_headers,)


def arguments(*args: Any) -> Any:
    return args


def payload_and_arguments(payload: Any, *args: Any) -> Any:
    return payload, *args


def headers_and_arguments(payload: Any, headers: Any, *args: Any) -> Any:
    return payload, headers, *args


def keywords(payload: Any, **kwargs: Any) -> Any:
    return payload, kwargs["headers"], kwargs["response_headers"]


def headers_and_keywords(payload: Any, headers: Any, **kwargs: Any) -> Any:
    return payload, headers, kwargs["response_headers"]


def everything(*args: Any, **kwargs: Any) -> Any:
    return *args, kwargs["headers"], kwargs["response_headers"]


def with_default(payload: Any, temperature: float = 0.7) -> Any:
    return payload, temperature


def with_default_and_arguments(payload: Any, temperature: float = 0.7, *args: Any) -> Any:
    return payload, temperature, *args


def with_default_headers_and_arguments(
    payload: Any, temperature: float = 0.7, headers: Any = None, *args: Any
) -> Any:
    return payload, temperature, headers, *args


def with_positional_only_default(
    payload: Any, temperature: float = 0.7, headers: Any = None, /
) -> Any:
    return payload, temperature, headers


def with_keyword_default(payload: Any, *, headers: Any, temperature: float = 0.7) -> Any:
    return payload, headers, temperature


def bound_first(extra: str, payload: Any, headers: Any) -> Any:
    return payload, headers, extra


class CallableObject:
    def __call__(self, payload: Any, headers: Any) -> Any:
        return payload, headers


class Methods:
    def method(self, payload: Any, response_headers: Any) -> Any:
        return payload, response_headers

    @classmethod
    def of_class(cls, payload: Any, headers: Any) -> Any:
        return payload, headers

    @staticmethod
    def static(payload: Any, headers: Any) -> Any:
        return payload, headers

    def arguments(*args: Any) -> Any:
        return args[1:]


class Result:
    def __init__(self, payload: Any, headers: Any) -> None:
        self.both = payload, headers

    def __eq__(self, other: object) -> bool:
        return self.both == other

    __hash__ = None  # type: ignore[assignment]


SIGNATURES: list[tuple[Any, Any]] = [
    (payload_only, "p"),
    (any_name, "p"),
    (positional_only, "p"),
    (lambda payload: payload, "p"),
    (with_headers, ("p", "h")),
    (with_default_headers, ("p", "h")),
    (with_both, ("p", "h", "r")),
    (other_order, ("p", "h", "r")),
    (with_response_headers, ("p", "r")),
    (keyword_only, ("p", "h", "r")),
    (positional_only_headers, ("p", "h")),
    (positional_only_response_headers, ("p", "r")),
    (all_positional_only, ("p", "h", "r")),
    (mixed, ("p", "h", "r")),
    (nothing, ()),
    (headers_only, ("h",)),
    (response_headers_only, ("r",)),
    (arguments, ("p", "h", "r")),
    (payload_and_arguments, ("p", "h", "r")),
    (headers_and_arguments, ("p", "h", "r")),
    (keywords, ("p", "h", "r")),
    (headers_and_keywords, ("p", "h", "r")),
    (everything, ("p", "h", "r")),
    (with_default, ("p", 0.7)),
    (with_default_and_arguments, ("p", 0.7)),
    (with_default_headers_and_arguments, ("p", 0.7, "h")),
    (with_positional_only_default, ("p", 0.7, None)),
    (with_keyword_default, ("p", "h", 0.7)),
    (functools.partial(bound_first, "e"), ("p", "h", "e")),
    (functools.partial(with_both, "e"), ("e", "h", "r")),
    (functools.partial(with_both, response_headers="own"), ("p", "h", "r")),
    (functools.partial(functools.partial(bound_first, "e")), ("p", "h", "e")),
    (functools.partial(CallableObject()), ("p", "h")),
    (CallableObject(), ("p", "h")),
    (Methods().method, ("p", "r")),
    (Methods.of_class, ("p", "h")),
    (Methods.static, ("p", "h")),
    (Methods().arguments, ("p", "h", "r")),
    (Result, ("p", "h")),
    (len, 1),
    (str, "p"),
]


@pytest.mark.parametrize(("function", "given"), SIGNATURES)
def test_a_hook_takes_what_it_declares(function: Any, given: Any) -> None:
    hook = hook_of(function)
    assert hook.call("p", "h", "r") == given
    if isinstance(given, tuple) and function is not with_default:
        assert hook.wants_headers == ("h" in given)
        assert hook.wants_response_headers == ("r" in given)


def response_headers_and_arguments(payload: Any, response_headers: Any, *args: Any) -> Any:
    return payload, response_headers, *args


def test_arguments_do_not_overtake_a_name() -> None:
    assert hook_of(response_headers_and_arguments).call("p", "h", "r")[:2] == ("p", "r")


def extra_argument(payload: Any, temperature: float) -> Any:
    raise NotImplementedError


def extra_keyword(payload: Any, *, temperature: float) -> Any:
    raise NotImplementedError


def payload_by_name(*, payload: Any) -> Any:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (extra_argument, "temperature"),
        (extra_keyword, "temperature"),
        (payload_by_name, "payload"),
        (functools.partial(extra_argument), "temperature"),
        (functools.partial(bound_first, extra="e"), "payload"),
    ],
)
@pytest.mark.parametrize("hook", ["preprocess", "predict", "explain", "postprocess"])
def test_a_hook_that_needs_more_is_refused(function: Any, name: str, hook: str) -> None:
    with pytest.raises(TypeError, match=rf"^{hook} of model 'm' takes '{name}'"):
        ModelServer([with_hooks(**{hook: function})])


def test_the_payload_must_be_the_first_argument() -> None:
    sentence = r"^predict of model 'm' takes 'payload', which must be its first argument$"
    with pytest.raises(TypeError, match=sentence):
        ModelServer([with_hooks(predict=lambda headers, payload: payload)])


def only_keywords(**kwargs: Any) -> Any:
    return kwargs


def test_a_hook_that_cannot_take_the_payload_is_refused() -> None:
    with pytest.raises(TypeError, match="predict of model 'm'"):
        ModelServer([with_hooks(predict=only_keywords)])


# --- decorated hooks ----------------------------------------------------------------------------


def passing_all(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def passing_the_payload(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(payload: Any) -> Any:
        return function(payload)

    return wrapper


def without_wraps(function: Any) -> Any:
    def wrapper(payload: Any, headers: Any = None) -> Any:
        return function(payload)

    return wrapper


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (passing_all(payload_only), "p"),
        (passing_all(with_headers), ("p", "h")),
        (passing_all(with_both), ("p", "h", "r")),
        (passing_all(keyword_only), ("p", "h", "r")),
        (passing_all(passing_all(with_headers)), ("p", "h")),
        (passing_all(passing_the_payload(with_both)), ("p", None, None)),
        (passing_the_payload(with_both), ("p", None, None)),
        (without_wraps(payload_only), "p"),
        (passing_all(functools.partial(with_both, "e")), ("e", "h", "r")),
    ],
)
def test_a_decorated_hook_takes_what_it_passes_on(function: Any, given: Any) -> None:
    assert hook_of(function).call("p", "h", "r") == given


def needing_headers(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(payload: Any, headers: Any) -> Any:
        return function(payload), headers

    return wrapper


def test_a_wrapper_may_need_more_than_what_it_wraps() -> None:
    assert hook_of(needing_headers(payload_only)).call("p", "h", "r") == ("p", "h")


def giving_more(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(payload: Any) -> Any:
        return function(payload, 0.5)

    return wrapper


def test_a_wrapper_may_give_more_than_a_hook_is_given() -> None:
    def predict(payload: Any, temperature: float) -> Any:
        return payload, temperature

    assert hook_of(giving_more(predict)).call("p", "h", "r") == ("p", 0.5)


def logged(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    return wrapper


class Decorated(Model):
    @logged
    def predict(self, payload: Any) -> Any:
        return payload

    @logged
    async def explain(self, payload: Any, headers: Any = None) -> Any:
        return {"agent": headers["user-agent"]}


@pytest.mark.anyio
async def test_decorated_methods_are_served() -> None:
    app = ModelServer([Decorated("m")])
    assert (await request(app, *PREDICT, json=[1])).json() == [1]
    headers = {"user-agent": "x"}
    response = await request(app, "POST", "/v1/models/m:explain", json=[1], headers=headers)
    assert response.json() == {"agent": "x"}


# --- objects of other libraries -----------------------------------------------------------------


class Estimator:
    """As sklearn's: what it does not know, it refuses."""

    def predict(self, X: Any, **params: Any) -> Any:
        assert not params
        return {"sum": sum(X)}

    def preprocess(self, X: Any, *args: Any, **params: Any) -> Any:
        assert not args and not params
        return X


class Task:
    """As a pipeline of transformers."""

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        assert not args and not kwargs
        return {"sum": sum(inputs)}


class Module:
    """As torch's."""

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    __call__ = _call

    def forward(self, x: Any) -> Any:
        return {"sum": sum(x)}


class NamesHeaders:
    def predict(self, payload: Any, headers: Any, **kwargs: Any) -> Any:
        assert not kwargs
        return {"sum": sum(payload), "agent": headers["user-agent"]}


class PassesHeadersOn:
    @passing_all
    def predict(self, payload: Any, headers: Any = None) -> Any:
        return {"sum": sum(payload), "agent": headers["user-agent"]}


def model_with(predict: Any) -> Model:
    model = Model("m")
    vars(model)["predict"] = predict
    return model


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("target", "answer"),
    [
        (Estimator(), {"sum": 3}),
        (Estimator, {"sum": 3}),
        (Estimator().predict, {"sum": 3}),
        (functools.partial(Estimator().predict), {"sum": 3}),
        (Task(), {"sum": 3}),
        (functools.partial(Task()), {"sum": 3}),
        (Task, {"sum": 3}),
        (Module(), {"sum": 3}),
        (model_with(Task()), {"sum": 3}),
        (model_with(functools.partial(Module())), {"sum": 3}),
        (NamesHeaders(), {"sum": 3, "agent": "x"}),
        (PassesHeadersOn(), {"sum": 3, "agent": "x"}),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value).partition(" at ")[0],
)
async def test_an_object_is_given_only_what_it_names(target: Any, answer: Any) -> None:
    app = ModelServer()
    app.add_model(target, "m")
    response = await request(app, *PREDICT, json=[1, 2], headers={"user-agent": "x"})
    assert (response.status, response.json()) == (200, answer)


@pytest.mark.parametrize("function", [keywords, functools.partial(keywords), passing_all(keywords)])
def test_a_function_is_given_all_that_it_takes(function: Any) -> None:
    app = ModelServer()
    app.add_model(function, "m")
    plan = app.serving.registry.get("m").plans["predict"]
    assert plan.wants_headers and plan.wants_response_headers


# --- kinds --------------------------------------------------------------------------------------


async def coroutine_with_headers(payload: Any, headers: Any, response_headers: Any) -> Any:
    return payload


async def coroutine(payload: Any) -> Any:
    return payload


def generator(payload: Any) -> Iterator[Any]:
    yield payload


async def async_generator(payload: Any) -> AsyncIterator[Any]:
    yield payload


class AsyncCallable:
    async def __call__(self, payload: Any) -> Any:
        return payload


class AsyncGeneratorCallable:
    async def __call__(self, payload: Any) -> AsyncIterator[Any]:
        yield payload


@pytest.mark.parametrize(
    ("function", "on_loop", "is_async_generator", "streams"),
    [
        (payload_only, False, False, False),
        (coroutine, True, False, False),
        (generator, False, False, True),
        (async_generator, True, True, True),
        (functools.partial(coroutine), True, False, False),
        (functools.partial(functools.partial(generator)), False, False, True),
        (functools.partial(async_generator), True, True, True),
        (CallableObject(), False, False, False),
        (AsyncCallable(), True, False, False),
        (AsyncGeneratorCallable(), True, True, True),
        (functools.partial(AsyncGeneratorCallable()), True, True, True),
        (passing_all(async_generator), False, False, False),
        (passing_all(coroutine), False, False, False),
        (Result, False, False, False),
    ],
)
@pytest.mark.parametrize("name", ["predict", "explain", "postprocess"])
def test_a_kind_is_found_out_once(
    function: Any, on_loop: bool, is_async_generator: bool, streams: bool, name: str
) -> None:
    hook = hook_of(function, name)
    assert (hook.on_loop, hook.is_async_generator, hook.streams, hook.name) == (
        on_loop,
        is_async_generator,
        streams,
        name,
    )


@pytest.mark.parametrize("function", [generator, async_generator, AsyncGeneratorCallable()])
def test_preprocess_must_not_yield(function: Any) -> None:
    with pytest.raises(TypeError, match=r"^preprocess of model 'm' must not be a generator$"):
        ModelServer([with_hooks(preprocess=function)])


@pytest.mark.parametrize("main", [generator, async_generator])
@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_a_sync_generator_does_not_wrap_a_stream(main: Any, verb: str) -> None:
    model = with_hooks(**{verb: main, "postprocess": generator})
    with pytest.raises(TypeError, match=f"sync generator, and {verb} streams"):
        ModelServer([model])


@pytest.mark.parametrize(
    ("hooks", "streams"),
    [
        ({"predict": payload_only}, False),
        ({"predict": generator}, True),
        ({"predict": generator, "postprocess": async_generator}, True),
        ({"predict": generator, "postprocess": coroutine}, False),  # it may collect
        ({"predict": coroutine, "postprocess": generator}, True),
        ({"predict": coroutine, "preprocess": coroutine}, False),
        ({"predict": passing_all(async_generator)}, False),  # not known
    ],
)
def test_whether_a_plan_is_known_to_stream(hooks: dict[str, Any], streams: bool) -> None:
    assert plans_of(with_hooks(**hooks))["predict"].streams is streams


@pytest.mark.parametrize(
    ("hooks", "is_direct", "takes_payload_alone"),
    [
        ({"predict": coroutine}, True, True),
        ({"predict": functools.partial(coroutine)}, True, True),
        ({"predict": coroutine_with_headers}, True, False),
        ({"predict": async_generator}, False, True),
        ({"predict": payload_only}, False, True),
        ({"predict": coroutine, "preprocess": coroutine}, False, True),
        ({"predict": coroutine, "postprocess": coroutine}, False, True),
        ({}, True, False),  # Model's own takes the headers
    ],
)
def test_whether_a_plan_is_one_async_function(
    hooks: dict[str, Any], is_direct: bool, takes_payload_alone: bool
) -> None:
    plan = plans_of(with_hooks(**hooks))["predict"]
    assert plan.is_direct == is_direct
    assert plan.main.takes_payload_alone == takes_payload_alone


def test_a_model_has_a_plan_for_each_verb() -> None:
    plans = plans_of(with_hooks(explain=async_generator, chat=coroutine))
    assert {verb: (plan.main.name, plan.streams) for verb, plan in plans.items()} == {
        "predict": ("predict", False),
        "explain": ("explain", True),
        "chat": ("chat", False),
    }
    with pytest.raises(InvalidInput, match=r"^Model m does not support embeddings\.$"):
        plans["embed"]


def test_a_plan_has_the_hooks_that_are_defined() -> None:
    plan = plans_of(with_hooks(predict=with_headers))["predict"]
    assert (plan.preprocess, plan.postprocess) == (None, None)
    assert (plan.wants_headers, plan.wants_response_headers) == (True, False)
    plan = plans_of(with_hooks(preprocess=payload_only, postprocess=with_response_headers))[
        "predict"
    ]
    assert (plan.preprocess and plan.preprocess.name) == "preprocess"
    assert (plan.wants_headers, plan.wants_response_headers) == (True, True)  # predict is Model's


@pytest.mark.parametrize("name", ["load", "start", "stop", "healthy", "get_input_types"])
@pytest.mark.parametrize("function", [generator, async_generator])
def test_a_hook_outside_of_requests_must_not_yield(name: str, function: Any) -> None:
    with pytest.raises(TypeError, match=f"^{name} of model 'm' must not be a generator$"):
        check_lifecycle(with_hooks(**{name: function}))


@pytest.mark.parametrize("name", ["load", "start", "stop", "healthy", "get_input_types"])
def test_a_hook_outside_of_requests_is_something_to_call(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"^{name} of model 'm' cannot be called: it is \['</s>'\]$"
    ):
        check_lifecycle(with_hooks(**{name: ["</s>"]}))


class Selfless(Model):
    def predict(payload: Any) -> Any:  # type: ignore[override]
        raise NotImplementedError


class SelflessObject:
    async def predict(payload, headers):  # type: ignore[no-untyped-def]
        raise NotImplementedError


class Uncallable(Model):
    predict = 3  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Selfless("m"), "predict of model 'm' has no self: its first parameter is 'payload'"),
        (SelflessObject(), "predict of model 'm' has no self: its first parameter is 'payload'"),
        (Uncallable("m"), "predict of model 'm' cannot be called: it is 3"),
    ],
)
def test_what_is_no_method_is_refused(model: Any, sentence: str) -> None:
    with pytest.raises(TypeError) as refused:
        ModelServer().add_model(model, "m")
    assert str(refused.value) == sentence


def test_a_method_may_call_its_object_what_it_likes() -> None:
    class Me(Model):
        def predict(me, payload: Any) -> Any:
            raise NotImplementedError

    ModelServer([Me("m")])
