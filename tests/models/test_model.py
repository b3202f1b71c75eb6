"""The base class of models, and what else can be served as one."""

import dataclasses
import functools
import inspect
import pickle
from typing import Any

import anyio
import pytest

from modelserve import Batching, Limits, Model, ModelServer, Stepping
from modelserve.models.model import SETTINGS, as_model, defines
from modelserve.models.predictor import PredictorConfig
from modelserve.testing import lifespan, request

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


class Misspelt(Model):
    def Predict(self, payload: Any) -> Any:
        return payload


class Prepares(Model):
    def load(self) -> None:
        self.ready = True

    def preprocess(self, payload: Any) -> Any:
        return payload


class Transforms(Prepares):
    predictor_host = "localhost:1"


class Explains(Model):
    def explain(self, payload: Any) -> Any:
        return payload


class MisspeltBeside(Prepares, Misspelt):
    pass


class Loads(Model):
    def load(self) -> None:
        self.ready = True


@pytest.mark.parametrize(
    "target", [Misspelt, Misspelt("m"), MisspeltBeside("m"), Loads, Loads("m")]
)
def test_a_class_without_predict_is_refused(target: Any) -> None:
    app = ModelServer()
    with pytest.raises(TypeError) as refused:
        app.add_model(target, "m")
    kind = target if isinstance(target, type) else type(target)
    hint = "" if kind is Loads else " (it has 'Predict')"
    assert str(refused.value) == (
        f"The class {kind.__name__} has no predict{hint}: define it, or set predictor_host "
        "before the model is registered"
    )
    assert app.serving.registry.names == []


def test_a_class_with_a_step_alone_is_told_what_to_set() -> None:
    class Steps(Model):
        def step(self, active: list[Any]) -> None:
            for slot in active:
                slot.end()

    with pytest.raises(
        TypeError, match=r"^The class Steps has a step: set stepping = Stepping\(\)$"
    ):
        ModelServer([Steps("m")])


@pytest.mark.parametrize(
    "target", [Transforms, Transforms("m"), Explains, Explains("m"), Model("m")]
)
def test_a_class_that_explains_or_has_a_predictor_needs_no_predict(target: Any) -> None:
    app = ModelServer()
    app.add_model(target, "m")
    assert app.serving.registry.names == ["m"]


class OnlyPrepares(Model):
    def preprocess(self, payload: Any) -> Any:
        return payload


