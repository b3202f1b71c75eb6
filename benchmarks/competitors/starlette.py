"""Starlette under uvicorn; a sync generator goes through its `iterate_in_threadpool`."""

from benchmarks.competitors import ECHO, ECHO_SYNC, UVICORN, V1_STREAMS, uvicorn, v1

REQUIREMENTS = (*UVICORN, "starlette>=0.40")
COMMAND = uvicorn("benchmarks.apps.starlette:app")
ENDPOINTS = {"unary": ECHO, "unary_sync": ECHO_SYNC, **V1_STREAMS, "sync": v1("sync")}
