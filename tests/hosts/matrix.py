"""The table of hosts in the README, measured: each host is started, and each probe put to it.

    python tests/hosts/matrix.py            print the table
    python tests/hosts/matrix.py --write    put it into the README

It needs `pip install -e '.[test]' daphne django litestar mangum quart zttp`, and some minutes.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(HERE.parent / "sockets"), str(ROOT)]

import hosted
from hostclients import Http1, Http1Gzip, Http2, Lambda, Transport, WithTestClient
from hostprobes import IN_PROCESS, SERVED, Host, Probe, echo_over_socket
from realserver import free_port, until

__all__ = ["README", "ROWS", "Row", "listed", "measure", "render", "table"]

README = ROOT / "README.md"
BEGIN, END = "<!-- hosts -->\n", "<!-- end of hosts -->\n"
NOTHING = "nothing of this"
UVICORN = "uvicorn --timeout-graceful-shutdown 5 --port {port} {app}"
# It closes connections that are idle for 5 s, and takes those of a stream that hangs for idle.
HYPERCORN = "hypercorn --keep-alive 60 -b 127.0.0.1:{port} {app}"
GRANIAN = "granian --interface asgi --port {port} {app}"


@dataclass(frozen=True)
class Row:
    """A host of the table: how it is run, and what is asked of it."""

    name: str
    run: Callable[[Path], AbstractContextManager[Host]]
    probes: list[Probe]
    needs: tuple[str, ...] = ()  # packages


# -- hosts


def served(
    name: str,
    command: str,
    application: str = "bare",
    *,
    connect: Any = Http1,
    prefix: str = "",
    needs: tuple[str, ...] = (),
) -> Row:
    @contextmanager
    def run(folder: Path) -> Iterator[Host]:
        port = free_port()
        words = command.format(port=port, app="hosted:app").split()
        path = [str(HERE), str(HERE.parent / "sockets"), str(ROOT)]
        environment = os.environ | {
            "HOSTED": application,
            "HOSTED_FOLDER": str(folder),
            "PYTHONPATH": os.pathsep.join(path),
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            assert until(lambda: _listens(port, process), seconds=60), (folder / "log").read_text()
            yield Host(
                folder,
                lambda: connect(port),
                prefix,
                process,
                lambda path: echo_over_socket(port, path),
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its workers too
            process.wait()

    return Row(name, run, SERVED, needs)


def _listens(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "it has ended"
    try:
        Http1(port).close()
    except OSError:
        return False
    return True


def in_process(
    name: str, opened: Callable[[Any], AbstractContextManager[Any]], needs: tuple[str, ...] = ()
) -> Row:
    @contextmanager
    def run(folder: Path) -> Iterator[Host]:
        os.environ["HOSTED_FOLDER"] = str(folder)
        with opened(hosted.bare()) as (connect, echo):
            yield Host(folder, connect, echo=echo)

    return Row(name, run, IN_PROCESS, needs)


@contextmanager
def _test_client(app: Any) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with TestClient(app) as client:

        def echo(path: str) -> str:
            with client.websocket_connect(path) as socket:
                socket.send_text('"hello"')
                return str(socket.receive_text())

        yield lambda: WithTestClient(client), echo


@contextmanager
def _transport(app: Any) -> Iterator[Any]:
    yield lambda: Transport(app), None


@contextmanager
def _mangum(app: Any) -> Iterator[Any]:
    from mangum import Mangum

    handler = Mangum(app, lifespan="off")
    yield lambda: Lambda(handler), None


def mounts(name: str, package: str) -> list[Row]:
    given: dict[str, Any] = {"prefix": "/ml", "needs": (package,)}
    return [
        served(f"{name}, with a lifespan", UVICORN, package, **given),
        served(f"{name}, without", UVICORN, f"{package}-without", **given),
    ]


ROWS = [
    served("`modelserve`", "modelserve --port {port} {app}"),
    served("uvicorn", f"{UVICORN} --http httptools"),
    served("uvicorn, h11", f"{UVICORN} --http h11"),
    served("uvicorn without `--timeout-graceful-shutdown`", "uvicorn --port {port} {app}"),
    served("hypercorn", HYPERCORN),
    served("hypercorn, HTTP/2", HYPERCORN, connect=Http2),
    served("hypercorn on trio", f"{HYPERCORN} --worker-class trio"),
    served("hypercorn on trio, HTTP/2", f"{HYPERCORN} --worker-class trio", connect=Http2),
    served("granian", f"{GRANIAN} --http 1"),
    served("granian, HTTP/2", f"{GRANIAN} --http 2", connect=Http2),
    served("daphne", "daphne -b 127.0.0.1 -p {port} {app}", needs=("daphne",)),
    *mounts("Starlette", "starlette"),
    *mounts("FastAPI", "fastapi"),
    *mounts("Litestar", "litestar"),
    *mounts("Quart", "quart"),
    *mounts("Django", "django"),
    served("starlette's CORSMiddleware", UVICORN, "cors"),
    served("starlette's GZipMiddleware", UVICORN, "gzip", connect=Http1Gzip),
    served("starlette's BaseHTTPMiddleware", UVICORN, "base"),
    in_process("starlette's TestClient", _test_client),
    in_process("httpx's ASGITransport", _transport),
    in_process("Mangum (AWS Lambda)", _mangum, ("mangum",)),
]


# -- the table


def measure(row: Row, folder: Path) -> str:
    """Run a host and return what it cannot do, as it stands in the table."""
    with row.run(folder) as host:
        try:
            found = [words for probe in row.probes if (words := probe(host))]
        except BaseException as error:
            if (folder / "log").exists():
                error.add_note((folder / "log").read_text(errors="replace")[-5000:])
            raise
    return "; ".join(found) or NOTHING


def render(found: dict[str, str]) -> str:
    """Write the table: a line for each thing that hosts cannot do, with the hosts that cannot."""
    lines = ["| host | what it cannot do |", "|---|---|"]
    for words in dict.fromkeys(found.values()):
        names = "; ".join(name for name, its in found.items() if its == words)
        lines.append(f"| {names} | {words} |")
    return "\n".join([*lines, ""])


def table(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def listed(text: str) -> dict[str, str]:
    """Return what the table in the README says of each host, in the order of the rows here."""
    lines = re.findall(r"^\| (.*) \| (.*) \|$", table(text), re.MULTILINE)[1:]
    found = {name: words for names, words in lines for name in names.split("; ")}
    place = {row.name: number for number, row in enumerate(ROWS)}
    return dict(sorted(found.items(), key=lambda item: place.get(item[0], len(ROWS))))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what each host can do.")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    parser.add_argument("hosts", nargs="*", help="only these")
    options = parser.parse_args()
    found = {}
    for row in ROWS:
        if options.hosts and row.name not in options.hosts:
            continue
        with tempfile.TemporaryDirectory() as folder:
            found[row.name] = measure(row, Path(folder))
        print(f"{row.name}: {found[row.name]}", flush=True)
    if options.write and not options.hosts:
        text = README.read_text()
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        README.write_text(before + BEGIN + render(found) + END + after)


if __name__ == "__main__":
    main()