class Finds(Prepares):
    def load(self) -> None:
        self.predictor_host = "localhost:1"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("model", "warnings"), [(Prepares("m"), 1), (OnlyPrepares("m"), 1), (Finds("m"), 0)]
)
async def test_what_prepares_for_a_predictor_is_told_of_it_after_it_is_registered(
    model: Model, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with lifespan(ModelServer([model], wait_for_load=True)):
        pass
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(said) == warnings
    kind = type(model).__name__
    assert all(text.startswith(f"The class {kind} has no predict: define it") for text in said)


@pytest.mark.parametrize("target", [payload_only, lambda payload: payload, Bare(), Bare, Model])
def test_a_model_without_a_name_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        ModelServer([target])


def test_a_class_where_an_object_is_wanted_is_told_apart() -> None:
    with pytest.raises(ValueError, match=r"has None \(pass an object, not the class\)$"):
        ModelServer([Explains])


def test_the_decorator_asks_for_a_name() -> None:
    app: Any = ModelServer()
    with pytest.raises(TypeError, match=r"takes the name of the model: @app\.model"):
        app.model(payload_only)


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
    assert list(inspect.signature(Model).parameters)[:2] == ["name", "return_response_headers"]


def test_a_predictor_may_be_given_as_to_older_releases_of_kserve() -> None:
    config = PredictorConfig("host:80", "v2", predictor_use_ssl=True)
    for model in (Model("m", config), Model("m", predictor_config=config)):
        assert (model.predictor_config, model.return_response_headers) == (config, False)
    assert Model("m", None).predictor_config is None


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


# --- subclasses that do not call the base's __init__ --------------------------------------------


@dataclasses.dataclass
class Scaled(Model):
    name: str
    scale: int = 3

    def predict(self, payload: Any) -> Any:
        return [self.scale * number for number in payload]


@dataclasses.dataclass
class Loaded(Scaled):
    def load(self) -> None:
        assert not self.ready
        self.scale *= 2


@dataclasses.dataclass
class LoadedAndReady(Scaled):
    def load(self) -> None:
        self.scale *= 2
        self.ready = True


@dataclasses.dataclass
class Nameless(Model):
    scale: int = 3

    def predict(self, payload: Any) -> Any:
        return [self.scale * number for number in payload]


class Forgetful(Model):
    def __init__(self) -> None:
        self.weights: list[int] = []

    def load(self) -> bool:
        self.weights.append(6)
        return True

    def predict(self, payload: Any) -> Any:
        return self.weights


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "takes_name", "answer"),
    [
        (Scaled, True, [3]),
        (Loaded, True, [6]),
        (LoadedAndReady, True, [6]),
        (Nameless, False, [3]),
        (Forgetful, False, [6]),
    ],
)
@pytest.mark.parametrize("as_class", [True, False])
async def test_a_model_need_not_call_the_bases_init(
    kind: Any, takes_name: bool, answer: Any, as_class: bool
) -> None:
    app = ModelServer()
    instance = kind("m") if takes_name else kind()
    app.add_model(kind if as_class else instance, "m")
    async with lifespan(app):
        await loaded(app)
        response = await request(app, *PREDICT, json=[1])
    assert (response.status, response.json()) == (200, answer)


async def loaded(app: ModelServer) -> None:
    entry = app.serving.registry.get("m")
    assert entry.attempted is not None
    with anyio.fail_after(5):
        await entry.attempted.wait()


@dataclasses.dataclass(frozen=True)
class Frozen(Model):
    name: str


class ReadOnly(Model):
    name = "m"
    ready = property(lambda self: True)  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("model", [Frozen("m"), ReadOnly()], ids=["frozen", "property"])
def test_a_model_whose_readiness_cannot_be_set_is_refused(model: Model) -> None:
    with pytest.raises(TypeError, match=r"^The attribute 'ready' of model 'm' cannot be set$"):
        ModelServer([model])


# --- objects that are no models -----------------------------------------------------------------

VALUES = {
    "return_response_headers": True,
    "engine": True,
    "own_thread": True,
    "limits": Limits(timeout=3),
    "batching": Batching(max_size=3),
    "stepping": Stepping(room=3),
    "coalesce": False,
    "heartbeat": 2.0,
    "heartbeat_before_first": True,
    "versions": ["1", "2"],
    "platform": "onnxruntime",
    "example": {"instances": [1]},
    "input_schema": {"type": "object"},
    "output_schema": {"type": "object"},
    "predictor_host": "predictor",
    "explainer_host": "explainer",
    "protocol": "v2",
    "use_ssl": True,
    "timeout": 5.0,
    "retries": 2,
    "predictor_health_check": True,
}


def test_each_setting_of_a_model_is_one_of_an_object() -> None:
    """Those that are no settings: what a model is called, whether it is ready, and its remote."""
    annotated = set(inspect.get_annotations(Model)) - {"name", "ready", "_remote", "_stepped"}
    assert set(SETTINGS) == annotated == set(VALUES)


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_object_keeps_its_settings(setting: str) -> None:
    model = Bare()
    setattr(model, setting, VALUES[setting])
    made = as_model(model, "m")
    assert getattr(made, setting) == VALUES[setting]
    others = set(SETTINGS) - {setting}
    assert {o: getattr(made, o) for o in others} == {o: getattr(Model, o) for o in others}


class ExplainsElsewhere(Predicting):
    explainer_host = "explainer"


CALLS = ["timeout", "retries", "use_ssl", "protocol", "predictor_health_check"]


