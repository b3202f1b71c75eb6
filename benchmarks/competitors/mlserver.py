"""MLServer: V2 only, and its only stream is server-sent events with a V2 response each."""

from benchmarks.competitors import Endpoint

REQUIREMENTS = ("mlserver>=1.7", "uvloop>=0.21")
COMMAND = ("-m", "benchmarks.apps.mlserver", "--port", "{port}", "--grpc-port", "{spare}")
BODY = (
    b'{"inputs":[{"name":"input","shape":[2,4],"datatype":"FP64",'
    b'"data":[1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0]}]}'
)
ROW = b'{"inputs":[{"name":"input","shape":[1,4],"datatype":"FP64","data":[5.0,6.0,7.0,8.0]}]}'
IDLE = Endpoint("/v2/models/idle/infer_stream", BODY, items=1)
ENDPOINTS = {
    "unary": Endpoint("/v2/models/echo/infer", BODY, items=0),
    "batched": Endpoint("/v2/models/batched/infer", ROW, items=0),
    "sse": Endpoint("/v2/models/echo/infer_stream", BODY),
    "paced": Endpoint("/v2/models/paced/infer_stream", BODY, items=2),
    "idle": IDLE,
    "cancel": IDLE,
}
