"""The wheel and the sdist hold everything a run needs, and the wheel runs on its own."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEEDED = (
    "causaldao/simulations/scenarios/rand-hie.toml",
    "causaldao/server/templates/report.html",
    "causaldao/pictures/graph.html",
    "causaldao/pictures/graph.js",
    "causaldao/pictures/vendor/cytoscape.min.js",
    "causaldao/pictures/vendor/cytoscape.LICENSE",
    "causaldao/server/flower-app/pyproject.toml",
    "causaldao/server/flower-app/LICENSE",
    "causaldao/server/flower-app/cdao_app/client_app.py",
    "causaldao/server/deploy/compose.yaml",
    "causaldao/client/deploy/compose.yaml",
    "causaldao/ledger/migrations/versions/v0002.py",
    "causaldao/ledger/migrations/versions/v0001.py",
    "causaldao/client/privacy/journal.py",
    "causaldao/py.typed",
)
RUN = """
import sys, pathlib, causaldao
assert str(pathlib.Path(causaldao.__file__)).startswith(sys.argv[1]), causaldao.__file__
sys.argv = ["causaldao", "simulate", "rand-hie", "--out", sys.argv[2]]
from causaldao.__main__ import main
main()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_wheel_lacks_a_file(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert [name for name in NEEDED if name not in names] == []
    assert not any(name.split("/")[0] in ("server", "client", "models", "ledger", "simulations") for name in names)


def test_sdist_lacks_a_file(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    # the folders of the house lie at the top; the package `causaldao` itself is one of them
    lacking = [name for name in NEEDED[:-1] if not {name, name.removeprefix("causaldao/")} & names]
    assert lacking == []


def test_wheel_does_not_run(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-P", "-c", RUN, str(site), str(tmp_path / "run")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env={"PYTHONPATH": str(site), "PATH": ""}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
