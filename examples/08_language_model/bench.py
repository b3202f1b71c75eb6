"""Print how many tokens a second both models write for 1, 4 and 8 clients at once.

    python examples/08_language_model/bench.py tiny-llama

It starts app.py with the checkpoint, once for each model, and asks it for completions of 60 tokens
at most after prompts of different lengths.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from statistics import median

CLIENTS = (1, 4, 8)
PROMPTS = ["The value", "If the statement is", "An expression that has been evaluated by the"]


@dataclass(frozen=True)
class Answer:
    tokens: int
    first: float  # seconds until the first piece


@contextmanager
def served(checkpoint: str, options: Sequence[str]) -> Iterator[int]:
    """Serve a checkpoint; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    program = [sys.executable, str(Path(__file__).with_name("app.py")), checkpoint, "--name", "m"]
    process = subprocess.Popen(
        [*program, "--port", str(port), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not is_ready(port):
            if process.poll() is not None:
                raise SystemExit(f"app.py has ended; see: {' '.join(process.args)}")
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def is_ready(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def ask(port: int, number: int) -> Answer:
    """Read one stream to its end."""
    request = {
        "model": "m",
        "prompt": PROMPTS[number % len(PROMPTS)],
        "max_tokens": 60,
        "seed": number,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start, first, tokens = time.perf_counter(), 0.0, 0
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/completions", json.dumps(request))
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(response.read().decode())
    for line in response:
        first = first or time.perf_counter() - start
        if line.startswith(b"data: {") and (usage := json.loads(line[6:]).get("usage")):
            tokens = usage["completion_tokens"]
    connection.close()
    return Answer(tokens, first)


def measure(port: int, clients: int, requests: int) -> tuple[float, float]:
    """Return tokens a second, and the median of the seconds until the first piece."""
    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        answers = list(pool.map(lambda number: ask(port, number), range(requests)))
        took = time.perf_counter() - start
    return sum(answer.tokens for answer in answers) / took, median(
        answer.first for answer in answers
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--requests", type=int, default=24, help="by all clients (default 24)")
    parser.add_argument("--runs", type=int, default=3, help="of which the best counts (default 3)")
    options = parser.parse_args()
    print("| clients | one by one: tokens/s | together | | first piece, one by one | together |")
    print("|---|---|---|---|---|---|")
    rows: dict[int, list[tuple[float, float]]] = {clients: [] for clients in CLIENTS}
    for extra in ([], ["--together", "8"]):
        with served(options.checkpoint, ["--device", options.device, *extra]) as port:
            ask(port, 0)  # the first is slower
            for clients in CLIENTS:
                runs = [measure(port, clients, options.requests) for _ in range(options.runs)]
                rows[clients].append(max(runs))  # the others had less of the processors
    for clients, ((alone, wait), (joint, joint_wait)) in rows.items():
        print(
            f"| {clients} | {alone:.0f} | {joint:.0f} | x{joint / alone:.1f} |"
            f" {1000 * wait:.0f} ms | {1000 * joint_wait:.0f} ms |"
        )


if __name__ == "__main__":
    main()
