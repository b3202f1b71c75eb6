"""Which models there are, what is settled about each, and whether they are healthy."""

import math
import pickle
from typing import Any

import anyio
import pytest

from modelserve import Limits, Model, ModelServer
from modelserve.concurrency.admission import Admission
from modelserve.concurrency.threads import Workers
from modelserve.errors import ModelNotFound
from modelserve.limits import BINARY_BYTES, DEFAULTS, SMALL_BYTES
from modelserve.metrics.telemetry import Telemetry
from modelserve.models.registry import Entry, Registry, Shared, State
from modelserve.testing import exchange, request

pytestmark = pytest.mark.anyio

PREDICT = ("POST", "/v1/models/m:predict")


class Predicts(Model):
    def predict(self, payload: Any) -> Any:
        raise NotImplementedError


class WithLoad(Predicts):
    def load(self) -> bool:
        raise NotImplementedError


class WithStart(Predicts):
    def start(self) -> None:
        raise NotImplementedError


class WithEngine(Model):
    engine = True


class Broken(Model):
    """It has no hook that can be served."""

    def predict(self, payload: Any, temperature: float) -> Any:
        raise NotImplementedError


def registry(*models: Any, limits: Limits = DEFAULTS) -> Registry:
    made = Registry(Shared(limits, Workers(4), Telemetry(), Admission(DEFAULTS)))
    for model in models:
        made.add(model)
    return made


async def predict(payload: Any) -> Any:
    return payload


async def attempted(entry: Entry) -> None:
    """Wait for the load in the background, which would set `ready` once more."""
    assert entry.attempted is not None
    with anyio.fail_after(5):
        await entry.attempted.wait()


async def status(app: ModelServer, path: str = "/v1/models/m") -> int:
    return (await request(app, "GET", path)).status


# --- the register -------------------------------------------------------------------------------


def test_models_are_kept_in_order() -> None:
    made = registry(Model("b"), Model("a"))
    made.add(predict, "c")
    assert made.names == ["b", "a", "c"]
    assert [entry.name for entry in made] == ["b", "a", "c"]
    assert "a" in made and "z" not in made
    assert made.get("a").model.name == "a"


@pytest.mark.parametrize("method", ["get", "remove"])
def test_an_unknown_model_is_not_found(method: str) -> None:
    with pytest.raises(ModelNotFound, match=r"^Model with name zz does not exist\.$"):
        getattr(registry(Model("m")), method)("zz")


def test_a_model_can_be_removed() -> None:
    made = registry(Model("m"))
    assert made.remove("m").name == "m"
    assert "m" not in made


def test_a_model_of_the_same_name_is_replaced_in_its_place() -> None:
    first, second = Model("m"), Model("m")
    made = registry(first, Model("n"), second)
    assert made.names == ["m", "n"]
    assert made.get("m").model is second


def test_an_entry_has_the_limits_of_both() -> None:
    model = Model("m")
    model.limits = Limits(timeout=9, concurrency=3)
    limits = Limits(timeout=5, concurrency=1).with_defaults(DEFAULTS)
    entry = registry(limits=limits).add(model)
    assert (entry.limits.timeout, entry.limits.concurrency) == (5, 3)
    assert (entry.deadlines.timeout, entry.gate.concurrency) == (5, 3)
    assert entry.max_body_bytes == DEFAULTS.max_body_bytes


@pytest.mark.parametrize(
    ("model", "ready"),
    [(Model("m"), True), (WithLoad("m"), False), (WithStart("m"), False), (WithEngine("m"), False)],
    ids=lambda value: type(value).__name__,
)
def test_what_has_nothing_to_load_is_ready_at_once(model: Model, ready: bool) -> None:
    entry = registry(model).get("m")
    assert model.ready is ready
    assert entry.state == (State.READY if ready else State.UNAVAILABLE)


