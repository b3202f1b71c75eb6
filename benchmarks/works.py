"""What is measured: each workload by name, with its kind and its number of connections."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """One workload.

    `kind` names the endpoint (see `benchmarks.competitors`). A `fresh` workload gets a new server,
    because what it measures depends on what the process has done before. One that is measured
    `once` has the same result in every round, and is left out of the later ones.
    """

    name: str
    kind: str
    connections: int
    title: str
    fresh: bool = False
    once: bool = False


def _loads(kind: str, title: str, *connections: int) -> list[Work]:
    return [Work(f"{kind}-{n}", kind, n, f"{title}, {n} at once") for n in connections]


WORKS = {
    work.name: work
    for work in [
        *_loads("unary", "unary", 1, 16, 256),
        *_loads("unary_sync", "unary, a sync function", 1, 16),
        *_loads("batched", "a model of 5 ms a call, batched", 1, 16, 64),
        *_loads("one_by_one", "a model of 5 ms a call, one request a call", 1, 16, 64),
        *_loads("bytes", "ready bytes", 1, 8, 64),
        *_loads("ndjson", "dicts as NDJSON", 1, 8, 64),
        *_loads("sse", "dicts as SSE", 1, 8, 64),
        *_loads("chat", "chunks of a chat", 1, 8, 64),
        *_loads("joined", "ready bytes, coalesced", 1, 8, 64),
        *_loads("sync", "a sync generator", 1, 8),
        Work("first", "paced", 1, "time to the first item"),
        Work("cancel", "cancel", 1000, "cancel latency with 1,000 open streams", fresh=True),
        Work("idle-1000", "idle", 1000, "memory of 1,000 idle streams", fresh=True, once=True),
        Work("idle-10000", "idle", 10000, "memory of 10,000 idle streams", fresh=True, once=True),
    ]
}

QUICK = ("unary-16", "bytes-8", "ndjson-8", "sse-8", "first")
"""The workloads of a quick run."""
