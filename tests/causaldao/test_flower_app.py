"""A bundle that is another one on another machine, that changes unseen, or that carries code."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import subprocess
import sys
import time
import tomllib
import zipfile
import zlib
from pathlib import Path

import pytest
from flwr.cli.install import install_from_fab
from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.run import Run

from causaldao import flower_app
from causaldao.flower_app import APP_ID, APP_VERSION, build, fab, fab_hash
from causaldao.server.superlink import Control

ELSEWHERE = """
import os, sys, time, zlib
os.umask(0o077)
os.environ["TZ"] = "Asia/Tokyo"
time.tzset()
zlib.compressobj = None
from causaldao.flower_app import fab_hash
print(fab_hash())
"""


def contents() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(fab())) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.startswith(".info")}


def test_the_bytes_depend_on_the_process_its_umask_zone_folder_or_hash_seed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], cwd=tmp_path, env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == fab_hash() == hashlib.sha256(fab()).hexdigest()


def test_the_bytes_depend_on_clock_platform_or_compressor(monkeypatch: pytest.MonkeyPatch) -> None:
    def compress(*_: object, **__: object) -> bytes:
        raise AssertionError("a compressor's output may differ from one version to another")

    monkeypatch.setattr(time, "time", lambda: 4e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(4e9))
    monkeypatch.setattr(zlib, "compressobj", compress)
    monkeypatch.setattr(sys, "platform", "win32")
    assert build(contents()) == fab()


def test_an_archive_entry_names_its_machine_date_or_mode() -> None:
    with zipfile.ZipFile(io.BytesIO(fab())) as archive:
        for entry in archive.infolist():
            assert entry.date_time == (1980, 1, 1, 0, 0, 0)
            assert (entry.create_system, entry.compress_type) == (3, zipfile.ZIP_STORED)
            assert (entry.external_attr >> 16) & 0o777 in (0, 0o600)
            assert (entry.extra, entry.comment) == (b"", b"")


@pytest.mark.parametrize("name", flower_app._FILES)
def test_a_changed_file_leaves_the_hash_as_it_was(name: str) -> None:
    changed = contents()
    changed[name] += b"\n"
    assert hashlib.sha256(build(changed)).hexdigest() != fab_hash()
    assert build(changed) != build(contents())


def test_a_file_of_the_app_is_left_out_of_the_bundle() -> None:
    folder = Path(flower_app.__file__).parents[1] / "server" / "flower-app"
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {name for name in there if "__pycache__" not in name} == set(contents())


def test_flower_would_not_install_the_bundle(tmp_path: Path) -> None:
    installed = install_from_fab(fab(), tmp_path)
    assert {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()} == set(contents())
    broken = build(contents()).replace(b"The node of the installed", b"The code of the installed")
    with pytest.raises(Exception, match=r"hash|CRC"):
        install_from_fab(broken, tmp_path / "other")


def test_flower_reads_other_settings_from_the_bundle_than_the_study() -> None:
    run = Run.create_empty(1)
    assert get_fused_config_from_fab(fab(), run) == {"study": ""}
    run.override_config = {"study": "ab" * 32}
    assert get_fused_config_from_fab(fab(), run) == {"study": "ab" * 32}


def test_the_apps_name_and_version_are_others_in_its_project_file() -> None:
    project = tomllib.loads(contents()["pyproject.toml"].decode())
    app = project["tool"]["flwr"]["app"]
    assert f"{app['publisher']}/{project['project']['name']}" == APP_ID
    assert project["project"]["version"] == APP_VERSION
    assert "dependencies" in project["project"]
    assert not any("causaldao" in wanted for wanted in project["project"]["dependencies"])  # never fetched by Flower
    for where in app["components"].values():
        module, _, name = where.partition(":")
        assert (f"{module.replace('.', '/')}.py" in contents(), name) == (True, "app")


@pytest.mark.parametrize("name", [name for name in flower_app._FILES if name.endswith(".py")])
def test_the_bundle_carries_code_of_its_own(name: str) -> None:
    """Only a docstring, imports of names of the installed package, and ``app = `` one of them."""
    docstring, *rest = ast.parse(contents()[name]).body
    assert isinstance(docstring, ast.Expr)
    assert isinstance(docstring.value, ast.Constant)
    imports = [node for node in rest if isinstance(node, ast.ImportFrom)]
    assignments = [node for node in rest if isinstance(node, ast.Assign)]
    assert len(imports) + len(assignments) == len(rest)
    assert {(node.module or "").split(".")[0] for node in imports} <= {"causaldao"}
    assert [ast.unparse(node) for node in assignments] == ["app = _app"] * len(imports)


def test_a_run_is_started_with_another_bundle_than_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(Control, "start_app", lambda self, bundle, config: sent.append(bundle) or 7)
    assert Control("127.0.0.1:1", b"").start("ab" * 32) == 7
    assert [hashlib.sha256(bundle).hexdigest() for bundle in sent] == [fab_hash()]