def test_states_are_tritons() -> None:
    assert [str(state) for state in State] == ["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]


@pytest.mark.parametrize(
    ("limits", "own", "max_body_bytes", "max_binary_bytes"),
    [
        (Limits(), Limits(), DEFAULTS.max_body_bytes, BINARY_BYTES),
        (Limits(max_body_bytes=5), Limits(), 5, 5),
        (Limits(), Limits(max_body_bytes=7), 7, 7),
        (Limits(max_body_bytes=5), Limits(max_body_bytes=7), 5, 5),
        (Limits(max_body_bytes=math.inf), Limits(), math.inf, math.inf),
    ],
)
def test_binary_tensors_may_be_larger_unless_a_limit_is_set(
    limits: Limits, own: Limits, max_body_bytes: float, max_binary_bytes: float
) -> None:
    model = Model("m")
    model.limits = own
    entry = registry(limits=limits).add(model)
    assert (entry.max_body_bytes, entry.max_binary_bytes) == (max_body_bytes, max_binary_bytes)


@pytest.mark.parametrize(
    ("limits", "small"),
    [
        (Limits(), SMALL_BYTES),
        (Limits(max_body_bytes=9), 9),
        (Limits(max_json_values=40), 10),
        (Limits(max_json_values=math.inf, max_body_bytes=math.inf), SMALL_BYTES),
    ],
)
def test_a_small_body_is_within_all_limits(limits: Limits, small: float) -> None:
    assert registry(limits=limits).add(Model("m")).small_bytes == small


def test_a_model_that_cannot_be_served_leaves_an_entry_as_it_was() -> None:
    entry = registry(Model("m")).get("m")
    before = dict(vars(entry))
    with pytest.raises(TypeError, match="takes 'temperature'"):
        entry.settle(Broken("m"))
    assert vars(entry) == before


def test_a_model_without_a_name_leaves_and_one_with_another_name_stays() -> None:
    made = registry()
    one, other = Model("one"), Model("other")
    made.adopt("one", one)
    made.adopt("alias", one)
    entry = made.get("one")
    assert made.get("alias") is entry
    made.adopt("one", other)
    assert (entry.is_retired, made.leaving) == (False, set())
    made.forget("alias")
    assert (entry.is_retired, made.leaving) == (True, {entry})
    assert made.models == [("one", other)]


def test_models_can_be_pickled_and_registered_again() -> None:
    made = registry(Model("one"))
    made.add(predict, "function")
    made.adopt("alias", made.get("one").model)
    copies = registry()
    for name, model in pickle.loads(pickle.dumps(made.models)):
        copies.adopt(name, model)
    assert copies.names == ["one", "function", "alias"]
    assert copies.get("alias") is copies.get("one")
    assert copies.get("function").plans["predict"].main.function is predict


def test_a_name_whose_model_is_still_to_be_built_is_unavailable() -> None:
    made = registry()
    made.expect("m")
    assert made.get("m").state is State.UNAVAILABLE
    assert made.models == []
    assert made.index() == [{"name": "m", "version": "", "state": "UNAVAILABLE", "reason": ""}]


# --- health -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code"), [(True, 200), (False, 503), (None, 503), (ValueError("x"), 503)]
)
async def test_a_model_says_itself_whether_it_is_healthy(answer: Any, code: int) -> None:
    class Healthy(Model):
        async def healthy(self) -> bool:
            if isinstance(answer, Exception):
                raise answer
            return answer  # type: ignore[no-any-return]

        async def predict(self, payload: Any) -> Any:
            return payload

    app = ModelServer([Healthy("m")])
    assert await status(app) == code
    assert await status(app, "/v2/health/ready") == code
    assert (await request(app, *PREDICT, json=[])).status == code


@pytest.mark.parametrize("answer", [True, False])
async def test_a_sync_healthy_is_asked_too(answer: bool) -> None:
    class Healthy(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        def healthy(self) -> bool:  # type: ignore[override]
            return answer

    assert await status(ModelServer([Healthy("m")])) == (200 if answer else 503)


async def test_readiness_follows_what_the_model_sets() -> None:
    model = Model("m")
    app = ModelServer([model])
    assert await status(app) == 200
    await attempted(app.serving.registry.get("m"))
    model.ready = False
    assert await status(app) == 503
    assert await status(app, "/v2/health/ready") == 503
    model.ready = True
    assert await status(app) == 200


async def test_a_check_of_health_that_hangs_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelserve.models.health._SECONDS", 0.02)

    class Hanging(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        async def healthy(self) -> bool:
            await anyio.sleep_forever()
            return True

    app = ModelServer([Hanging("m")])
    assert await status(app) == 503


async def test_checks_of_health_run_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs may not keep the others, and the probe, waiting."""
    asked: list[str] = []
    all_asked = anyio.Event()

    class Healthy(Model):
        def predict(self, payload: Any) -> Any:
            raise NotImplementedError

        async def healthy(self) -> bool:
            asked.append(self.name)
            if len(asked) == 2:
                all_asked.set()
            await all_asked.wait()
            return True

    app = ModelServer([Healthy("m"), Healthy("n")])
    async with exchange(app, "GET", "/v2/health/ready") as client:
        await anyio.wait_all_tasks_blocked()
        seen = list(asked)
        all_asked.set()
        assert (await client.response()).status == 200
    assert sorted(seen) == ["m", "n"]
