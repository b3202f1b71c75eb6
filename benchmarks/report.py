"""Results as tables: Markdown that is also readable on a terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.compare import Results
from benchmarks.works import WORKS

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

Cell = Callable[[Results, str], str]


@dataclass(frozen=True)
class Column:
    """A column: its heading, and the cell of one server."""

    heading: str
    cell: Cell


def tables(results: Results) -> str:
    """Return every table for which there are figures, with a heading each."""
    parts = [_machine(results)]
    for title, columns in _sections():
        table = _table(results, columns)
        if table:
            parts.append(f"### {title}\n\n{table}")
    parts += _skipped(results)
    return "\n\n".join(parts) + "\n"


def into_readme(text: str, tables: str) -> str:
    """Return the README with the tables between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def from_readme(text: str) -> str:
    """Return the tables between the two marks of the README."""
    return text.partition(BEGIN)[2].partition(END)[0].strip() + "\n"


def _machine(results: Results) -> str:
    machine = results.machine
    plan = results.plan
    where = (
        f"{machine['date']}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, Linux {machine['kernel']}, Python {machine['python']}; "
        f"{plan['rounds']} rounds of {plan['seconds']:g} s; load: {machine['client']}."
    )
    lines = [where]
    others = results.others_cpus()
    if others is not None:
        lines.append(f"Other processes used {others:.2f} CPUs meanwhile, in the median.")
    lines += [
        f"- {name}: {', '.join(f'{package} {version}' for package, version in found.items())}"
        for name, found in results.versions.items()
    ]
    return "\n".join(lines)


def _sections() -> list[tuple[str, list[Column]]]:
    return [
        ("In short (ratios to the bare application)", _summary()),
        ("Unary calls: requests/s (ratio to bare), p50 / p99 in ms", _unary("unary")),
        ("Unary calls of a sync function, in a thread", _unary("unary_sync")),
        ("A model of 5 ms a call, batched: requests/s, p50 / p99 in ms", _unary("batched")),
        ("The same model, one request a call", _unary("one_by_one")),
        *(
            (f"Streams: {title}", _streams(kind))
            for kind, title in (
                ("bytes", "ready bytes"),
                ("ndjson", "dicts as NDJSON"),
                ("sse", "dicts as SSE"),
                ("chat", "chunks of a chat, in OpenAI's protocol"),
                ("joined", "ready bytes, coalesced where the server can"),
                ("sync", "a sync generator"),
            )
        ),
        ("Waiting: first item, cancel, idle streams", _waiting()),
        ("Weight", _weight()),
    ]


def _summary() -> list[Column]:
    return [
        Column("requests/s, 16", _ratio("unary-16", "per_second")),
        Column("CPU us a request", _median("unary-16", "cpu_us", "{:,.0f}")),
        Column("items/s, bytes, 8", _ratio("bytes-8", "per_second")),
        Column("items/s, NDJSON, 8", _ratio("ndjson-8", "per_second")),
        Column("items/s, SSE, 8", _ratio("sse-8", "per_second")),
        Column("CPU us an item, SSE", _median("sse-8", "cpu_us", "{:,.1f}")),
        Column("peak memory, MiB", _peak),
    ]


def _unary(kind: str) -> list[Column]:
    columns = []
    for work in (work for work in WORKS.values() if work.kind == kind):
        columns += [
            Column(f"{work.connections}: requests/s", _rate(work.name)),
            Column("p50 / p99", _pair(work.name, "p50_ms", "p99_ms")),
        ]
    return columns


def _streams(kind: str) -> list[Column]:
    works = [work for work in WORKS.values() if work.kind == kind]
    rates = [Column(f"{work.connections}: items/s", _rate(work.name)) for work in works]
    costs = [
        Column(f"{work.connections}: CPU us", _median(work.name, "cpu_us", "{:,.1f}"))
        for work in works
    ]
    return [*rates, *costs]


