"""What platforms ask for: ports and paths."""

import logging
from typing import Any

import pytest

from modelserve import ModelServer
from modelserve.command.hosting import follow_environment, follow_sagemaker, port_in, predict_at


def serve(*names: str, **options: Any) -> ModelServer:
    app = ModelServer(**options)
    for name in names:
        app.add_model(lambda payload: payload, name)
    return app


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        ({}, None),
        ({"PORT": ""}, None),
        ({"PORT": "0"}, 0),
        ({"AIP_HTTP_PORT": "1"}, 1),
        ({"AIP_HTTP_PORT": "1", "PORT": "2"}, 2),
        ({"AIP_HTTP_PORT": "http", "PORT": "2"}, 2),
        ({"AIP_HTTP_PORT": "1", "PORT": ""}, 1),
    ],
)
def test_the_first_port_that_is_set_counts(environ: dict[str, str], port: int | None) -> None:
    assert port_in(environ) == port


@pytest.mark.parametrize("variable", ["PORT", "AIP_HTTP_PORT"])
@pytest.mark.parametrize(
    ("text", "problem"),
    [("http", "'http' is not a whole number"), ("-1", "'-1'"), ("65536", "65536 is not a port")],
)
def test_what_is_no_port(variable: str, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=f"the environment variable {variable}: {problem}"):
        port_in({variable: text})


VERTEX = {"AIP_HEALTH_ROUTE": "/health", "AIP_PREDICT_ROUTE": "/v1/endpoints/1/models/2:predict"}
MEANINGS = {"/health": "/v2/health/ready", "/v1/endpoints/1/models/2:predict": "/v1/models/m:predict"}  # fmt: skip


def test_the_paths_of_vertex_ai() -> None:
    app = serve("m")
    follow_environment(app, VERTEX)
    follow_environment(app, VERTEX)  # in a program and on the command line
    assert app.aliases == MEANINGS
    follow_environment(untouched := serve("m"), {"AIP_HEALTH_ROUTE": "", "AIP_PREDICT_ROUTE": ""})
    assert untouched.aliases == {}


def test_paths_that_are_built_in_or_given_a_meaning_stay_what_they_are() -> None:
    own = {"/predict": "/v2/models/b/infer"}
    app = serve("a", "b", aliases=own)
    follow_environment(app, {"AIP_HEALTH_ROUTE": "/", "AIP_PREDICT_ROUTE": "/predict"})
    follow_environment(app, {"AIP_PREDICT_ROUTE": "/v1/models/a:predict"})
    assert app.aliases == own
    app = serve("a", "b", aliases={"/ping": "/", "/invocations": "/v1/models/b:predict"})
    follow_sagemaker(app)
    assert app.aliases == {"/ping": "/", "/invocations": "/v1/models/b:predict"}


def test_the_paths_of_sagemaker() -> None:
    app = serve("a b")
    follow_sagemaker(app)
    assert app.aliases == {
        "/ping": "/v2/health/ready",
        "/invocations": "/v1/models/a%20b:predict",
    }


def test_a_model_with_two_names_is_one() -> None:
    app = serve("own")
    app.serving.registry.rename_only("other")
    predict_at(app, "/predict", asked_by="--predict-path")
    assert app.aliases == {"/predict": "/v1/models/other:predict"}


@pytest.mark.parametrize(("names", "listed"), [((), "none"), (("a", "b"), "a, b")])
def test_a_path_for_one_model_of_several(names: tuple[str, ...], listed: str) -> None:
    with pytest.raises(ValueError) as caught:
        follow_sagemaker(serve(*names))
    assert str(caught.value) == (
        f"--sagemaker is for an application with one model; the models here: {listed}. --alias"
        " /invocations=/v1/models/NAME:predict says which one /invocations means"
    )


def test_vertex_ai_with_several_models_and_with_none(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="AIP_PREDICT_ROUTE is for an application with one model"):
        follow_environment(serve("a", "b"), VERTEX)
    with caplog.at_level(logging.WARNING, "modelserve"):
        follow_environment(serve(), VERTEX)  # a directory whose models come later
    assert "AIP_PREDICT_ROUTE=/v1/endpoints/1/models/2:predict is ignored" in caplog.text


def test_variables_that_hold_no_path() -> None:
    with pytest.raises(ValueError, match="The path 'health' must be text that begins with '/'"):
        follow_environment(serve("m"), {"AIP_HEALTH_ROUTE": "health"})
