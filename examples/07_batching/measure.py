"""Measure what batching gains: one client, and many at once, each asking again and again.

python examples/07_batching/measure.py forest|writer [URL]
"""

import http.client
import json
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

SECONDS = 2.0


def ask(connection: http.client.HTTPConnection, model: str, instance: Any) -> int:
    """Ask once; return how many bytes the answer has."""
    body = json.dumps({"instances": [instance]})
    connection.request("POST", f"/v1/models/{model}:predict", body)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {answer.decode()}")
    return len(answer)


def measure(url: str, model: str, instance: Any, clients: int) -> tuple[float, float]:
    """Return how many answers, and bytes of them, so many clients get in a second."""
    counts = [(0, 0)] * clients
    begun = time.monotonic()

    def run(number: int) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc)
        while time.monotonic() < begun + SECONDS:
            length = ask(connection, model, instance)
            counts[number] = (counts[number][0] + 1, counts[number][1] + length)
        connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - begun
    return sum(c[0] for c in counts) / seconds, sum(c[1] for c in counts) / seconds


def main() -> None:
    what, url, *_ = [*sys.argv[1:], "http://127.0.0.1:8080"]
    if what == "forest":
        picture = [float(number % 17) for number in range(64)]
        for model in ("digits-one-by-one", "digits"):
            for clients in (1, 16):
                answers, _ = measure(url, model, picture, clients)
                print(f"{model}, {clients} at once: {answers:.0f} requests/s")
    else:
        for clients in (1, 8):
            asked = {"prompt": "This module ", "letters": 300}
            _, letters = measure(url, "writer", asked, clients)
            print(f"writer, {clients} at once: {letters:.0f} tokens/s")


if __name__ == "__main__":
    main()
