"""KServe's constants, except those of its Kubernetes client."""

from enum import Enum
from typing import Final

__all__ = [
    "DEFAULT_HTTPS_PORT",
    "DEFAULT_HTTP_PORT",
    "EXPLAINER_BASE_URL_FORMAT",
    "INFERENCE_CONTENT_LENGTH_HEADER",
    "KSERVE_GROUP",
    "KSERVE_KIND_INFERENCESERVICE",
    "KSERVE_MODEL_SERVER_NAME",
    "KSERVE_PLURAL_INFERENCESERVICE",
    "KSERVE_TLS_CERT_FILE_ENV",
    "KSERVE_TLS_KEY_FILE_ENV",
    "KSERVE_V1BETA1",
    "KSERVE_V1BETA1_VERSION",
    "V1_ROUTE_PREFIX",
    "V2_ROUTE_PREFIX",
    "ModelType",
    "PredictorProtocol",
]

KSERVE_GROUP: Final = "serving.kserve.io"
KSERVE_V1BETA1_VERSION: Final = "v1beta1"
KSERVE_V1BETA1: Final = f"{KSERVE_GROUP}/{KSERVE_V1BETA1_VERSION}"
KSERVE_KIND_INFERENCESERVICE: Final = "InferenceService"
KSERVE_PLURAL_INFERENCESERVICE: Final = "inferenceservices"
KSERVE_MODEL_SERVER_NAME: Final = "kserve"

V1_ROUTE_PREFIX: Final = "/v1"
V2_ROUTE_PREFIX: Final = "/v2"
INFERENCE_CONTENT_LENGTH_HEADER: Final = "inference-header-content-length"
EXPLAINER_BASE_URL_FORMAT: Final = "{0}://{1}"

DEFAULT_HTTP_PORT: Final = 8080
DEFAULT_HTTPS_PORT: Final = 8443
KSERVE_TLS_CERT_FILE_ENV: Final = "KSERVE_TLS_CERT_FILE"
KSERVE_TLS_KEY_FILE_ENV: Final = "KSERVE_TLS_KEY_FILE"


class PredictorProtocol(Enum):
    """The protocols between a transformer and its predictor."""

    REST_V1 = "v1"
    REST_V2 = "v2"
    GRPC_V2 = "grpc-v2"


class ModelType(Enum):
    """The kinds of component of an InferenceService."""

    EXPLAINER = 1
    PREDICTOR = 2
