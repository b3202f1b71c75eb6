"""Paths and a port that a platform asks for, in a process of its own."""

import socket
from pathlib import Path

from servercommand import Serve, until

ONE = """
from modelserve import ModelServer

app = ModelServer()

@app.model("m", path="/own")
async def m(payload):
    return payload
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_what_platforms_ask_for(start: Serve, tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(ONE)
    port = free_port()
    vertex = {"AIP_PREDICT_ROUTE": "/predict", "AIP_HEALTH_ROUTE": "/health"}
    flags = ("--sagemaker", "--alias", "/up=/v2/health/live")
    running = start("one.py", *flags, address=(), PORT="", AIP_HTTP_PORT=str(port), **vertex)
    until(running.has_begun)
    assert running.port == port
    until(lambda: running.get("/health")[0] == 200)
    assert running.get("/ping") == (200, {"ready": True})
    assert running.get("/up") == (200, {"live": True})
    for path in ("/own", "/predict", "/invocations"):
        assert running.ask("PUT", path, "[1]") == running.ask("POST", path, "[1]") == (200, [1])
        assert running.get(path)[0] == 405
    assert running.get("/nowhere")[0] == 404
    counted = 'model_name="m",outcome="done",protocol="v1",status="200",verb="predict"} 6.0'
    assert counted in running.get("/metrics")[1]
    assert running.process.poll() is None
