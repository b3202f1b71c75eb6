"""FastAPI under uvicorn, with declared models as its documentation advises for speed."""

from benchmarks.competitors import ECHO, UVICORN, V1_STREAMS, uvicorn, v1

REQUIREMENTS = (*UVICORN, "fastapi>=0.135")
COMMAND = uvicorn("benchmarks.apps.fastapi:app")
ENDPOINTS = {"unary": ECHO, **V1_STREAMS, "sync": v1("sync")}