@pytest.mark.parametrize("setting", CALLS)
@pytest.mark.parametrize("target", [payload_only, Bare, Predicting, Explains])
def test_settings_of_calls_to_a_predictor_need_one(target: Any, setting: str) -> None:
    app = ModelServer()
    sentence = (
        f"The setting '{setting}' is for calls to a predictor, and model 'm' has no predictor"
    )
    with pytest.raises(TypeError, match=sentence) as refusal:
        app.model("m", **{setting: VALUES[setting]})(target)  # type: ignore[misc]
    names_limits = "limits=Limits(timeout=...) limits its requests" in str(refusal.value)
    assert names_limits is (setting == "timeout")
    assert app.serving.registry.names == []


@pytest.mark.parametrize("setting", CALLS)
@pytest.mark.parametrize("model", [Transforms("m"), Prepares("m"), ExplainsElsewhere("m")])
def test_settings_of_calls_to_a_predictor_are_kept(model: Model, setting: str) -> None:
    """Models that only prepare payloads may be told their predictor when they are loaded."""
    ModelServer().add_model(model, **{setting: VALUES[setting]})  # type: ignore[misc]
    assert getattr(model, setting) == VALUES[setting]


@pytest.mark.parametrize("setting", CALLS)
def test_a_predictor_and_a_setting_of_calls_to_it_may_come_together(setting: str) -> None:
    model = Predicting("m")
    settings = {setting: VALUES[setting], "predictor_host": "predictor"}
    ModelServer().add_model(model, **settings)  # type: ignore[arg-type]
    assert getattr(model, setting) == VALUES[setting]


@pytest.mark.parametrize("value", [None, print])
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_only_has_the_name_of_a_setting_is_none(setting: str, value: Any) -> None:
    model = Bare()
    setattr(model, setting, value)
    assert getattr(as_model(model, "m"), setting) == getattr(Model, setting)


@pytest.mark.anyio
async def test_an_object_has_versions_and_a_platform() -> None:
    model = Bare()
    vars(model).update(versions=["1", "2"], platform="onnxruntime")
    app = ModelServer()
    app.add_model(model, "m")
    about = (await request(app, "GET", "/v2/models/m/versions/2")).json()
    assert (about["versions"], about["platform"]) == (["1", "2"], "onnxruntime")
    assert (await request(app, "GET", "/v2/models/m/versions/3/ready")).status == 404


class SaysItself:
    """It knows whether it is ready, and nothing else does."""

    def __init__(self) -> None:
        self.ready = False

    def load(self) -> None:
        self.ready = True

    def predict(self, payload: Any) -> Any:
        return payload


@pytest.mark.anyio
async def test_an_object_goes_on_to_say_whether_it_is_ready() -> None:
    model = SaysItself()
    app = ModelServer()
    app.add_model(model, "m")
    assert not model.ready
    async with lifespan(app):
        await loaded(app)
        assert model.ready
        assert (await request(app, *PREDICT, json=[1])).status == 200
        model.ready = False
        assert (await request(app, *PREDICT, json=[1])).status == 503
        assert (await request(app, "GET", "/v2/health/ready")).status == 503


@pytest.mark.anyio
async def test_the_readiness_of_an_object_may_be_read_only() -> None:
    class Connected:
        connection: Any = None

        @property
        def ready(self) -> bool:
            return self.connection is not None

        def predict(self, payload: Any) -> Any:
            return payload

    model = Connected()
    app = ModelServer()
    app.add_model(model, "m")
    assert (await request(app, *PREDICT, json=[1])).status == 503
    model.connection = 1
    assert (await request(app, *PREDICT, json=[1])).status == 200


def test_a_served_object_can_be_pickled() -> None:
    made = as_model(SaysItself(), "m")
    copy = pickle.loads(pickle.dumps(made))
    copy.load()
    assert (copy.name, copy.ready, made.ready) == ("m", True, False)
