"""Where a predictor is and how it is called."""

from typing import Any

import pytest

from modelserve import Model
from modelserve.models.predictor import PredictorConfig, Transport


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"predictor_host": "a"}, "http://a"),
        ({"predictor_host": "a:1/b/"}, "http://a:1/b"),
        ({"predictor_host": "a", "predictor_use_ssl": True}, "https://a"),
        ({"predictor_host": "http://a/", "predictor_use_ssl": True}, "http://a"),
    ],
)
def test_where_a_predictor_is(settings: Any, url: str) -> None:
    assert PredictorConfig(**settings).predictor_base_url == url


def test_a_model_takes_its_settings_from_a_config() -> None:
    model = Model("m")
    assert model.predictor_config is None
    model.predictor_config = PredictorConfig("h", "v2", True, 5, 2, True)
    assert (model.predictor_host, model.protocol, model.use_ssl) == ("h", "v2", True)
    assert (model.timeout, model.retries, model.predictor_health_check) == (5, 2, True)
    assert model.predictor_config == PredictorConfig("h", "v2", True, 5, 2, True)
    config = model.predictor_config
    assert (config.protocol, config.use_ssl, config.timeout, config.retries) == ("v2", True, 5, 2)


@pytest.mark.parametrize(
    ("host", "use_ssl", "verifies"),
    [
        ("a", False, False),
        ("http://a", True, False),
        ("a", True, True),
        ("https://a", False, True),
        ("HTTPS://a", False, True),
        (" https://a", False, True),
    ],
)
def test_connections_are_verified_unless_they_are_plain(
    host: str, use_ssl: bool, verifies: bool
) -> None:
    config = PredictorConfig(host, predictor_use_ssl=use_ssl, predictor_request_retries=3)
    assert config.transport == Transport(verifies, 3)
