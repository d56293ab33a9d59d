"""The house rules of the source tree: imports go down, one meaning per name, and configs that import no torch.

Everything is read from the source by `ast`, so that also what a module imports inside a function, or for type checkers
alone, is seen.
"""

import ast
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FLOORS = (
    ("pipeline",),
    ("stages.layers", "stages.figures"),
    ("datasets",),
    ("stages.policy", "stages.training"),
    ("stages.sequence_model", "stages.world_model"),
    ("stages.pretrain", "stages.finetune"),
    ("stages",),
    ("stages.data", "stages.evaluation", "stages.deployment"),
    ("stages.reporting",),
    ("stages.sharing",),
    ("",),
)
"""Folders, the lowest first: each imports from floors below its own, and from its own floor if that makes no cycle.
"stages" is every folder of stages/ that is not listed: the algorithms. "" is the package `orrery`, the public API."""

IMPORT_TORCH = {"torch", "torchrl", "tensordict", "lightning", "stable_baselines3", "sb3_contrib", "d3rlpy"}
"""Packages whose import takes a second or more, since they are torch or import it."""


@dataclass(frozen=True)
class Module:
    """A source file. Names are dotted, without `orrery`: `stages.mrq.config`, `datasets.tasks.__init__`."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def file(self) -> str:
        return self.name.rpartition(".")[2]


class Tree:
    """The modules of the packages that a pyproject.toml lists."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, Module] = {}
        settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
        for package in settings["packages"]:
            for path in (root / _folder_of(package, settings["package-dir"])).glob("*.py"):
                name = ".".join([*package.split(".")[1:], path.stem])
                self.modules[name] = Module(name, path, ast.parse(path.read_bytes()))
        self.graph = {name: self._imports(module) & self.modules.keys() for name, module in self.modules.items()}
        """Modules that each module imports, wherever in its source."""

    def imports_torch(self, name: str, seen: set[str] | None = None) -> list[str] | None:
        """The chain of imports by which loading a module loads torch; None where it does not."""
        seen = set() if seen is None else seen
        seen.add(name)
        for other in sorted(self._imports(self.modules[name], when_loaded=True) - seen):
            if other in IMPORT_TORCH:
                return [name, other]
            if other in self.modules and (chain := self.imports_torch(other, seen)) is not None:
                return [name, *chain]
        return None

    def _imports(self, module: Module, *, when_loaded: bool = False) -> set[str]:
        """What a module imports: modules of the tree by name, other packages by the first part of theirs.

        Args:
            when_loaded: leave out imports inside functions and for type checkers alone; add the packages on the way.
        """
        found = set()
        for node in _import_nodes(module.tree, when_loaded):
            if isinstance(node, ast.Import):
                targets = [(alias.name, "") for alias in node.names]
            else:
                here = ["orrery", *module.name.split(".")]
                base = [*here[: len(here) - node.level], node.module or ""] if node.level else [node.module or ""]
                targets = [(".".join(base).rstrip("."), alias.name) for alias in node.names]
            for target, attribute in targets:
                first, _, inner = target.partition(".")
                if first != "orrery":
                    found.add(first)
                    continue
                parts = inner.split(".") if inner else []
                places = ([*parts, attribute], [*parts, attribute, "__init__"], parts, [*parts, "__init__"])
                found |= {next(name for name in map(".".join, places) if name in self.modules)}
                if when_loaded:
                    found |= {".".join([*parts[:n], "__init__"]) for n in range(len(parts) + 1)} & self.modules.keys()
        return found - {module.name}


def _folder_of(package: str, places: Mapping[str, str]) -> Path:
    """Where setuptools finds a package: at the longest entry of package-dir that it begins with."""
    parts = package.split(".")
    n = next(n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in places)
    return Path(places[".".join(parts[:n])], *parts[n:])


def _import_nodes(tree: ast.AST, when_loaded: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.stmt | ast.ExceptHandler):
            continue  # an expression holds no statement
        elif not when_loaded or not (
            isinstance(node, ast.FunctionDef) or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ):
            yield from _import_nodes(node, when_loaded)


def cycles(graph: Mapping[str, AbstractSet[str]]) -> list[list[str]]:
    """Sets of several nodes that reach each other: Tarjan's strongly connected components."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            found.extend([sorted(component)] if len(component) > 1 else [])

    for node in graph:
        if node not in index:
            visit(node)
    return found


def folder_cycles(graph: Mapping[str, AbstractSet[str]]) -> list[list[str]]:
    """Cycles among the files and folders that stand side by side in a folder, for every folder. An import counts in the
    innermost folder that holds both sides, for the two entries of it that they are in."""
    inside: dict[tuple[str, ...], dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, imported in graph.items():
        for other in imported:
            left, right = name.split("."), other.split(".")
            depth = next(n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
            inside[tuple(left[:depth])][".".join(left[: depth + 1])].add(".".join(right[: depth + 1]))
    return [cycle for entries in inside.values() for cycle in cycles(entries)]


def floor_of(name: str) -> int:
    """Return the floor of a module: that of the longest folder in FLOORS that holds it."""
    floors = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
    parts = name.split(".")[:-1]
    return next(floors[folder] for n in range(len(parts), -1, -1) if (folder := ".".join(parts[:n])) in floors)


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(ROOT)


def test_no_file_and_no_folder_is_in_an_import_cycle(tree: Tree) -> None:
    assert cycles(tree.graph) == []
    assert folder_cycles(tree.graph) == []


def test_imports_go_down(tree: Tree) -> None:
    up = [
        f"{name} imports {other}"
        for name, imported in tree.graph.items()
        for other in imported
        if floor_of(other) > floor_of(name)
    ]
    assert up == []


def test_nothing_imports_a_stage_or_a_command(tree: Tree) -> None:
    roofs = [
        f"{name} imports {other}"
        for name, imported in tree.graph.items()
        for other in imported
        if tree.modules[other].file.startswith(("stage_", "command_"))
    ]
    assert roofs == []


def test_configs_stages_and_commands_import_no_torch(tree: Tree) -> None:
    light = [
        name
        for name, module in tree.modules.items()
        if module.file == "config" or module.file.startswith(("stage_", "command_"))
    ]
    assert len(light) > 40
    assert [chain for name in light if (chain := tree.imports_torch(name)) is not None] == []


def test_reading_every_stage_and_command_imports_no_torch() -> None:
    code = (
        "import sys; from orrery.pipeline.command import Command; from orrery.pipeline.entry_points import load_all; "
        "from orrery.pipeline.stage import Stage; load_all('stages', Stage), load_all('commands', Command); "
        f"print(*sorted({IMPORT_TORCH!r} & sys.modules.keys()))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_no_two_public_classes_have_one_name(tree: Tree) -> None:
    places = defaultdict(list)
    for name, module in tree.modules.items():
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_every_public_name_has_a_docstring(tree: Tree) -> None:
    silent = [
        f"{name}: {getattr(node, 'name', 'the module')}"
        for name, module in tree.modules.items()
        for node in (module.tree, *module.tree.body)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and not getattr(node, "name", "").startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_every_folder_with_modules_is_a_package(tree: Tree) -> None:
    listed = {module.path for module in tree.modules.values()}
    assert [path for top in ("pipeline", "datasets", "stages") for path in (ROOT / top).rglob("*.py")] != []
    assert {path for top in ("pipeline", "datasets", "stages") for path in (ROOT / top).rglob("*.py")} - listed == set()


PLANTED = {
    "pipeline/stage.py": "def f():\n    from ..stages.mrq import learner\n",
    "stages/mrq/__init__.py": "",
    "stages/mrq/learner.py": "import torch\nif TYPE_CHECKING:\n    from .. import mrq\n",
    "stages/mrq/config.py": "from . import networks\n",
    "stages/mrq/networks.py": "from .learner import f\n",
    "stages/mrq/stage_mrq.py": "from orrery.stages.mrq.config import a\nfrom orrery.stages.powr import b\n",
    "stages/powr/__init__.py": "def g():\n    import orrery.stages.mrq.learner\n",
    "stages/powr/fit.py": "from .b.parts import x\n",
    "stages/powr/b/__init__.py": "",
    "stages/powr/b/parts.py": "",
    "stages/powr/b/more.py": "from ..fit import x\n",
}


@pytest.fixture
def planted(tmp_path: Path) -> Tree:
    packages = sorted({"orrery." + Path(file).parent.as_posix().replace("/", ".") for file in PLANTED})
    for file, text in PLANTED.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.setuptools]\npackages = {packages}\n"
        '[tool.setuptools.package-dir]\n"orrery.pipeline" = "pipeline"\n"orrery.stages" = "stages"\n'
    )
    return Tree(tmp_path)


def test_what_breaks_a_rule_is_found(planted: Tree) -> None:
    graph = planted.graph
    assert graph["pipeline.stage"] == {"stages.mrq.learner"}
    assert graph["stages.mrq.learner"] == {"stages.mrq.__init__"}
    assert cycles(graph) == []
    # stages/powr and stages/mrq need each other, and so do fit.py and the folder b beside it, though no two files do.
    assert sorted(folder_cycles(graph)) == [["stages.mrq", "stages.powr"], ["stages.powr.b", "stages.powr.fit"]]
    assert cycles({**graph, "stages.mrq.learner": {"stages.mrq.config"}}) == [
        ["stages.mrq.config", "stages.mrq.learner", "stages.mrq.networks"]
    ]
    assert floor_of("pipeline.stage") < floor_of("stages.mrq.learner") == floor_of("stages.new.learner")
    assert floor_of("stages.new.learner") < floor_of("stages.reporting.page") < floor_of("runs")
    chain = ["stages.mrq.config", "stages.mrq.networks", "stages.mrq.learner", "torch"]
    assert planted.imports_torch("stages.mrq.config") == chain
    assert planted.imports_torch("pipeline.stage") is None  # not when it is loaded
