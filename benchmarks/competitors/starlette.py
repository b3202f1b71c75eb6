"""Starlette under uvicorn; a sync generator goes through its `iterate_in_threadpool`."""

from benchmarks.competitors import ECHO, UVICORN, V1_STREAMS, uvicorn, v1

REQUIREMENTS = (*UVICORN, "starlette>=0.40")
COMMAND = uvicorn("benchmarks.apps.starlette:app")
ENDPOINTS = {"unary": ECHO, **V1_STREAMS, "sync": v1("sync")}
