"""The house: what is packaged is what is there, importing it is free, and no floor uses a forbidden door."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import causaldao

ROOT = Path(__file__).parents[1]
FLOORS = ("client", "ledger", "models", "server", "simulations")
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def _sources() -> Iterator[Path]:
    for folder in ("causaldao", *FLOORS):
        for directory, inside, files in os.walk(ROOT / folder):
            left_out = ("__pycache__", "flower-app")  # the bundle is data of ours: what is sent, not what is imported
            inside[:] = [name for name in inside if name not in left_out and not (Path(directory) / name).is_symlink()]
            yield from (Path(directory) / name for name in files if name.endswith(".py"))


SOURCES = sorted(_sources())


def _package(path: Path) -> str:
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(parts if parts[0] == "causaldao" else ("causaldao", *parts))


def _run(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_a_package_is_left_out_of_the_wheel() -> None:
    there = {_package(path) for path in SOURCES}
    listed = set(SETUP["packages"])
    data_only = set(SETUP["package-data"])
    assert there <= listed
    assert listed - there <= data_only


def test_a_package_is_mapped_to_another_folder() -> None:
    directories = SETUP["package-dir"]
    for package in SETUP["packages"]:
        top, *rest = package.split(".")
        assert top == "causaldao"
        expected = "/".join(rest) if rest and rest[0] in FLOORS else "/".join([top, *rest])
        mapped = directories.get(package, "/".join([directories["causaldao"], *rest]))
        assert mapped == expected
        assert (ROOT / mapped).is_dir()


@pytest.mark.parametrize("floor", FLOORS)
def test_a_symlink_points_elsewhere(floor: str) -> None:
    link = ROOT / "causaldao" / floor
    assert link.is_symlink()
    assert os.readlink(link) == f"../{floor}"


def test_every_package_has_an_init() -> None:
    missing = {path.parent for path in SOURCES if not (path.parent / "__init__.py").exists()}
    assert missing == set()


HEAVY = ("torch", "flwr", "pandas", "numpy", "sqlalchemy", "opacus")


def test_importing_the_package_is_slow() -> None:
    loaded = f"[name for name in {HEAVY!r} if name in sys.modules]"
    assert _run(f"import sys, causaldao; print({loaded})") == "[]"
    assert _run(f"import sys, causaldao.ledger, causaldao.errors, causaldao.console; print({loaded})") == "[]"


def test_help_waits_for_torch() -> None:
    code = (
        "import sys\nfrom causaldao.__main__ import main\nsys.argv = ['causaldao', '--help']\n"
        "try: main()\nexcept SystemExit as left: assert not left.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stderr.strip() == "[]"
    for command in ("simulate", "audit", "ledger"):
        assert f"  {command}" in ran.stdout


def test_a_command_of_the_front_door_leads_nowhere() -> None:
    from importlib import import_module

    from causaldao.__main__ import COMMANDS

    for module, attribute, help_text in COMMANDS.values():
        assert hasattr(import_module(module), attribute), (module, attribute)
        assert help_text


@pytest.mark.parametrize("name", causaldao.__all__)
def test_a_public_name_does_not_resolve(name: str) -> None:
    assert getattr(causaldao, name) is not None
    assert name in dir(causaldao)


@pytest.mark.parametrize("name", ["study_of_nothing"])
def test_a_name_that_is_not_public_resolves(name: str) -> None:
    with pytest.raises(AttributeError, match="Study"):
        getattr(causaldao, name)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            assert node.level == 0, "a relative import means two things under two names"


def _calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_runs_what_comes_from_outside(path: Path) -> None:
    """No bare `server` (a second module object), no pickle, nothing that turns data into code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tops = {name.split(".")[0] for name in _imports(tree)}
    assert not tops & {*FLOORS, "pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
    assert not set(_calls(tree)) & {
        "eval",
        "exec",
        "compile",
        "__import__",
        "torch.load",
        "os.system",
        "np.load",
        "numpy.load",
    }


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_user_error_is_an_assert(path: Path) -> None:
    """Asserts are for types only; a file that leans on them is one where somebody forgot to raise."""
    asserts = sum(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    assert asserts <= 4


def test_a_misuse_with_json_is_no_envelope() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "causaldao", "simulate", "--nope", "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "misuse")
    assert (
        subprocess.run([sys.executable, "-m", "causaldao", "--version"], check=False, capture_output=True).returncode
        == 0
    )
