"""The architecture: rows of packages, each importing from what stands below it only.

The graph is read from the source, imports inside of functions included; only what a type checker
alone sees is left out.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelserve

ROOT = Path(modelserve.__file__).parent

# From the bottom to the top. In a row, what stands further left may not import what is right of it.
ROWS: list[tuple[str, list[str]]] = [
    (
        "what may go wrong; the limits as data; loading a user's module",
        ["version", "errors", "limits", "loader"],
    ),
    ("bytes, on their own; numbers of the past", ["wire", "tensors", "observers", "metrics"]),
    ("protocols, on bytes alone; time, on its own", ["protocols", "concurrency"]),
    ("calling a server; one request, and the answer to it", ["client", "exchange"]),
    ("what a model is and how it is run", ["models"]),
    (
        "the application, and a process that serves one",
        [
            "lifespan",
            "endpoints",
            "pages",
            "duplex",
            "dispatch",
            "composing",
            "grpc",
            "routes",
            "websockets",
            "following",
            "server",
            "command",
            "app",
            "offline",
        ],
    ),
    ("the public names; the command line", ["modelserve", "opentelemetry", "cli", "__main__"]),
]
RANK = {
    part: (row, column) for row, (_, parts) in enumerate(ROWS) for column, part in enumerate(parts)
}
# Beside the rows: KServe's names, thin over all of it, and the driver for tests, which drives any
# ASGI application and knows nothing of ours.
BESIDE = ("kserve", "testing")
# What the pure packages may not import: nothing that reads a socket, a clock or starts a task.
IMPURE = {
    "asyncio", "socket", "threading", "time", "anyio", "trio", "httpx", "uvicorn",
}  # fmt: skip
PURE = ("wire", "tensors", "protocols")
# What a reader can hold in mind.
MOST_LINES = {ast.ClassDef: 180, ast.FunctionDef: 70, ast.AsyncFunctionDef: 70}


def name_of(path: Path) -> str:
    parts = [*path.relative_to(ROOT).parts[:-1], path.stem]
    return ".".join(part for part in parts if part != "__init__") or "modelserve"


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def is_beside(module: str) -> bool:
    return module.split(".")[0] in BESIDE


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports of a module that run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for branch in node.orelse:
                yield from imports(ast.Module([branch], []))
        else:
            yield from imports(node)


def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield the modules of ours that one import reaches."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        assert node.level == 0, "a relative import"
        inner = [f"{node.module}.{alias.name}" for alias in node.names]
        modules = [name for name in inner if ours(name) in MODULES]
        names = modules if len(modules) == len(inner) else [*modules, str(node.module)]
    for name in names:
        if name.split(".")[0] == "modelserve":
            yield ours(name)


def ours(name: str) -> str:
    return name.removeprefix("modelserve.")


def graph() -> dict[str, set[str]]:
    return {
        module: {
            target
            for node in imports(ast.parse(path.read_text(encoding="utf-8")))
            for target in targets(node)
        }
        for module, path in MODULES.items()
    }


GRAPH = graph()


def part_of(module: str) -> str:
    return module.split(".")[0]


def outside(path: Path) -> set[str]:
    """Return the packages of others that a module imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in imports(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        else:
            found.add(str(node.module).split(".")[0])
    return found


def test_every_module_has_a_row_and_every_row_its_modules() -> None:
    assert {part_of(module) for module in MODULES} - set(BESIDE) == set(RANK)


@pytest.mark.parametrize("module", [module for module in MODULES if not is_beside(module)])
def test_a_module_imports_from_below(module: str) -> None:
    part = part_of(module)
    up = {
        target
        for target in GRAPH[module]
        if part_of(target) != part and RANK.get(part_of(target), (99, 0)) >= RANK[part]
    }
    assert up == set()


@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) in PURE])
def test_pure_modules_import_no_io(module: str) -> None:
    assert outside(MODULES[module]) & IMPURE == set()
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert names & {"utcnow", "today", "environ"} == set()
    assert not any(is_clock(node) for node in ast.walk(tree))


def is_clock(node: ast.AST) -> bool:
    """Return whether a node is `datetime.now` or `date.now`."""
    return (
        isinstance(node, ast.Attribute)
        and node.attr == "now"
        and isinstance(node.value, ast.Name)
        and node.value.id in ("datetime", "date")
    )


@pytest.mark.parametrize("module", MODULES)
def test_classes_and_functions_are_short(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    lines = {
        (node.name, node.end_lineno - node.lineno + 1, MOST_LINES[type(node)])
        for node in ast.walk(tree)
        if isinstance(node, tuple(MOST_LINES)) and node.end_lineno is not None
    }
    assert {(name, count) for name, count, most in lines if count > most} == set()


def test_no_import_goes_round_in_a_circle() -> None:
    order = list(graphlib.TopologicalSorter(GRAPH).static_order())  # raises CycleError
    assert set(order) >= set(MODULES)


def test_the_driver_for_tests_knows_nothing_of_ours() -> None:
    assert GRAPH["testing"] == set()
    assert [module for module in MODULES if "testing" in GRAPH[module]] == []


def test_nothing_imports_kserves_names_but_themselves() -> None:
    users = {
        module
        for module, reached in GRAPH.items()
        if any(target.split(".")[0] == "kserve" for target in reached)
    }
    assert all(module.split(".")[0] == "kserve" for module in users)


@pytest.mark.parametrize(
    ("source", "reached"),
    [
        ("from modelserve.errors import InvalidInput", {"errors"}),
        ("import modelserve.errors", {"errors"}),
        ("from modelserve.protocols import v1, v2", {"protocols.v1", "protocols.v2"}),
        ("from modelserve import __version__", {"modelserve"}),
        ("from modelserve import Model, app", {"modelserve", "app"}),
        ("import json, anyio.abc", set()),
        ("from modelserves import x", set()),
        ("def f():\n    from modelserve.app import ModelServer", {"app"}),
        ("try:\n    import modelserve.app\nexcept ImportError:\n    pass", {"app"}),
        ("if TYPE_CHECKING:\n    import modelserve.app", set()),
        ("if typing.TYPE_CHECKING:\n    import modelserve.app\nelse:\n    import modelserve.cli", {"cli"}),
    ],
)  # fmt: skip
def test_how_the_graph_is_read(source: str, reached: set[str]) -> None:
    found = {target for node in imports(ast.parse(source)) for target in targets(node)}
    assert found == reached
