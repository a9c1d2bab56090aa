"""`make compat`: our apps on the newest Flower, over its own transport, and whether they give the same answer.

Three nodes and a coordinator in folders, then Flower's processes as Flower would have them: a SuperLink, three
SuperNodes and its command line, with TLS and node keys, each message in a process of Flower's own that runs the app out
of our bundle. None of our transport (gateway, connector, launcher, Control) takes part: it is built for the pinned
release. The study, its rows and the answer to compare with are those of a run of the inline engine.

    python -m tests.compat [--pinned PYTHON]

``--pinned`` is an interpreter with the pinned Flower, for the inline engine if that does not run on the newest one.
What every process said stays in runs/compat.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from causaldao.children import FLOWER, Child, script, stop_all
from causaldao.client import approvals
from causaldao.errors import NetworkError
from causaldao.flower_app import fab
from causaldao.ledger.witness import Witness
from causaldao.members import Member
from causaldao.server import membership
from causaldao.server.home import HOME_VARIABLE, Home, Settings
from causaldao.signing import SigningKey
from causaldao.study import Study

OUT = Path("runs/compat")
APPS = ("causaldao.client.app", "causaldao.server.app", "causaldao.server.conduct")
MEMBERS = 3
LOOPBACK = "127.0.0.1"
FEDERATION = "compat"
LINK = "compat"  # what Flower's command line calls our SuperLink
READY_SECONDS, STUDY_SECONDS, COMMAND_SECONDS = 60.0, 600.0, 60.0
ENVIRONMENT = {**FLOWER, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Trial:
    """One study in ``folder``; ``doing`` says in words what is being done, for whoever asks where it broke."""

    def __init__(self, folder: Path, pinned: str | None) -> None:
        self.folder = folder
        self.doing = "preparing"
        self._pinned = pinned
        self._port, *self._runtimes = _free_ports(1 + MEMBERS)

    def run(self) -> None:
        """Raise whatever is in the way of the same answer."""
        self.doing = "importing our apps"
        for name in APPS:
            import_module(name)
        self.doing = "running the study on the inline engine"
        inline = self._inline()
        self.doing = "preparing the coordinator's and the nodes' folders"
        study = Study.from_mapping(json.loads((inline / "study.json").read_text()))
        home, nodes = self._federation(inline, study)
        with ExitStack() as cleaning:
            self.doing = "starting flower-superlink"
            superlink = self._superlink(home)
            cleaning.callback(_end, [superlink])
            superlink.start()
            _wait(superlink, self._port)
            self.doing = "registering the nodes' keys (flwr supernode register)"
            for node in nodes:
                self._flwr("supernode", "register", str(node / "flower.pub"), LINK, "--name", node.name)
            self.doing = "starting flower-supernode"
            supernodes = [self._supernode(node, port) for node, port in zip(nodes, self._runtimes, strict=True)]
            cleaning.callback(_end, supernodes)
            for supernode in supernodes:
                supernode.start()
            for supernode, port in zip(supernodes, self._runtimes, strict=True):
                _wait(supernode, port)
            self.doing = "running the study (flwr run)"
            try:
                said = self._flwr(
                    "run", str(self._app()), LINK, "--stream", "--run-config", f'study="{study.hash}"',
                    seconds=STUDY_SECONDS,
                )  # fmt: skip
            finally:  # a process that is gone is why nothing came
                for child in (superlink, *supernodes):
                    _require(child)
        self._require_closed(home, study, said)
        self.doing = "comparing the answers"
        require_same(_result(home.study_folder(study.hash)), _result(inline))

    def _inline(self) -> Path:
        """The run folder of the inline engine, which leans on Flower's inside: on this Flower if it will, else on the
        pinned one."""
        out, last = self.folder / "inline", ""
        for python in (sys.executable, self._pinned):
            if python is None or not Path(python).exists():
                continue
            shutil.rmtree(out, ignore_errors=True)
            command = [python, "-m", "tests.compat", "--inline", str(out)]
            ran = subprocess.run(
                command, capture_output=True, text=True, check=False, env={**os.environ, **ENVIRONMENT}
            )
            if ran.returncode == 0:
                return out
            last = _last_line(ran.stderr)
            _say(f"compat: the inline engine does not run on {python}: {last}")
        raise NetworkError(f"It runs neither on this Flower nor on the pinned one: {last}")

    def _federation(self, inline: Path, study: Study) -> tuple[Home, list[Path]]:
        """The coordinator's folder with its ledger, and the nodes', admitted without the enrolment service."""
        from causaldao.server.recording import propose  # not above: it reaches Flower, see `run`

        now = datetime.now(UTC)
        home = Home.create(self.folder / "coordinator", Settings(federation=FEDERATION, host=LOOPBACK), now)
        seed = json.loads((inline / "simulation.json").read_text())["setting"]["seed"]
        coordinator = home.key.public.to_text("coordinator")
        nodes, members = [], []
        for former in sorted((inline / "nodes").iterdir()):
            folder, key = self.folder / former.name, SigningKey.generate()
            folder.mkdir()
            shutil.copy(former / "data.parquet", folder / "data.parquet")
            key.save(folder / "signing.pem")
            witness = SigningKey.generate()
            witness.save(folder / "witness.pem")
            Witness.create(folder / "witness.db", home.origin)
            _flower_key(folder)
            values = {
                "name": former.name, "federation": FEDERATION, "coordinator": coordinator, "origin": home.origin,
                "data": "data.parquet", "dataset": "small", "insecure_seed": seed,
            }  # fmt: skip
            lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
            (folder / "node.toml").write_text("\n".join([*lines, "[lifetime]", "epsilon = 200.0", ""]))
            approvals.approve(folder, study, now)
            nodes.append(folder)
            members.append(Member(former.name, key.public, witness.public))
        with home.log() as log:
            membership.admit(log, *members)
            home.write_policy(log)
            propose(log, study)
        home.registry.propose(study.hash, study.name, study.to_json(), now)
        return home, nodes

    def _superlink(self, home: Home) -> Child:
        """All its APIs are on one port since 1.40."""
        folder = self.folder / "superlink"
        folder.mkdir()
        key, chain = home.authority.issue_server([LOOPBACK, "localhost"], datetime.now(UTC))
        (folder / "server.key").touch(0o600)
        (folder / "server.key").write_bytes(key)
        (folder / "server.pem").write_bytes(chain)
        (folder / "authority.crt").write_bytes(home.authority.certificate_pem)
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "{LINK}"\n[superlink.{LINK}]\naddress = "{LOOPBACK}:{self._port}"\n'
            f"root-certificates = {json.dumps(str(folder / 'authority.crt'))}\n"
        )
        command = [
            script("flower-superlink"), "--ssl-ca-certfile", str(folder / "authority.crt"),
            "--ssl-certfile", str(folder / "server.pem"), "--ssl-keyfile", str(folder / "server.key"),
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
            "--host", LOOPBACK, "--port", str(self._port), "--database", str(folder / "superlink.db"),
        ]  # fmt: skip
        environment = {**ENVIRONMENT, "FLWR_HOME": str(folder), HOME_VARIABLE: str(home.folder)}
        return Child("flower-superlink", command, folder / "superlink.log", environment)

    def _supernode(self, node: Path, runtime: int) -> Child:
        """It starts Flower's own ``flwr-clientapp`` for each message; our launcher stays out of it."""
        from causaldao.client.app import FOLDER_VARIABLE  # not above: it reaches Flower, see `run`

        command = [
            script("flower-supernode"), "--root-certificates", str(self.folder / "superlink" / "authority.crt"),
            "--superlink", f"{LOOPBACK}:{self._port}", "--auth-supernode-private-key", str(node / "flower"),
            "--isolation", "subprocess", "--host", LOOPBACK, "--port", str(runtime),
        ]  # fmt: skip
        environment = {**ENVIRONMENT, "FLWR_HOME": str(node / "flwr"), FOLDER_VARIABLE: str(node)}
        return Child("flower-supernode", command, node / "supernode.log", environment)

    def _app(self) -> Path:
        """Our bundle, unpacked: Flower's command line packs a folder."""
        folder = self.folder / "flower-app"
        with zipfile.ZipFile(io.BytesIO(fab())) as bundle:
            bundle.extractall(folder, [name for name in bundle.namelist() if not name.startswith(".info/")])
        return folder

    def _flwr(self, *arguments: str, seconds: float = COMMAND_SECONDS) -> str:
        """A command of Flower's; what it said."""
        environment = {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(self.folder / "superlink")}
        with (self.folder / "flwr.log").open("a+", encoding="utf-8") as log:
            begin = log.seek(0, os.SEEK_END)
            try:
                ran = subprocess.run(
                    [script("flwr"), *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False,
                    env=environment, timeout=seconds,
                )  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise NetworkError(f"flwr {arguments[0]} has not ended after {seconds:g} s: see {log.name}.") from error
            log.seek(begin)
            said = log.read()
        if ran.returncode:
            raise NetworkError(f"flwr {arguments[0]} ended with status {ran.returncode}: {_last_line(said)}")
        return said

    def _require_closed(self, home: Home, study: Study, said: str) -> None:
        row = home.registry.study(study.hash)
        if row.state != "closed":
            events = home.registry.events(study.hash)
            last = events[-1].message if events else _last_line(said)
            raise NetworkError(f"The study is {row.state}, not closed: {last}")


def require_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise a NetworkError that names what differs between two results: graph, marks or effects."""
    differing = [name for name, value in _answer(expected).items() if _answer(found)[name] != value]
    if differing:
        raise NetworkError(f"{', '.join(differing)} differ(s) from the inline engine's.")


def _answer(result: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs share; the pooled estimate is known to a simulation alone."""
    effects = [{key: value for key, value in effect.items() if key != "pooled"} for effect in result["effects"]]
    return {"graph": result["graph"], "marks": result["marks"], "effects": effects}


def _result(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def _inline(out: Path) -> None:
    """Run the study on the inline engine. Imported here: the rest must not depend on it."""
    from tests.wire import cases

    cases.inline(cases.study(faulty=0, deadline=300.0), out, MEMBERS)


def _flower_key(folder: Path) -> None:
    """The key that Flower authenticates the node with, and its public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    (folder / "flower").touch(0o600)
    (folder / "flower").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    (folder / "flower.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))


def _end(children: Sequence[Child]) -> None:
    """End processes of Flower, and what they started, which does not always go with them."""
    stop_all(children)
    for child in children:
        if child.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # a child leads a group of its own


def _wait(child: Child, port: int) -> None:
    """Until it listens."""
    deadline = time.monotonic() + READY_SECONDS
    while not _listens(port):
        _require(child)
        if time.monotonic() > deadline:
            raise NetworkError(f"{child.name} does not listen after {READY_SECONDS:g} s: see {child.log}.")
        time.sleep(0.2)


def _require(child: Child) -> None:
    """A NetworkError with the last word of its log, if it has ended."""
    if not child.alive():
        raise NetworkError(f"{child.name} has ended: {_last_line(child.log.read_text(errors='replace'))}")


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((LOOPBACK, port)) == 0


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the verdict; 0 for the same answer, 1 for anything else."""
    parser = argparse.ArgumentParser(prog="tests.compat")
    parser.add_argument("--pinned", help="an interpreter with the pinned Flower")
    parser.add_argument("--inline", type=Path, help="only run the study on the inline engine, into this folder")
    given = parser.parse_args()
    if given.inline is not None:
        _inline(given.inline)
        return 0
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    trial = Trial(OUT.resolve(), given.pinned)
    flower = f"compat: flwr {version('flwr')}"
    try:
        trial.run()
    except Exception as error:  # a Flower to come may raise anything: what it raised is the verdict
        _say(f"{flower}: broke while {trial.doing}: {type(error).__name__}: {error} (logs: {OUT})")
        return 1
    _say(f"{flower}: the same answer")
    return 0


if __name__ == "__main__":
    sys.exit(main())