def _waiting() -> list[Column]:
    return [
        Column("first item, p50 / p99 ms", _pair("first", "p50_ms", "p99_ms")),
        Column("cancel, p50 / p99 ms", _pair("cancel", "p50_ms", "p99_ms")),
        Column("900 at once, last, ms", _median("cancel", "all_ms", "{:,.0f}")),
        Column("hang-ups not noticed", _median("cancel", "unnoticed", "{:,.0f}")),
        Column("KiB a stream, 1,000", _median("idle-1000", "kib_a_stream", "{:,.1f}")),
        Column("KiB a stream, 10,000", _median("idle-10000", "kib_a_stream", "{:,.1f}")),
    ]


def _weight() -> list[Column]:
    return [
        Column("distributions", _footprint("distributions", "{:,.0f}")),
        Column("installed, MiB", _footprint("installed_mib", "{:,.0f}")),
        Column("import, s", _footprint("import_s", "{:,.2f}")),
        Column("first import, s", _footprint("first_import_s", "{:,.2f}")),
        Column("memory after import, MiB", _footprint("import_mib", "{:,.0f}")),
        Column("start to first answer, s", _median("start", "seconds", "{:,.2f}")),
        Column("memory then, MiB", _median("start", "mib", "{:,.0f}")),
        Column("peak under load, MiB", _peak),
    ]


def _table(results: Results, columns: Sequence[Column]) -> str:
    names = [name for name in results.plan["names"] if name not in results.skipped]
    rows = [(name, [column.cell(results, name) for column in columns]) for name in names]
    rows = [(name, cells) for name, cells in rows if any(cell != "-" for cell in cells)]
    used = [n for n in range(len(columns)) if any(cells[n] != "-" for _, cells in rows)]
    if not used:
        return ""
    head = ["server", *(columns[n].heading for n in used)]
    return _aligned([head, *([name, *(cells[n] for n in used)] for name, cells in rows)])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if n else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 1) + (":" if n else "-") for n, width in enumerate(widths))
    return "\n".join([lines[0], rule + "|", *lines[1:]])


def _median(work: str, figure: str, form: str) -> Cell:
    def cell(results: Results, name: str) -> str:
        value = results.figure(name, work, figure)
        return form.format(value) if value is not None else _absent(results, name, work)

    return cell


def _ratio(work: str, figure: str) -> Cell:
    def cell(results: Results, name: str) -> str:
        ratio = results.ratio(name, work, figure)
        return f"{ratio:.2f}" if ratio is not None else _absent(results, name, work)

    return cell


def _rate(work: str) -> Cell:
    def cell(results: Results, name: str) -> str:
        value = results.figure(name, work, "per_second")
        ratio = results.ratio(name, work, "per_second")
        if value is None:
            return _absent(results, name, work)
        return f"{value:,.0f}" + (f" ({ratio:.2f})" if ratio is not None else "")

    return cell


def _pair(work: str, low: str, high: str) -> Cell:
    def cell(results: Results, name: str) -> str:
        values = [results.figure(name, work, figure) for figure in (low, high)]
        present = [value for value in values if value is not None]
        return " / ".join(map(_short, present)) or _absent(results, name, work)

    return cell


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _footprint(figure: str, form: str) -> Cell:
    def cell(results: Results, name: str) -> str:
        value = results.footprints.get(name, {}).get(figure)
        return form.format(value) if value is not None else "-"

    return cell


def _peak(results: Results, name: str) -> str:
    peak = results.peak_mib(name)
    return f"{peak:,.0f}" if peak is not None else "-"


def _absent(results: Results, name: str, work: str) -> str:
    return "failed" if results.problem(name, work) else "-"


def _skipped(results: Results) -> list[str]:
    lines = [f"- {name}: skipped: {reason}" for name, reason in results.skipped.items()]
    lines += [
        f"- {one.server}, {one.work}, round {one.round + 1}: {one.problem}"
        for one in results.measured
        if one.problem
    ]
    return ["\n".join(lines)] if lines else []
