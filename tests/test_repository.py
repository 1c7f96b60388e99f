"""The repository keeps its own promises: layout, pins, entry points, direction of imports."""

import ast
import functools
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fnostab.config import FLAT_KEYS

if sys.version_info >= (3, 11):
    import tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "fnostab"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

#: The rooms of the package: folders, and the public modules beside them (docs/architecture.md).
ROOMS = {
    *("mlproject", "cli", "workflows", "report", "tracking", "training", "study", "ranking", "health", "metrics"),
    *("dataset", "formats", "models", "launch", "io", "monitor", "export", "reconstruction"),
    *("config", "optics", "objects", "scan", "clipping", "gradients", "layers", "evaluation"),
    *("difference_map", "__main__"),
}
#: Import none of the frameworks below, not even through another room.
PURE = {"optics", "objects", "scan", "models", "clipping", "gradients", "metrics", "health", "ranking", "study"}
#: The one room that imports each framework.
HOME = {
    **dict.fromkeys(("lightning", "pytorch_lightning", "lightning_utilities", "torchmetrics"), "training"),
    "mlflow": "tracking",
    "matplotlib": "report",
}

#: Where the name that is imported differs from the distribution's.
DISTRIBUTIONS = {"skimage": "scikit-image", "yaml": "pyyaml", "pydantic_core": "pydantic"}


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Full names of all that `module` imports, also inside functions; `from a import b` gives `a` and `a.b`."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            names.add(base)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    return frozenset(names)


def roots(module: str) -> set[str]:
    """Top-level packages that `module` imports."""
    return {name.partition(".")[0] for name in imports(module)}


def reachable(module: str) -> set[str]:
    """`module` and every module of the package that it imports, directly or not."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in MODULES and name not in seen:
            seen.add(name)
            waiting.extend(imports(name))
    return seen


#: Each builds on those before it.
LOCK_FILES = ("requirements.lock", "requirements-dev.lock", "requirements-faults.lock", "requirements-interop.lock")
#: Stands by itself: the docs are built without any of what the package needs.
DOCS_LOCK = "requirements-docs.lock"


def pins(name: str) -> list[str]:
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r "))]


def project() -> dict:
    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with tomllib, which Python 3.11 brought")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def root_entries() -> Iterator[str]:
    yield from os.listdir(ROOT)
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        yield from (path.partition("/")[0] for path in listed.split("\0"))


def test_nothing_in_the_root_but_MLproject_has_that_name_in_lower_case() -> None:
    """MLflow takes the first entry of that name that the file system lists (docs/decisions/0001)."""
    assert {name for name in root_entries() if name.lower() == "mlproject"} == {"MLproject"}


@pytest.mark.parametrize("name", [*LOCK_FILES, DOCS_LOCK])
def test_every_line_of_a_lock_file_is_an_exact_public_version(name: str) -> None:
    loose = [line for line in pins(name) if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)]
    assert loose == []


def test_no_lock_file_pins_the_packages_of_one_cuda_version() -> None:
    """They follow from torch's build; listed, they would be installed on machines that have no use for them."""
    names = [line.partition("==")[0] for lock in LOCK_FILES for line in pins(lock)]
    assert [name for name in names if name.startswith(("nvidia", "triton", "cuda"))] == []


def test_nothing_is_pinned_twice() -> None:
    names = [canonicalize_name(line.partition("==")[0]) for lock in LOCK_FILES for line in pins(lock)]
    assert sorted(set(names)) == sorted(names)


def test_the_docs_are_built_with_the_versions_that_others_need_too() -> None:
    versions = dict(line.split("==") for lock in LOCK_FILES[:2] for line in pins(lock))
    docs = dict(line.split("==") for line in pins(DOCS_LOCK))
    assert {name for name in docs.keys() & versions if docs[name] != versions[name]} == set()
    assert (
        _outside(project()["optional-dependencies"]["docs"], {canonicalize_name(name): v for name, v in docs.items()})
        == []
    )
    assert "torch" not in docs


