"""The rates in the tables of `report` as one SVG: a panel for each workload, a bar for each server.

Its colours follow the reader's theme, and its background is its own, so that it can be read on any.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

__all__ = ["svg"]


class Panel(NamedTuple):
    """A workload: the table and the column that it is in, and what is written above its bars."""

    table: str
    column: str
    title: str


class Bar(NamedTuple):
    """A server: its rate, and that over the bare application's in the same round."""

    name: str
    rate: str
    ratio: float


PANELS = (
    Panel("Unary calls", "16: requests/s", "Unary calls, 16 at once: requests/s"),
    Panel("Streams: ready bytes", "8: items/s", "Streams of ready bytes, 8 at once: items/s"),
    Panel("Streams: dicts as NDJSON", "8: items/s", "Streams of NDJSON, 8 at once: items/s"),
    Panel("Streams: dicts as SSE", "8: items/s", "Streams of SSE, 8 at once: items/s"),
)
OTHER_HOSTS = ("_hypercorn", "_granian")
"""The same servers again: they are in the tables alone."""

WIDTH, MARGIN, TOP = 880, 20, 62
PANEL, LABEL, VALUE = 410, 112, 118
HEAD, BAR, STEP, AXIS, FOOT = 26, 13, 19, 34, 24
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
STYLE = """
svg { font: 12px system-ui, sans-serif; --back: #ffffff; --text: #1f2328; --quiet: #59636e;
  --ours: #0969da; --bare: #6e7781; --other: #b6bec7; --line: #d1d9e0 }
@media (prefers-color-scheme: dark) { svg { --back: #0d1117; --text: #f0f6fc; --quiet: #9198a1;
  --ours: #4493f8; --bare: #8b949e; --other: #525c67; --line: #3d444d } }
.back { fill: var(--back) } text { fill: var(--text);
  stroke: var(--back); stroke-width: 3px; paint-order: stroke } .quiet { fill: var(--quiet) }
.title { font-size: 16px; font-weight: 600 } .head { font-size: 13px; font-weight: 600 }
.ours { fill: var(--ours) } .bare { fill: var(--bare) } .other { fill: var(--other) }
line { stroke: var(--line) } .end { text-anchor: end } .middle { text-anchor: middle }
"""
TITLE = "Rates beside those of a bare ASGI application"
UNIT = (
    "Axes: times the rate of bare, the same on uvicorn without a framework. In brackets: the rate."
)


def svg(tables: str) -> str:
    """Return the picture of the tables' rates, as the text of an SVG file."""
    found = [(panel, bars) for panel in PANELS if (bars := _bars(tables, panel))]
    most = max((len(bars) for _, bars in found), default=0)
    height = HEAD + most * STEP + AXIS
    parts = []
    for number, (panel, bars) in enumerate(found):
        left, top = MARGIN + number % 2 * (PANEL + MARGIN), TOP + number // 2 * height
        parts += [f'<g transform="translate({left} {top})">', *_panel(panel, bars), "</g>"]
    end = TOP + (len(found) + 1) // 2 * height + FOOT
    return "\n".join([*_opening(end, _machine(tables)), *parts, "</svg>", ""])


# --- the tables ---------------------------------------------------------------------------------


def _bars(tables: str, panel: Panel) -> list[Bar]:
    """Return the servers that a table has a rate of, the fastest first."""
    bars = []
    for name, cell in _column(tables, panel):
        rate = re.fullmatch(r"(\S+) \((\S+)\)", cell)
        if rate and not name.endswith(OTHER_HOSTS):
            bars.append(Bar(name, rate[1], float(rate[2])))
    return sorted(bars, key=lambda bar: -bar.ratio)


def _column(tables: str, panel: Panel) -> Iterator[tuple[str, str]]:
    for section in tables.split("\n### ")[1:]:
        title, *lines = section.splitlines()
        if title != panel.table and not title.startswith(f"{panel.table}:"):
            continue
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
        if rows and panel.column in rows[0]:
            at = rows[0].index(panel.column)
            yield from ((row[0], row[at]) for row in rows[2:])


def _machine(tables: str) -> str:
    """Return when and on what they were measured, as the line above the tables says."""
    found = re.search(
        r"^(\d{4}-\S+; .*?), \S+ GiB, Linux \S+, (Python [\d.]+; .*?);", tables, re.MULTILINE
    )
    return f"{found[1]}, {found[2]}" if found else ""


# --- the picture --------------------------------------------------------------------------------


def _opening(height: int, machine: str) -> list[str]:
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title">',
        f'<title id="title">{escape(TITLE)}; {escape(machine)}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{height}" rx="6"/>',
        _text(MARGIN, 28, TITLE, "title"),
        _text(MARGIN, 46, machine, "quiet"),
        _text(WIDTH / 2, height - 14, UNIT, "quiet middle"),
    ]


def _panel(panel: Panel, bars: Sequence[Bar]) -> list[str]:
    most = max(1.0, *(bar.ratio for bar in bars))
    scale = (PANEL - LABEL - VALUE) / most
    bottom = HEAD + len(bars) * STEP
    parts = [_text(0, 14, panel.title, "head")]
    for tick in TICKS:
        x = LABEL + tick * scale
        parts.append(f'<line x1="{x:.1f}" y1="{HEAD - 4}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 14, f"{tick:g}", "quiet middle"))
    for number, bar in enumerate(bars):
        parts += _bar(bar, HEAD + number * STEP, scale)
    return parts


def _bar(bar: Bar, y: int, scale: float) -> list[str]:
    kind = bar.name if bar.name == "bare" else "other"
    kind = "ours" if bar.name == "modelserve" else kind
    width = max(1.0, bar.ratio * scale)
    return [
        _text(LABEL - 8, y + BAR - 2, bar.name, "end"),
        f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>',
        _text(LABEL + width + 6, y + BAR - 2, f"{bar.ratio:.2f}  ({bar.rate})"),
    ]


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    classes = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{classes}>{escape(text)}</text>'
