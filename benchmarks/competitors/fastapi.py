"""FastAPI under uvicorn, with declared models as its documentation advises for speed."""

from benchmarks.competitors import ECHO, ECHO_SYNC, UVICORN, V1_STREAMS, uvicorn, v1

REQUIREMENTS = (*UVICORN, "fastapi>=0.135")
COMMAND = uvicorn("benchmarks.apps.fastapi:app")
ENDPOINTS = {"unary": ECHO, "unary_sync": ECHO_SYNC, **V1_STREAMS, "sync": v1("sync")}
