"""The modules in layers: each imports from lower ones only, and no import goes round in a circle.

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

# From the bottom to the top. `modelserve` is the package's own `__init__.py`.
LAYERS: list[tuple[str, set[str]]] = [
    ("what may go wrong", {"errors", "version"}),
    (
        "bytes, time and threads, each on its own",
        {
            *("encoders", "lifetime", "threads", "telemetry", "paths", "tensor_data", "loader"),
            *("logs", "connections"),
        },
    ),
    (
        "the numbers, one request, one tensor, the items of another server's stream",
        {"limits", "requests", "tensor_types", "decoders"},
    ),
    ("one answer, V2's messages", {"responses", "tensors"}),
    ("the items of one answer", {"streams"}),
    ("what a protocol is; calling another server", {"protocols", "predictor"}),
    (
        "the protocols; what a hook may be (a base model may ask another server)",
        {"v1", "v2", "generate", "cloudevents", "model"},
    ),
    ("running hooks; where models come from", {"inference", "repository"}),
    ("which models exist", {"registry"}),
    ("what one application owns", {"serving"}),
    ("what is behind each path", {"endpoints"}),
    ("from a path to its endpoint; a short way through one of them", {"routes", "quick"}),
    ("the application", {"app"}),
    ("the public names; a process that serves", {"modelserve", "server"}),
    ("the command line", {"cli"}),
    ("running the package", {"__main__"}),
]
LAYER_OF = {module: number for number, (_, modules) in enumerate(LAYERS) for module in modules}
# Beside the layers: KServe's names, thin over all of it, and the driver for tests, which drives any
# ASGI application and knows nothing of ours.
BESIDE = ("kserve", "testing")


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


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    listed = [module for _, modules in LAYERS for module in modules]
    assert len(listed) == len(set(listed))
    assert {module for module in MODULES if not is_beside(module)} == set(listed)


@pytest.mark.parametrize("module", [module for module in MODULES if not is_beside(module)])
def test_a_module_imports_from_lower_layers(module: str) -> None:
    up = {
        target: LAYER_OF.get(target)
        for target in GRAPH[module]
        if LAYER_OF.get(target, 99) >= LAYER_OF[module]
    }
    assert up == {}, f"{module} is in layer {LAYER_OF[module]}"


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
        ("from modelserve import v1, v2", {"v1", "v2"}),
        ("from modelserve import __version__", {"modelserve"}),
        ("from modelserve import Model, v1", {"modelserve", "v1"}),
        ("import json, anyio.abc", set()),
        ("from modelserves import x", set()),
        ("def f():\n    from modelserve.app import ModelServer", {"app"}),
        ("try:\n    import modelserve.app\nexcept ImportError:\n    pass", {"app"}),
        ("if TYPE_CHECKING:\n    import modelserve.app", set()),
        ("if typing.TYPE_CHECKING:\n    import modelserve.app\nelse:\n    import modelserve.v1", {"v1"}),
    ],
)  # fmt: skip
def test_how_the_graph_is_read(source: str, reached: set[str]) -> None:
    found = {target for node in imports(ast.parse(source)) for target in targets(node)}
    assert found == reached
