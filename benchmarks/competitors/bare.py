"""The bare ASGI application under uvicorn: the ceiling, and what the others are divided by."""

from benchmarks.competitors import CHAT, ECHO, UVICORN, V1_STREAMS, uvicorn, v1

REQUIREMENTS = UVICORN
COMMAND = uvicorn("benchmarks.apps.bare:app")
ENDPOINTS = {
    "unary": ECHO,
    "unary_sync": ECHO,
    **V1_STREAMS,
    "chat": CHAT,
    "joined": v1("bytes"),
    "sync": v1("bytes"),
    "cancel": v1("watched", items=1),
}
