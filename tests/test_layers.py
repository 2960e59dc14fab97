"""The floors of the package: imports run downwards only, and in no circle.

    cli > evaluate, report > infer, train, integrations > rollout, recycle > data, prompts, embedded, models, images >
        verify > config, types, jsonl, progress

Rooms of one floor may use each other as long as no circle comes of it: a room is entered through its `__init__`, so
circles are looked for between rooms as well as between modules. Two differences to the sketch in the design: `config`
stands below `verify`, since both are used by all and neither uses the other, and `embedded` beside `data` and
`prompts`, since `data` serves the embedded questions and `embedded` writes its corpus with the templates. Every import
counts, also those inside functions and under TYPE_CHECKING.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import spark_rl

PACKAGE = Path(spark_rl.__file__).parent
FLOORS: tuple[frozenset[str], ...] = (
    frozenset({"types", "jsonl", "progress", "config", "presets"}),
    frozenset({"verify"}),
    frozenset({"data", "prompts", "embedded", "models", "images"}),
    frozenset({"rollout", "recycle"}),
    frozenset({"infer", "train", "integrations"}),
    frozenset({"evaluate", "report"}),
    frozenset({"cli", "__main__"}),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

Imports = dict[str, set[str]]
"""Module -> the modules of the package that it imports, by dotted names."""


def imports_of(package: Path) -> Imports:
    """All imports of a package's modules that stay in the package."""
    sources = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        sources[".".join(parts).removesuffix(".__init__")] = path
    found: Imports = {}
    for module, path in sources.items():
        parent = module if path.stem == "__init__" else module.rpartition(".")[0]
        found[module] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = parent.split(".")[: len(parent.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                names = [f"{base}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                if target := next((m for m in (name, name.rpartition(".")[0]) if m in sources), None):
                    found[module].add(target)
    return found


def room(module: str) -> str:
    """`spark_rl.train.loss` -> `train`; the package itself is no room."""
    return module.split(".")[1] if "." in module else ""


def upward(imports: Imports) -> list[str]:
    return sorted(
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in targets
        if room(module) and room(target) and FLOOR_OF[room(module)] < FLOOR_OF[room(target)]
    )


def circle(graph: Imports) -> list[str]:
    """Some circle of a graph as its nodes in order, or an empty list."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := search(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := search(node, []))), [])


def between_rooms(imports: Imports) -> Imports:
    graph: Imports = {}
    for module, targets in imports.items():
        graph.setdefault(room(module), set()).update({room(t) for t in targets} - {room(module)})
    return graph


@pytest.fixture(scope="module")
def imports() -> Imports:
    return imports_of(PACKAGE)


def test_every_room_has_a_floor(imports):
    assert {room(module) for module in imports} - {""} <= FLOOR_OF.keys(), "give the new room its floor in FLOORS"


def test_the_imports_are_seen(imports):
    assert "spark_rl.verify" in imports["spark_rl.prompts.quoting"]
    assert "spark_rl.types" in imports["spark_rl.config.schema"]
    assert len(imports) > 25


def test_no_import_runs_upwards(imports):
    assert upward(imports) == []


def test_no_circle_between_modules_or_rooms(imports):
    assert circle(imports) == []
    assert circle(between_rooms(imports)) == []


def test_the_package_itself_imports_nothing(imports):
    assert imports["spark_rl"] == set()


@pytest.mark.parametrize("module", ["spark_rl.types", "spark_rl.verify.extract", "spark_rl.embedded.tasks"])
def test_what_anyone_may_use_stands_on_nothing(imports, module):
    assert imports[module] == set()


def write_package(root: Path, files: dict[str, str]) -> Path:
    package = root / "spark_rl"
    for name, text in files.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def test_an_upward_import_inside_a_function_is_found(tmp_path):
    text = "def f():\n    from spark_rl.train import loop\n    return loop\n"
    package = write_package(tmp_path, {"verify/__init__.py": text, "train/__init__.py": "", "train/loop.py": ""})
    assert upward(imports_of(package)) == ["spark_rl.verify imports spark_rl.train.loop"]


@pytest.mark.parametrize("line", ["import spark_rl.data.b", "from spark_rl.data.b import x", "from .b import x"])
def test_a_circle_of_modules_is_found_however_it_is_written(tmp_path, line):
    files = {"data/__init__.py": "", "data/a.py": line, "data/b.py": "from . import a"}
    found = circle(imports_of(write_package(tmp_path, files)))
    assert found == ["spark_rl.data.a", "spark_rl.data.b", "spark_rl.data.a"]


def test_a_circle_of_rooms_is_found(tmp_path):
    files = {"data/a.py": "import spark_rl.prompts.b", "data/c.py": "", "prompts/b.py": "import spark_rl.data.c"}
    imports = imports_of(write_package(tmp_path, files))
    assert circle(imports) == []
    assert circle(between_rooms(imports)) == ["data", "prompts", "data"]


def loaded_by(modules: Iterable[str]) -> set[str]:
    """Top-level modules in a fresh interpreter after these imports."""
    code = f"import sys, {', '.join(modules)}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_pure_core_loads_no_heavy_library():
    core = ["types", "config", "verify", "prompts", "data", "recycle", "rollout.engine", "train.advantages"]
    loaded = loaded_by(f"spark_rl.{name}" for name in core)
    assert "pydantic" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "accelerate", "math_verify", "sympy", "vllm", "trl", "peft"})