def test_conda_yaml_equals_the_lock_file() -> None:
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())
    python, pip, section = conda["dependencies"]
    assert (conda["name"], conda["channels"], pip) == ("fnostab", ["conda-forge"], "pip")
    assert re.fullmatch(r"python=3\.11\.\d+", python)
    assert section == {"pip": pins("requirements.lock")}


def test_the_locks_hold_a_version_in_range_of_every_declared_dependency() -> None:
    metadata = project()
    extras = metadata["optional-dependencies"]
    declared = (metadata["dependencies"], extras["test"] + extras["dev"], extras["faults"], extras["interop"])
    locked: dict[str, str] = {}
    for lock, needed in zip(LOCK_FILES, declared, strict=True):
        for line in pins(lock):
            name, _, version = line.partition("==")
            locked[canonicalize_name(name)] = version
        assert _outside(needed, locked) == []


def test_every_lock_file_but_the_first_starts_from_the_one_before() -> None:
    starts = [re.findall(r"^-r (.*)$", (ROOT / name).read_text(), flags=re.MULTILINE) for name in LOCK_FILES]
    assert starts == [[], *([name] for name in LOCK_FILES[:-1])]


def test_the_tests_with_real_faults_run_by_a_command_of_their_own_and_no_other() -> None:
    if sys.version_info < (3, 11):
        pytest.skip("reads pyproject.toml with tomllib, which Python 3.11 brought")
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["addopts"][-2:] == ["-m", "not faults"]
    unmarked = [
        path.name
        for path in sorted((ROOT / "tests" / "faults").glob("test_*.py"))
        if not re.search(r"^pytestmark = .*pytest\.mark\.faults", path.read_text(), flags=re.MULTILINE)
    ]
    assert unmarked == []


def _outside(declared: list[str], locked: dict[str, str]) -> list[str]:
    """The declared requirements that no locked version meets."""
    needs = [Requirement(text) for text in declared]
    versions = [locked.get(canonicalize_name(need.name)) for need in needs]
    met = [v is not None and need.specifier.contains(v) for need, v in zip(needs, versions, strict=True)]
    return [str(need) for need, fits in zip(needs, met, strict=True) if not fits]


def test_whatever_is_imported_is_a_declared_dependency() -> None:
    declared = {canonicalize_name(Requirement(text).name) for text in project()["dependencies"]}
    known = set(sys.stdlib_module_names) | {"fnostab"}
    undeclared = {
        (module, name)
        for module in MODULES
        for name in roots(module) - known
        if canonicalize_name(DISTRIBUTIONS.get(name, name)) not in declared
    }
    of_extras = {("launch", "ray"), ("launch", "submitit"), ("export", "onnx"), ("export", "onnxruntime")}
    of_extras |= {("models", "neuralop"), ("models", "opt_einsum")}  # neuraloperator brings the last
    assert {(room_of(module), name) for module, name in undeclared} == of_extras, undeclared


def room_of(module: str) -> str:
    """`fnostab.models.fno` -> `models`; the package itself, which only has its version, is no room."""
    return module.split(".")[1] if "." in module else ""


def own_imports(module: str) -> set[str]:
    """The modules of the package that `module` imports; `from a import b` means the module `a.b` where there is one."""
    found = imports(module) & MODULES.keys() - {module, "fnostab"}
    # `from fnostab.models.fno import X` does not ask for anything of `fnostab.models`.
    return {name for name in found if not any(other.startswith(name + ".") for other in found)}


def test_the_package_has_the_rooms_of_its_plan_and_no_others() -> None:
    assert {room_of(module) for module in MODULES} - {""} == ROOMS


