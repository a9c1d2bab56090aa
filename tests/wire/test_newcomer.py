"""The newcomer's page works word for word."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from causaldao.simulations.deployment import ENVIRONMENT, free_ports

pytestmark = pytest.mark.wire
PAGE = Path(__file__).parents[2] / "docs" / "newcomer.md"


def test_the_newcomers_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    fleet, enrolment, ledger = free_ports(3)
    environment = {
        **ENVIRONMENT, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CAUSALDAO_FLEET_PORT": str(fleet), "CAUSALDAO_ENROLMENT_PORT": str(enrolment),
        "CAUSALDAO_LEDGER_PORT": str(ledger),
    }  # fmt: skip
    script = "set -e\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, timeout=600, check=False
    )
    logs = "\n".join(f"{path.name}: {path.read_text()[-1500:]}" for path in tmp_path.glob("*.log"))
    assert "is closed" in done.stdout.decode(), done.stdout.decode() + done.stderr.decode() + logs
    said = done.stdout.decode()
    assert "follows" in said or "audit" in said.lower()
    (folder,) = (tmp_path / "coordinator" / "studies").iterdir()
    assert (folder / "report.html").exists()
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False)
    assert left.returncode == 1, left.stdout
