"""The layers of the package: imports point downwards, and nothing optional is loaded before it is needed."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "ldadam"
SOURCES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    {"subspace", "layout", "pieces", "quantization", "rounding", "error_buffer", "algorithm", "spelling"},
    {"hyperparameters"},
    {"backends", "adamw", "state", "param_groups", "distributed"},
    {"optimizer"},
    {"description", "published", "in_backward", "ldadam"},
    {"provenance", "live_bytes", "storages", "bfloat16_products"},
    {"monitor", "peers"},
    {"integrations", "planner", "training", "finetune", "report", "bench", "comparison", "recipes", "cli", "__main__"},
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    """`ldadam.backends.eager`; a package by its own name."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: `backends` for `ldadam.backends.eager`."""
    return module.split(".")[1] if "." in module else module


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Every module of this package that `module` imports, anywhere but for type checkers, with the line."""
    tree = ast.parse(MODULES[module].read_text())
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for block in for_types for inner in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively; write the whole name"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inner]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "ldadam")


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downwards(module):
    part = part_of(module)
    assert part in LAYER_OF, f"give {part} a layer in {Path(__file__).name}"
    upward = [
        f"line {line}: {imported}" for imported, line in imports(module) if LAYER_OF[part_of(imported)] > LAYER_OF[part]
    ]
    assert not upward, f"{module} is of layer {LAYER_OF[part]} and imports from above it: {upward}"


def test_imports_have_no_cycles():
    graph = {module: {name for name, _ in imports(module)} - {module, "ldadam"} for module in MODULES}
    assert list(TopologicalSorter(graph).static_order())


def top_level_modules(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_importing_ldadam_loads_nothing_but_torch():
    extra = top_level_modules("import ldadam") - top_level_modules("import torch") - set(sys.stdlib_module_names)
    assert extra == {"ldadam"}


def names_in(path: Path) -> set[str]:
    """Every name, attribute and short string of a module: what code can ask about."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.alias):
            found.update(node.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            found.add(node.value)
    return found


@pytest.mark.parametrize(
    ("names", "owner"),
    [
        ({"DTensor", "placements", "device_mesh"}, "distributed"),
        ({"tl", "triton_kernels"}, "backends"),
        ({"lightning"}, "integrations"),
    ],
    ids=["distributed tensors", "triton", "Lightning"],
)
def test_one_part_alone_knows_of(names, owner):
    outsiders = [module for module, path in MODULES.items() if part_of(module) != owner and names & names_in(path)]
    assert not outsiders, f"{sorted(names)} belong to {owner}/"


def test_every_module_says_what_it_is_for():
    assert [module for module, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text()))] == []
