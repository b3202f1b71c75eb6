"""Results as one SVG of horizontal bars: a panel for each workload, a bar for each server."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.compare import Results
from benchmarks.works import WORKS

PANELS = ("unary-16", "bytes-8", "ndjson-8", "sse-8")
"""The workloads that are drawn, by their rate over the bare application's in the same round."""

WIDTH, LABEL, PANEL_GAP, BAR, GAP, HEAD = 760, 190, 28, 16, 6, 30
OURS, OTHERS, BASE_LINE = "#1f6f8b", "#b7bfc6", "#888888"


def svg(results: Results) -> str:
    """Return the picture as the text of an SVG file."""
    parts, top = [], 40
    for work in PANELS:
        bars = _bars(results, work)
        if bars:
            parts += _panel(WORKS[work].title, bars, top)
            top += HEAD + len(bars) * (BAR + GAP) + PANEL_GAP
    return "\n".join([*_opening(top, results), *parts, "</svg>", ""])


def _bars(results: Results, work: str) -> list[tuple[str, float]]:
    """Return the servers that completed the workload with their ratios, the fastest first."""
    ratios = [(name, results.ratio(name, work, "per_second")) for name in results.plan["names"]]
    found = [(name, ratio) for name, ratio in ratios if ratio is not None]
    return sorted(found, key=lambda bar: -bar[1])


def _opening(height: int, results: Results) -> list[str]:
    machine = results.machine
    title = f"Rate over a bare ASGI application on uvicorn, {machine['cores']} cores"
    return [
        f'<svg {_size(height)} font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(16, 24, f"{title}, {machine['date']}", size=15),
    ]


def _size(height: int) -> str:
    space = "http://www.w3.org/2000/svg"
    return f'xmlns="{space}" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'


def _panel(title: str, bars: Sequence[tuple[str, float]], top: int) -> list[str]:
    most = max(1.0, *(ratio for _, ratio in bars))
    scale = (WIDTH - LABEL - 70) / most
    bottom = top + HEAD + len(bars) * (BAR + GAP)
    parts = [
        _text(16, top + 18, title, size=13),
        _rule(LABEL + scale, top + HEAD - 6, bottom),
    ]
    for number, (name, ratio) in enumerate(bars):
        parts += _bar(name, ratio, top + HEAD + number * (BAR + GAP), scale)
    return parts


def _rule(x: float, top: int, bottom: int) -> str:
    """Draw the line at 1.0, where the bare application is."""
    ends = f'x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"'
    return f'<line {ends} stroke="{BASE_LINE}" stroke-dasharray="3 3"/>'


def _bar(name: str, ratio: float, y: int, scale: float) -> list[str]:
    colour = OURS if name.startswith("modelserve") else OTHERS
    width = max(1.0, ratio * scale)
    return [
        _text(LABEL - 8, y + BAR - 4, name, anchor="end"),
        f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour}"/>',
        _text(LABEL + width + 6, y + BAR - 4, f"{ratio:.2f}"),
    ]


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )
