"""The way of the imports: none runs upward, none in a circle, mlflow in one place only."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from oodflow.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("oodflow", "tuning", "reports")

# The ground floor first. Units of one floor know nothing of each other.
FLOORS = (
    {"errors", "files"},
    {"registration"},
    {"experiment", "commands"},
    {"options", "console"},
    {"entry_points"},
    {"presets"},
    {"data", "models"},
    {"training", "evaluation", "foreign"},
    {"tracking", "detection"},
    {"workflow"},
    {"bench"},
    {"plans"},
    {"tuning", "reports", "api"},
    {"cli", "mlproject"},
    {"__main__"},
)
FLOOR = {unit: number for number, units in enumerate(FLOORS) for unit in units}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {
    module_name(file): file.read_text()
    for package in PACKAGES
    for file in sorted((ROOT / package).rglob("*.py"))
}
TREES = {module: ast.parse(text) for module, text in SOURCES.items()}


def imports(module: str) -> set[str]:
    """Full names of all modules that a module imports, anywhere in it, ours resolved to files.

    A module named in a string is imported late (``import_module``) and counts as well; the
    commands alone are resolved by their names when they are called.
    """
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            # `from package import name` names a module where there is one of that name.
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in TREES else str(node.module))
        elif isinstance(node, ast.Constant) and re.fullmatch(
            rf"({'|'.join(PACKAGES)})(\.\w+)+", str(node.value)
        ):
            found.add(str(node.value))
    return found


def unit(module: str) -> str:
    """The package or module directly below oodflow that a module belongs to, or its package."""
    package, *below = module.split(".")
    return below[0] if package == "oodflow" and below else package


MODULES = [module for module in TREES if module != "oodflow"]
OWN = {
    module: {name for name in imports(module) if name in TREES} - {"oodflow"} for module in TREES
}


def test_every_module_has_its_floor():
    assert {unit(module) for module in MODULES} <= set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_upward(module):
    own = unit(module)
    above = [name for name in OWN[module] if unit(name) != own and FLOOR[unit(name)] >= FLOOR[own]]
    assert not above


def test_the_top_package_imports_nothing_but_for_type_checkers():
    at_once = [
        node for node in TREES["oodflow"].body if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert {getattr(node, "module", "") for node in at_once} == {"pkgutil", "typing"}


def test_every_command_is_a_function_of_a_module():
    for place in COMMANDS.values():
        module, function = place.split(":")
        defined = {node.name for node in TREES[module].body if isinstance(node, ast.FunctionDef)}
        assert function in defined


def test_oodflow_imports_neither_tuning_nor_reports():
    below = [module for module in MODULES if module.split(".")[0] == "oodflow"]
    assert not {unit(name) for module in below for name in OWN[module]} & {"tuning", "reports"}


def test_no_two_modules_share_a_name():
    """But for the commands of packages, which are found by the names of these."""
    names = [module.split(".")[-1] for module in MODULES]
    twice = {name for name in names if names.count(name) > 1}
    # A package is named for what it holds.
    assert twice <= {"command"}


def test_no_two_public_classes_share_a_name():
    names = [
        node.name
        for tree in TREES.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    assert len(names) == len(set(names)), {name for name in names if names.count(name) > 1}


def test_no_room_holds_more_than_a_fifth_of_the_lines():
    rooms: dict[str, int] = {}
    for module, text in SOURCES.items():
        rooms[unit(module)] = rooms.get(unit(module), 0) + len(text.splitlines())
    assert max(rooms.values()) <= sum(rooms.values()) / 5, rooms


def test_modules_named_in_imports_and_strings_exist():
    named = {(module, name) for module in TREES for name in imports(module)}
    absent = [pair for pair in named if pair[1].split(".")[0] in PACKAGES and pair[1] not in TREES]
    assert not absent


def test_no_imports_run_in_a_circle():
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in OWN[module]:
                walk(name, (*path, module))
            done.add(module)

    for module in TREES:
        walk(module, ())


def importers(library: str) -> set[str]:
    return {
        unit(module)
        for module in MODULES
        if any(name.split(".")[0] == library for name in imports(module))
    }


def test_only_tracking_and_the_served_code_import_mlflow():
    assert importers("mlflow") == {"tracking", "detection"}
    detection = [module for module in MODULES if unit(module) == "detection"]
    named = {name for name in detection if "mlflow" in {n.split(".")[0] for n in imports(name)}}
    assert named == {"oodflow.detection.served"}


def test_only_tuning_imports_optuna():
    assert importers("optuna") == {"tuning"}


def test_one_module_alone_imports_ray_and_only_when_it_is_needed():
    named = {module for module in MODULES if "ray" in {n.split(".")[0] for n in imports(module)}}
    assert named == {"oodflow.plans.ray_engine"}
    at_once = TREES["oodflow.plans.ray_engine"].body
    assert not any(isinstance(node, ast.Import) and node.names[0].name == "ray" for node in at_once)


def test_only_the_command_line_imports_click():
    assert importers("click") == {"cli"}


def test_data_and_models_know_neither_tables_nor_terminals():
    for library in ("pandas", "rich"):
        assert not importers(library) & {"data", "models"}


def test_what_help_needs_imports_no_heavy_library():
    """Their help has to come at once: these modules may use the standard library and click."""
    for module in ("oodflow.errors", "oodflow.experiment", "oodflow.options", "oodflow.cli"):
        libraries = {name.split(".")[0] for name in imports(module)}
        heavy = {"torch", "numpy", "pandas", "sklearn", "mlflow", "rich", "matplotlib", "PIL"}
        assert not libraries & heavy


def test_bench_loads_nothing_of_reports_tuning_or_plans():
    code = "import sys, oodflow.bench.command; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    loaded = done.stdout.split()
    assert "oodflow.bench.measurement" in loaded, done.stderr
    assert not [name for name in loaded if name.split(".")[0] in ("reports", "tuning")]
    assert not [name for name in loaded if name.startswith("oodflow.plans")]
