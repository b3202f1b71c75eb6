"""The command line: `python -m benchmarks compare | inprocess | batching | validate | report`."""

import argparse
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks import batching, compare, competitors, inprocess, plot, report, validate, works

SIGNALS = (signal.SIGINT, signal.SIGTERM)
README = Path(__file__).resolve().parent / "README.md"
RESULTS = README.parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    for number in SIGNALS:
        signal.signal(number, _stop)
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except KeyboardInterrupt:
        print("stopped; every server has been ended", file=sys.stderr)
        return 130
    return code


def _stop(*_: object) -> NoReturn:
    """Raise an exception, once, so that the servers are ended on the way out."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    _add_compare(commands.add_parser("compare", help="measure the servers side by side"))
    _add_inprocess(commands.add_parser("inprocess", help="what a request and an item cost"))
    batches = commands.add_parser("batching", help="what batching and stepping cost")
    batches.set_defaults(run=_batching)
    check = commands.add_parser("validate", help="our client beside wrk")
    check.set_defaults(run=_validate)
    again = commands.add_parser("report", help="the tables of an earlier run")
    again.add_argument(
        "file", type=Path, nargs="?", help="the JSON that `compare` has written; else the README's"
    )
    again.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the rates")
    again.add_argument("--readme", action="store_true", help="put the tables into the README")
    again.set_defaults(run=_report)
    return parser


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quick", action="store_true", help="fewer workloads, shorter: about 3 minutes"
    )
    parser.add_argument("--only", type=_names, metavar="NAME,...", help="these servers only")
    parser.add_argument("--work", type=_works, metavar="NAME,...", help="these workloads only")
    parser.add_argument("--rounds", type=int, help="number of rounds (5; quick: 2)")
    parser.add_argument("--seconds", type=float, help="seconds of each measurement (2; quick: 0.5)")
    parser.add_argument(
        "--retries",
        type=int,
        default=0,
        help="repeat a measurement that other processes disturbed (0)",
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "compare.json", metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw the rates")
    parser.set_defaults(run=_compare)


def _add_inprocess(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--against", type=Path, metavar="FILE", help="compare with such a file")
    parser.set_defaults(run=_inprocess)


def _names(text: str) -> list[str]:
    return _chosen(text, competitors.NAMES, "server")


def _works(text: str) -> list[str]:
    return _chosen(text, tuple(works.WORKS), "workload")


def _chosen(text: str, known: Sequence[str], what: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"no {what} {name!r}; there are {', '.join(known)}")
    return names


def _compare(options: argparse.Namespace) -> int:
    _raise_file_limit()
    results = compare.run(_plan(options), lambda so_far: _write(options.json, so_far.as_json()))
    _write(options.json, results.as_json())
    tables = report.tables(results)
    if options.plot:
        _write(options.plot, plot.svg(tables))
    print(tables)
    return 0


def _plan(options: argparse.Namespace) -> compare.Plan:
    names = options.only or list(competitors.NAMES)
    if compare.BASE not in names:
        names = [compare.BASE, *names]
    return compare.Plan(
        names=names,
        works=options.work or list(works.QUICK if options.quick else works.WORKS),
        rounds=options.rounds or (2 if options.quick else 5),
        seconds=options.seconds or (0.5 if options.quick else 2.0),
        weigh=not options.quick,
        retries=options.retries,
    )


def _raise_file_limit() -> None:
    """Raise the limit on open files: a stream is one in the client and one in the server."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _report(options: argparse.Namespace) -> int:
    if options.file is None:
        tables = report.from_readme(README.read_text())
    else:
        tables = report.tables(compare.from_json(options.file.read_text()))
    if options.plot:
        _write(options.plot, plot.svg(tables))
    if options.readme:
        _write(README, report.into_readme(README.read_text(), tables))
    print(tables)
    return 0


def _validate(options: argparse.Namespace) -> int:
    print(validate.report())
    return 0


def _batching(options: argparse.Namespace) -> int:
    print(batching.table())
    return 0


def _inprocess(options: argparse.Namespace) -> int:
    costs = inprocess.measure_all()
    if options.json:
        _write(options.json, inprocess.as_json(costs))
    before = inprocess.from_json(options.against.read_text()) if options.against else None
    print(inprocess.table(costs, before))
    return 0


if __name__ == "__main__":
    sys.exit(main())
