"""Where a model's predictor is and how it is called, as data; `remote` makes the calls."""

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

__all__ = ["PROTOCOLS", "PredictorConfig", "Transport", "config_of"]

PROTOCOLS: Final = ("v1", "v2", "grpc-v2")


class Transport(NamedTuple):
    """How connections are made; only calls that agree on it may share them.

    Timeouts are not part of it: each request carries its own.

    Attributes:
        verifies: Servers must have a certificate that is trusted.
        retries: How often a connection that could not be made is tried again.
    """

    verifies: bool
    retries: int


@dataclass(frozen=True)
class PredictorConfig:
    """Where a predictor is and how it is called; the names are KServe's.

    Args:
        predictor_host: `host[:port]`, over HTTP optionally followed by a path.
        predictor_protocol: "v1", "v2" or "grpc-v2".
        predictor_request_timeout_seconds: For the start of the answer, and from one part of it to
            the next; over gRPC for the whole of it.
        predictor_request_retries: How often a connection that could not be made is tried again.
        predictor_health_check: Whether the model is ready only while the predictor is.
    """

    predictor_host: str
    predictor_protocol: str = "v1"
    predictor_use_ssl: bool = False
    predictor_request_timeout_seconds: float = 600
    predictor_request_retries: int = 0
    predictor_health_check: bool = False

    @property
    def predictor_base_url(self) -> str:
        host = self.predictor_host.rstrip("/")
        if "://" in host:
            return host
        return f"{'https' if self.predictor_use_ssl else 'http'}://{host}"

    @property
    def protocol(self) -> str:
        return self.predictor_protocol

    @property
    def use_ssl(self) -> bool:
        return self.predictor_use_ssl

    @property
    def timeout(self) -> float:
        return self.predictor_request_timeout_seconds

    @property
    def retries(self) -> int:
        return self.predictor_request_retries

    @property
    def transport(self) -> Transport:
        """Connections are verified unless the scheme is exactly `http`."""
        return Transport(not self.predictor_base_url.startswith("http://"), self.retries)


def config_of(model: Any, *, explainer: bool = False) -> PredictorConfig | None:
    """Read a model's attributes that describe its predictor; None where they name no host."""
    host = model.explainer_host if explainer else model.predictor_host
    if not host:
        return None
    protocol = "v1" if explainer else model.protocol
    return PredictorConfig(
        host, protocol, model.use_ssl, model.timeout, model.retries, model.predictor_health_check
    )
