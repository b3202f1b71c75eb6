"""The choice by `Accept` as the sentences of RFC 9110 have it, range by range, however slow."""

from collections.abc import Sequence

from modelserve.wire.accept import parse_accept

NAMES = {
    "sse": ("text/event-stream",),
    "ndjson": (
        "application/x-ndjson",
        "application/jsonl",
        "application/ndjson",
        "application/x-jsonl",
        "application/jsonlines",
        "application/x-jsonlines",
    ),
    "text": ("text/plain", "application/octet-stream"),
    "octets": ("application/octet-stream", "text/plain"),
    "collected": ("application/json",),
}


def slow_choice(header: str, forms: Sequence[str]) -> str | None:
    """Return the media type to send, of these forms of which the first is the natural one."""
    ranges = parse_accept(header)
    if not ranges:
        return NAMES[forms[0]][0]
    for wanted in ranges:
        for form in forms:
            name = _name_within(wanted.name, form)
            if name and wanted.quality > 0 and _quality(header, name) > 0:
                return name
    return None


def slow_framed(header: str) -> str | None:
    """Return the media type of a framed stream that is asked for by name and before all else."""
    wanted = next(iter(parse_accept(header)), None)
    for form in ("sse", "ndjson"):
        if wanted and wanted.quality > 0 and wanted.name in NAMES[form]:
            return wanted.name
    return None


def _name_within(pattern: str, form: str) -> str | None:
    if pattern in NAMES[form]:
        return pattern
    return NAMES[form][0] if _matches(pattern, NAMES[form][0]) else None


def _quality(header: str, name: str) -> float:
    """Return the quality of the most specific range; of equal ones, of the most wanted."""
    matching = [r for r in parse_accept(header) if _matches(r.name, name)]
    matching.sort(key=lambda r: r.specificity, reverse=True)
    return matching[0].quality if matching else 0.0


def _matches(pattern: str, name: str) -> bool:
    return pattern in ("*/*", name) or pattern == name.partition("/")[0] + "/*"
