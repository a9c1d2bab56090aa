"""A round over the wire, beside a round of Flower's own FedAvg with as many nodes.

Both are real processes on loopback with TLS and node keys. The peer is Flower as it comes: its SuperNodes with their
own way of running an app, its shipped ``FedAvg`` with a train and an evaluate message a round, and an app of numpy
alone that returns what it is given, so that its round is the price of the transport. Ours is a study: the
coordinator's checks, the ledger, private training and a noised evaluation, through gateway and connectors. A round of
ours is what the coordinator's own clock says of an update, its aggregation and its evaluation.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from causaldao.children import FLOWER, Child, script
from causaldao.errors import NetworkError
from causaldao.flower_app import build
from causaldao.server import superlink
from causaldao.server.authority import Authority
from causaldao.simulations.datasets import linear_gaussian
from causaldao.simulations.deployment import LOOPBACK, Deployment, free_ports, now, wait_for
from causaldao.study import Study

_APP = {
    "pyproject.toml": """
[project]
name = "bare"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.39.0"]
[tool.flwr.app]
publisher = "bare"
fab-format-version = 1
flwr-version-target = "1.39.0"
[tool.flwr.app.components]
serverapp = "bare_app.server:app"
clientapp = "bare_app.client:app"
[tool.flwr.app.config]
out = ""
nodes = ""
rounds = ""
parameters = ""
""",
    "LICENSE": "none\n",
    "bare_app/__init__.py": "",
    "bare_app/client.py": """
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)

@app.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.0})}), reply_to=message)
""",
    "bare_app/server.py": """
import json, time
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
app = ServerApp()

class Timed(FedAvg):
    times = []
    def configure_train(self, *arguments, **named):
        self.times.append(time.monotonic())
        return super().configure_train(*arguments, **named)

@app.main()
def main(grid, context):
    given = context.run_config
    nodes = int(given["nodes"])
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.2)
    strategy = Timed(min_available_nodes=nodes, min_train_nodes=nodes, min_evaluate_nodes=nodes)
    first = ArrayRecord([np.zeros(int(given["parameters"]), dtype=np.float32)])
    strategy.start(grid=grid, initial_arrays=first, num_rounds=int(given["rounds"]))
    strategy.times.append(time.monotonic())
    with open(given["out"], "w") as out:
        json.dump(strategy.times, out)
""",
}


def measure(*, nodes: int = 3, rounds: int = 3, repeats: int = 5) -> dict[str, Any]:
    """Median seconds a round of both, and their ratio, over ``repeats`` (at most 3) deployments of each in turn."""
    ours, bare, size = list[float](), list[float](), 0
    for _ in range(min(repeats, 3)):
        with tempfile.TemporaryDirectory() as folder:
            found, size = _ours(Path(folder), nodes, rounds)
            ours += found
        with tempfile.TemporaryDirectory() as folder:
            bare += _bare(Path(folder), nodes, rounds, size)
    return {
        "nodes": nodes, "rounds": rounds, "repeats": min(repeats, 3), "parameters": size,
        "round": {
            "seconds": median(ours), "bare_flower_fedavg_seconds": median(bare), "ratio": median(ours) / median(bare),
            "range": [min(ours), max(ours)], "bare_range": [min(bare), max(bare)],
        },
    }  # fmt: skip


def study(rounds: int) -> Study:
    """A small study that trains."""
    about = {"name": "wire", "question": "Does a move c?", "purpose": "A benchmark.", "retention": "A day."}
    return Study.from_mapping({
        "study": {**about, "simulation": True},
        "variables": [{"name": name, "kind": "continuous", "bounds": [-6.0, 6.0]} for name in "abc"],
        "discovery": {"method": "boss", "restarts": 2},
        "consensus": {"faulty": 0},
        "training": {"rounds": rounds, "steps": 20, "sample_rate": 0.1},
        "privacy": {"epsilon": 40.0, "delta": 1e-5, "split": {"evidence": 0.5, "training": 0.4, "evaluation": 0.1}},
        "members": {"n_min": 50, "n_max": 2000, "deadline": 120.0},
        "aggregation": {"rule": "coordinate-median"},
        "effects": [{"treatment": "a", "outcome": "c", "adjustment": []}],
    })  # fmt: skip


def _ours(folder: Path, nodes: int, rounds: int) -> tuple[list[float], int]:
    """Seconds of each round, and the number of parameters."""
    asked = study(rounds)
    table = linear_gaussian({("a", "b"): 0.9, ("b", "c"): 0.8}, 300 * nodes, np.random.default_rng(0))
    tables = {f"node-{k}": table.iloc[k::nodes].reset_index(drop=True) for k in range(nodes)}
    with Deployment(folder, tables) as deployment:
        deployment.start_coordinator()
        deployment.enrol()
        deployment.approve(asked)
        deployment.start_nodes()
        status, envelope = deployment.run_study(asked)
        if status:
            raise NetworkError(f"The study did not finish: {envelope}")
        events = deployment.home.registry.events(asked.hash)
        with deployment.home.log() as log:
            (size,) = {entry["shape"][0] for r in log.entries() if r.kind == "update" for entry in r.body["manifest"]}
    ends = [event.time for event in events if event.phase == "training" and event.message.startswith("round ")]
    begin = next(event.time for event in events if event.phase == "adopt")
    return [(after - before).total_seconds() for before, after in pairwise([begin, *ends])], int(size)


def _bare(folder: Path, nodes: int, rounds: int, parameters: int) -> list[float]:
    authority = Authority.create(folder, "bare", now())
    with _bare_nodes(folder, authority, nodes) as control:
        out = folder / "times.json"
        config = {"out": str(out), "nodes": str(nodes), "rounds": str(rounds), "parameters": str(parameters)}
        run = control.start_app(build({name: text.encode() for name, text in _APP.items()}), config)
        wait_for("Flower's own run", lambda: not control.running(run), 60.0 + 60.0 * rounds)
        times = json.loads(out.read_text())
    return [after - before for before, after in pairwise(times)]


@contextmanager
def _bare_nodes(folder: Path, authority: Authority, nodes: int) -> Iterator[superlink.Control]:
    fleet, port, *ports = free_ports(2 + nodes)
    children = [superlink.child(folder / "superlink", folder, authority, fleet, port)]
    children[0].start()
    control = superlink.Control(f"{LOOPBACK}:{port}", authority.certificate_pem)
    try:
        wait_for("Flower's SuperLink", control.ready)
        for k, runtime in enumerate(ports):
            key = ec.generate_private_key(ec.SECP384R1())
            private = folder / f"key-{k}"
            private.touch(0o600)
            private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
            public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
            control.register(public, f"node-{k}")
            command = [
                script("flower-supernode"), "--root-certificates", str(folder / "superlink" / "authority.crt"),
                "--superlink", f"{LOOPBACK}:{fleet}", "--auth-supernode-private-key", str(private),
                "--host", LOOPBACK, "--port", str(runtime),
            ]  # fmt: skip
            home = folder / f"home-{k}"
            home.mkdir()
            environment = {**FLOWER, "FLWR_HOME": str(home)}
            children.append(Child(f"node-{k}", command, folder / f"node-{k}.log", environment))
            children[-1].start()
        yield control
    finally:
        for child in reversed(children):
            child.stop()
        time.sleep(1)  # what they started ends with them
