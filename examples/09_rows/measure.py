"""Send a file of rows with curl and with `modelserve call`; print rows/s and the server's memory.

    python examples/09_rows/measure.py 1000000

The file is made and the server started here. On 2 cores of a shared machine, 21 MB of rows:

    curl: 342993 rows/s, 3.9 MB above idle
    modelserve call: 202910 rows/s, 3.9 MB above idle

Memory is what the server has in RAM at most (read
from /proc, so on Linux), above what it had before the first row.
"""

import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).parent
QUIET = ["--log-level", "warning"]
MODELSERVE = [sys.executable, "-m", "modelserve"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    while True:
        if server.poll() is not None:
            raise SystemExit("the server has ended")
        try:
            urllib.request.urlopen(f"{url}/v2/health/ready").close()
            return
        except OSError:
            time.sleep(0.1)


def megabytes(pid: int) -> float:
    """Return what a process has in RAM."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the server has ended")


def run(command: list[str], rows: Path, count: int, pid: int) -> tuple[float, float]:
    """Run a client on the file; return its seconds, and the most memory of the server meanwhile."""
    answers, most = rows.with_name("species.jsonl"), 0.0
    begun = time.monotonic()
    with rows.open("rb") as source, answers.open("wb") as target:
        client = subprocess.Popen(command, stdin=source, stdout=target)
        while client.poll() is None:
            most = max(most, megabytes(pid))
            time.sleep(0.01)
    seconds = time.monotonic() - begun
    with answers.open("rb") as lines:
        answered = sum(line.startswith(b'"') for line in lines)  # a name, not an error
    if client.returncode != 0 or answered != count:
        raise SystemExit(f"exit code {client.returncode}, {answered} answers")
    return seconds, most


def main() -> None:
    count, url = int(sys.argv[1]), f"http://127.0.0.1:{(port := free_port())}"
    path = f"{url}/v1/models/iris:predict"
    kind = "content-type: application/x-ndjson"
    clients = {
        "curl": ["curl", "-sfN", "-T", "-", "-X", "POST", "-H", kind, path],
        "modelserve call": [*MODELSERVE, "call", url, "iris"],
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        with rows.open("wb") as target:
            subprocess.run(
                [sys.executable, HERE / "rows.py", str(count)], stdout=target, check=True
            )
        server = subprocess.Popen([*MODELSERVE, str(HERE / "app.py"), "--port", str(port), *QUIET])
        try:
            wait_until_ready(url, server)
            # What is imported with a first call is no memory that rows take.
            urllib.request.urlopen(path, b'{"instances": [[5.1, 3.5, 1.4, 0.2]]}').close()
            idle = megabytes(server.pid)
            for name, command in clients.items():
                seconds, most = run(command, rows, count, server.pid)
                print(f"{name}: {count / seconds:.0f} rows/s, {most - idle:.1f} MB above idle")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
