"""The house stays thin: lines, lengths of functions, imports. docs/decisions.md says why."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

EXPLORER = {"explore.py", "space.py"}
LINES, LINES_WITH_EXPLORER, FILE, FUNCTION, LAZY_IMPORTS, LOOP, TESTS = 4600, 5000, 450, 60, 25, 40, 9200
RESULTS = 300  # of docs/results.md


@pytest.fixture(scope="module")
def modules(root) -> dict[str, Path]:
    """Dotted names and files of the library, the embedded catalogue aside."""
    files = [path for path in (root / "icssl_lib").rglob("*.py") if "synthetic" not in path.parts]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and lines of each function in a file, its decorators and docstring included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield node.name, node.end_lineno - first + 1


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def imports(tree: ast.AST, modules: dict[str, Path]) -> set[str]:
    """The library's modules that a file imports, those imported inside of functions included."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & set(modules) - {"icssl_lib"}


def test_the_library_keeps_its_budgets(modules):
    assert sum(lines(path) for path in modules.values() if path.name not in EXPLORER) <= LINES
    assert sum(lines(path) for path in modules.values()) <= LINES_WITH_EXPLORER
    assert {name: lines(path) for name, path in modules.items() if lines(path) > FILE} == {}
    found = [(name, *each) for name, path in modules.items() for each in functions(path)]
    assert [(module, function, n) for module, function, n in found if n > FUNCTION] == []


@pytest.mark.parametrize("stage", ["adapt", "finetune"])
def test_the_loop_fits_on_a_screen(stage, modules):
    assert dict(functions(modules[f"icssl_lib.{stage}"]))["train"] <= LOOP


def test_no_import_runs_in_a_circle(modules):
    graph = {name: imports(ast.parse(path.read_text(encoding="utf-8")), modules) for name, path in modules.items()}
    assert any(graph.values())
    TopologicalSorter(graph).prepare()  # a CycleError names the circle


def test_the_results_can_be_read(root):
    assert lines(root / "docs/results.md") <= RESULTS


def test_few_imports_hide_in_functions(modules):
    hidden = 0
    for path in modules.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                hidden += sum(isinstance(inner, ast.Import | ast.ImportFrom) for inner in ast.walk(node))
    assert 0 < hidden <= LAZY_IMPORTS


def test_the_tests_keep_theirs_and_stand_alone(root):
    files = list((root / "tests").rglob("*.py"))
    assert sum(map(lines, files)) <= TESTS
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
        assert not [name for name in names if name.startswith("test_")], path.name
        patched = [
            node.args[1].value
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr" and len(node.args) > 1
            and isinstance(node.args[1], ast.Constant)
        ]  # fmt: skip
        assert not [name for name in patched if str(name).startswith("_")], path.name