def test_a_room_stands_above_all_that_it_imports() -> None:
    """Rooms form no circle, nor do modules; `TopologicalSorter` names one that it finds."""
    rooms: dict[str, set[str]] = {}
    for module in MODULES:
        others = {room_of(name) for name in own_imports(module)} - {room_of(module)}
        rooms.setdefault(room_of(module), set()).update(others)
    assert list(graphlib.TopologicalSorter(rooms).static_order())
    assert list(graphlib.TopologicalSorter({module: own_imports(module) for module in MODULES}).static_order())


def test_each_framework_is_imported_in_one_room_alone() -> None:
    found = {(name, room_of(module)) for module in MODULES for name in roots(module) & HOME.keys()}
    assert found <= set(HOME.items())
    assert {room for _, room in found} == set(HOME.values())


def test_the_reusable_rooms_reach_no_framework() -> None:
    pure = [module for module in MODULES if room_of(module) in PURE]
    assert {(module, name) for module in pure for name in reachable(module) if roots(name) & HOME.keys()} == set()


def test_the_configuration_needs_nothing_heavier_than_pydantic() -> None:
    foreign = {root for name in reachable("fnostab.config") for root in roots(name)} - set(sys.stdlib_module_names)
    assert foreign <= {"fnostab", "pydantic", "pydantic_core", "yaml"}


def test_MLproject_offers_the_flat_parameters_with_defaults_that_leave_the_choice_to_the_preset() -> None:
    main = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["main"]
    expected = dict.fromkeys(FLAT_KEYS, "auto") | {"preset": "stage_a", "data": ""}
    assert {name: spec["default"] for name, spec in main["parameters"].items()} == expected
    assert {spec["type"] for spec in main["parameters"].values()} == {"string"}


def test_MLproject_passes_each_parameter_once_and_unquoted() -> None:
    """MLflow quotes the values itself; quotes around a placeholder would open an injection."""
    main = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["main"]
    start = "python -m fnostab.mlproject.train"
    assert main["command"] == " ".join([start, *(f"--{name} {{{name}}}" for name in main["parameters"])])


def test_MLproject_names_the_conda_file() -> None:
    assert yaml.safe_load((ROOT / "MLproject").read_text())["conda_env"] == "conda.yaml"


@pytest.mark.parametrize(("words", "code"), [("--help", 0), ("train --help", 0), ("train --lr 0", 2)])
def test_help_and_a_refusal_load_nothing_heavy(words: str, code: int) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fnostab", *words.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    loaded = set(re.findall(r"^import time:.*\|\s+([\w.]+)$", done.stderr, flags=re.MULTILINE))
    assert done.returncode == code, done.stderr[-2000:]
    assert "fnostab.cli" in loaded
    assert ("usage" in done.stdout) == (code == 0)
    assert loaded & {"torch", "mlflow", "lightning", "numpy", "scipy", "skimage", "matplotlib", "pandas"} == set()


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_readmes_commands_are_targets_of_the_makefile(target: str) -> None:
    assert f"make {target}" in (ROOT / "README.md").read_text()
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def navigation() -> list[str]:
    """The pages in the navigation of the site."""

    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for part in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
            yield from pages(part)

    return list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_every_page_of_the_docs_is_in_the_navigation_once_and_nothing_else_is() -> None:
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {"index.md", "contributing.md", "changelog.md"}  # docs/hooks.py makes them of files in the root
    assert sorted(navigation()) == sorted(written | made)


def test_ci_runs_the_readmes_test_command() -> None:
    assert re.search(r"^(exec )?make test\b", (ROOT / ".ci" / "run").read_text(), flags=re.MULTILINE)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_version_is_a_literal_that_the_build_can_read_without_importing() -> None:
    assigned = [
        node.value
        for node in ast.parse((PACKAGE / "__init__.py").read_text()).body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__version__"]
    ]
    assert [type(value) for value in assigned] == [ast.Constant]
    assert re.fullmatch(r"\d+\.\d+\.\d+", ast.literal_eval(assigned[0]))
