"""The base class of models, and what else can be served as one."""

import functools
import inspect
from typing import Any

import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.models.model import as_model, defines
from modelserve.testing import request

PREDICT = ("POST", "/v1/models/m:predict")


def payload_only(payload: Any) -> Any:
    return payload


def with_more(extra: str, payload: Any, headers: Any) -> Any:
    return payload, headers, extra


class CallableObject:
    def __call__(self, payload: Any) -> Any:
        return payload


class Predicting(Model):
    def predict(self, payload: Any) -> Any:
        return payload


@pytest.mark.parametrize(
    ("hook", "defined"), [("predict", True), ("explain", False), ("load", True), ("stop", False)]
)
def test_which_hooks_are_a_models_own(hook: str, defined: bool) -> None:
    class Own(Model):
        async def predict(self, *args: Any, **kwargs: Any) -> Any: ...

    model = Own("m")
    vars(model)["load"] = payload_only
    assert defines(model, hook) is defined


# --- what can be a model ------------------------------------------------------------------------


class Plain:
    """No subclass of ours, but with the names of ours."""

    name = "plain"
    limits = Limits(concurrency=1)
    coalesce = True

    def __init__(self) -> None:
        self.log: list[str] = []

    def load(self) -> bool:
        self.log.append("load")
        return True

    def stop(self) -> None:
        self.log.append("stop")

    def preprocess(self, payload: Any) -> Any:
        return payload + 1

    async def predict(self, payload: Any) -> Any:
        return payload * 2


class Bare:
    def predict(self, payload: Any) -> Any:
        return payload


@pytest.mark.parametrize(
    ("target", "name", "made"),
    [
        (payload_only, "m", "m"),
        (lambda payload: payload, "m", "m"),
        (functools.partial(with_more, "e"), "m", "m"),
        (CallableObject(), "m", "m"),
        (Plain(), None, "plain"),
        (Plain(), "m", "m"),
        (Plain, None, "plain"),
        (Plain, "m", "m"),
        (Bare(), "m", "m"),
        (Model("m"), None, "m"),
        (Model, "m", "m"),
        (Predicting, "m", "m"),
    ],
)
def test_what_can_be_a_model(target: Any, name: str | None, made: str) -> None:
    model = as_model(target, name)
    assert isinstance(model, Model)
    assert model.name == made


def test_an_object_keeps_its_hooks_and_settings() -> None:
    model = as_model(Plain())
    assert (model.limits, model.coalesce, model.engine) == (Limits(concurrency=1), True, False)
    assert defines(model, "load")
    assert defines(model, "preprocess")
    assert not defines(model, "explain")


def test_a_model_is_itself() -> None:
    model = Model("m")
    assert as_model(model) is model


@pytest.mark.parametrize("target", [None, 5, "m", object(), [payload_only]])
def test_what_cannot_be_a_model(target: Any) -> None:
    with pytest.raises(TypeError, match="is no model: it is not callable and has no predict"):
        ModelServer().add_model(target, "m")


@pytest.mark.parametrize("target", [payload_only, lambda payload: payload, Bare(), Bare, Model])
def test_a_model_without_a_name_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        ModelServer([target])


def test_the_name_that_is_given_counts() -> None:
    app = ModelServer()
    try:
        app.add_model(Model("a"), "b")
    except ValueError:
        return  # refusing is as good as taking it
    assert app.serving.registry.names == ["b"]


@pytest.mark.parametrize("name", ["", "a:b", ":", "a\nb", "a\0", "\x7f"])
def test_names_that_cannot_be_in_a_path_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        ModelServer([Model(name)])


@pytest.mark.parametrize("name", [None, 5, b"m"])
def test_a_name_is_text(name: Any) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        ModelServer([Model(name)])


def test_a_subclass_that_forgets_the_base_is_refused() -> None:
    class Forgetful(Model):
        def __init__(self) -> None:
            pass

    with pytest.raises(ValueError, match="needs a name"):
        ModelServer([Forgetful()])


def test_the_hooks_of_the_base_pass_values_on() -> None:
    names = ("preprocess", "predict", "explain", "postprocess", "load", "healthy", "start", "stop")
    assert all(callable(getattr(Model, name)) for name in names)
    model = Model("m", return_response_headers=True)
    assert (model.name, model.ready, model.return_response_headers) == ("m", False, True)
    assert list(inspect.signature(Model).parameters) == ["name", "return_response_headers"]


@pytest.mark.anyio
async def test_a_hook_of_the_base_can_be_called() -> None:
    class Loud(Model):
        async def preprocess(self, payload: Any, headers: Any = None) -> Any:
            return await super().preprocess([*payload, "pre"], headers)

        async def predict(
            self, payload: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            return payload

        async def postprocess(
            self, result: Any, headers: Any = None, response_headers: Any = None
        ) -> Any:
            return await super().postprocess([*result, "post"])

        async def healthy(self) -> bool:
            return await super().healthy()

    app = ModelServer([Loud("m")])
    assert (await request(app, *PREDICT, json=[])).json() == ["pre", "post"]


@pytest.mark.anyio
async def test_a_hook_may_be_given_to_one_model_alone() -> None:
    """KServe's users assign functions to instances."""
    one, other = Predicting("m"), Predicting("n")
    one.predict = lambda payload: "mine"  # type: ignore[method-assign, assignment]
    app = ModelServer([one, other])
    assert (await request(app, *PREDICT, json=[1])).body == b"mine"
    assert (await request(app, "POST", "/v1/models/n:predict", json=[1])).json() == [1]
