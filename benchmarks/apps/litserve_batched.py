"""LitServe with its batching: up to 32 requests, or what has come while a call would take.

As in `litserve`, two processes serve HTTP.
"""

import argparse
import time
from typing import Any

import litserve

from benchmarks.apps.litserve import Echo
from benchmarks.payloads import CALL_SECONDS, MOST_IN_A_BATCH, as_answer


class Batched(litserve.LitAPI):
    def setup(self, device: str) -> None: ...

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: list[Any], **kwargs: Any) -> list[Any]:
        time.sleep(CALL_SECONDS)
        return [as_answer(one) for one in x]

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_args().port
    batched = Batched(
        api_path="/v1/models/batched:predict",
        max_batch_size=MOST_IN_A_BATCH,
        batch_timeout=CALL_SECONDS,
    )
    server = litserve.LitServer(
        [Echo(api_path="/v1/models/echo:predict"), batched],
        accelerator="cpu",
        timeout=False,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=2,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
