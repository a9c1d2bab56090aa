"""A whole federation on one machine: the same coordinator and nodes as in a deployment, on the inline engine.

A run's folder holds the coordinator's ledger, one folder for each node (rows, key, journal), and what the study
produced. Killed at any point, it is resumed from there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import Context
from flwr.clientapp import ClientApp

from causaldao.client.app import client_app
from causaldao.client.data.checks import require as require_data
from causaldao.client.node import Lifetime, Node, NodeConfig
from causaldao.decisions import require_members
from causaldao.errors import ConfigurationError, MisuseError
from causaldao.ledger.bundle import export, write_policy
from causaldao.ledger.log import Log
from causaldao.members import Member, Roster
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.effects import average_effect
from causaldao.models.graph import CausalGraph
from causaldao.server.app import server_app
from causaldao.server.clock import SimulatedClock
from causaldao.server.coordinator import Coordinator, State
from causaldao.server.mailbox import Mailbox
from causaldao.server.progress import Event
from causaldao.signing import SigningKey, check_name, sha256
from causaldao.simulations.attacks import Conduct, LyingNode, attack
from causaldao.simulations.datasets import split
from causaldao.simulations.engine import NO_FAULTS, Faults, InlineGrid, run
from causaldao.simulations.picture import draw
from causaldao.simulations.report import write as write_report
from causaldao.study import Study

RUN_FILE = "simulation.json"


@dataclass(frozen=True)
class Setting:
    """What makes a simulation: how many members, which of them lie and how, and the seed of it all."""

    members: int = 10
    liars: int = 0
    attack: str = "forge"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.liars <= self.members:
            raise MisuseError(f"liars = {self.liars} must lie in [0, {self.members}], the number of members.")
        if not 1 <= self.members <= 1000:
            raise MisuseError(f"members = {self.members} must lie in [1, 1000].")
        if self.seed < 0:
            raise MisuseError(f"seed = {self.seed} must be 0 or more.")
        attack(self.attack)

    @property
    def names(self) -> tuple[str, ...]:
        width = max(2, len(str(self.members)))
        return tuple(f"hospital-{k + 1:0{width}d}" for k in range(self.members))

    @property
    def liar_names(self) -> tuple[str, ...]:
        """Drawn at random by the seed, so that a rule cannot profit from their place or size."""
        chosen = np.random.default_rng([self.seed, 1]).choice(self.members, self.liars, replace=False)
        return tuple(sorted(self.names[k] for k in chosen))


def simulate(
    study: Study,
    data: pd.DataFrame | Mapping[str, pd.DataFrame],
    out: Path,
    setting: Setting,
    *,
    resume: bool = False,
    progress: Callable[[Event], None] = lambda event: None,
    on_state: Callable[[str], None] = lambda state: None,
    faults: Faults = NO_FAULTS,
    conducts: Mapping[str, Conduct] | None = None,
    with_updates: bool = False,
) -> dict[str, Any]:
    """Run a study over simulated members and write the run's folder; returns the content of ``result.json``.

    ``data`` is one table to be dealt to the members at random, sizes up to 4:1, or one table for each named member.
    Noise is seeded only if the study says ``simulation = true``; else it is the operating system's entropy.
    ``with_updates`` keeps the members' updates in the ledger, so that an audit can check aggregates down to them.

    Raises
    ------
    GuaranteeError
        the study's faulty is more than this many members can bear: names the largest f. Nothing is written.
    DataError
        the table to be dealt does not fit the study's variables. Nothing is written.
    ConfigurationError
        the folder holds a run and ``resume`` was not asked for, or holds another run than the one to resume.
    """
    names = tuple(check_name(name) for name in sorted(data)) if isinstance(data, Mapping) else setting.names
    require_members(study, len(names))
    parts = _dealt(study, data, setting, names)
    _claim(out, _described(study, data, setting), study, resume)
    nodes = _nodes(out, study, setting, parts, conducts or {})
    clock = SimulatedClock()
    key = _key(out / "coordinator.pem")
    roster = Roster(
        "simulation", tuple(Member(node.config.name, node.key.public) for node in nodes), study.consensus.faulty
    )
    apps = {node.config.name: _app(node) for node in nodes}
    grid = InlineGrid(apps, clock, faults)
    with _log(out, key, clock) as log:
        mailbox = Mailbox(grid, roster)
        coordinator = Coordinator(study, roster, key, log, mailbox, clock, progress, on_state, with_updates)
        run(server_app(lambda grid, context: coordinator), grid)
        # The study is closed; what follows only reads.
        result = _result(study, coordinator, setting, names, data, nodes)
        _write(out, result, coordinator, roster)
    return result


def _described(study: Study, data: pd.DataFrame | Mapping[str, pd.DataFrame], setting: Setting) -> dict[str, Any]:
    """What a resumed run must have in common with the one that was started."""
    tables = data if isinstance(data, Mapping) else {"": data}
    rows = {name: pd.util.hash_pandas_object(table, index=False) for name, table in tables.items()}
    digest = sha256(b"".join(name.encode() + b"\0" + rows[name].to_numpy().tobytes() for name in sorted(rows)))
    return {"study": study.hash, "setting": asdict(setting), "data": digest}


def _claim(out: Path, described: Mapping[str, Any], study: Study, resume: bool) -> None:
    """Take the folder for this run, or make sure that it is the one to resume."""
    file = out / RUN_FILE
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out} is a file: --out names the folder of a run.")
    if not resume:
        if out.exists() and any(out.iterdir()):
            raise ConfigurationError(
                f"The folder {out} is not empty: resume its run with --resume, or choose another --out."
            )
        out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(described, indent=1))
        write_text(out / "study.json", json.dumps(study.to_json(), indent=1))
    elif not file.is_file():
        raise ConfigurationError(f"The folder {out} holds no run to resume: leave out --resume to start one.")
    elif json.loads(file.read_text()) != described:
        raise ConfigurationError(
            f"The run in {out} was started with other settings, other data or another study: "
            f"{file.read_text().strip()}. Resume it with the same options, or choose another --out."
        )


def _dealt(
    study: Study, data: pd.DataFrame | Mapping[str, pd.DataFrame], setting: Setting, names: tuple[str, ...]
) -> dict[str, pd.DataFrame]:
    """Each member's rows."""
    if isinstance(data, Mapping):
        return {name: data[name] for name in names}
    require_data(data, study.dictionary)
    parts = split(data, setting.members, generator=np.random.default_rng([setting.seed, 0]))
    return dict(zip(names, parts, strict=True))


def _nodes(
    out: Path, study: Study, setting: Setting, parts: Mapping[str, pd.DataFrame], conducts: Mapping[str, Conduct]
) -> list[Node]:
    coordinator = _key(out / "coordinator.pem").public.to_text("coordinator")
    liar = attack(setting.attack).conduct(study) if setting.liars else Conduct()
    lying = dict.fromkeys(setting.liar_names, liar) if setting.liars else {}
    nodes = []
    for name, rows in parts.items():
        folder = out / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "data.parquet").exists():
            temporary = folder / "data.tmp"
            rows.to_parquet(temporary)
            os.replace(temporary, folder / "data.parquet")
        config = NodeConfig(
            name=name, federation="simulation", coordinator=coordinator, data="data.parquet", dataset=study.name,
            approved=(study.hash,), insecure_seed=setting.seed if study.study.simulation else None,
            lifetime=Lifetime(epsilon=study.privacy.epsilon, delta=study.privacy.delta),
        )  # fmt: skip
        write_text(folder / "node.toml", _toml(config))
        conduct, key = conducts.get(name, lying.get(name)), _key(folder / "key.pem")
        nodes.append(Node(config, key, folder) if conduct is None else LyingNode(config, key, folder, conduct))
    return nodes


def _toml(config: NodeConfig) -> str:
    """A node's own file, so that its commands can be tried on a simulated node; JSON's strings and lists are TOML's."""
    values = {name: value for name, value in config.model_dump(mode="json").items() if value is not None}
    lifetime = values.pop("lifetime")
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join([*lines, "", "[lifetime]", *(f"{name} = {value}" for name, value in lifetime.items())])


def _key(path: Path) -> SigningKey:
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        SigningKey.generate().save(temporary)
        os.replace(temporary, path)
    return SigningKey.load(path)


def _app(node: Node) -> ClientApp:
    def opener(context: Context) -> Node:
        return node

    return client_app(opener)


def _log(out: Path, key: SigningKey, clock: SimulatedClock) -> Log:
    url = f"sqlite:///{out / 'ledger.db'}"
    if (out / "ledger.db").exists():
        return Log.open(url, key, clock.now)
    return Log.create(url, "causaldao.simulation", key, clock.now)


def _result(
    study: Study, coordinator: Coordinator, setting: Setting, names: tuple[str, ...],
    data: pd.DataFrame | Mapping[str, pd.DataFrame], nodes: list[Node],
) -> dict[str, Any]:  # fmt: skip
    state, head = coordinator.state, coordinator.log.head
    whole = pd.concat(list(data.values()), ignore_index=True) if isinstance(data, Mapping) else data
    privacy = study.privacy
    noise = coordinator.noise
    return {
        "study": {
            "name": study.name, "hash": study.hash, "question": study.study.question, "purpose": study.study.purpose,
        },
        "members": [_member(name, state) for name in names],
        "simulation": {
            "seed": setting.seed, "liars": list(setting.liar_names), "noise": noise,
            "attack": setting.attack if setting.liars else None,
        },
        "graph": {"pattern": state.consensus["pattern"], "dag": state.consensus["dag"]},
        "marks": state.consensus["marks"],
        "contested": [mark for mark in state.consensus["marks"] if mark["status"] == "contested"],
        "effects": [{**effect, "pooled": _pooled(study, whole, effect)} for effect in state.effects],
        "privacy": {
            "unit": "one record", "adjacency": "add or remove one record", "epsilon": privacy.epsilon,
            "delta": privacy.delta, "split": privacy.split.model_dump(), "spent": coordinator.spent(),
        },
        "warnings": _warnings(study, state),
        "pool": {key: value for key, value in state.pool.items() if key != "evidence"},
        "ledger": {"size": head.size, "root": head.root, "cosigners": []},
        "rounds": state.rounds,
        "seconds": state.seconds,
    }  # fmt: skip


def _member(name: str, state: State) -> dict[str, Any]:
    pool = state.pool
    known = state.statuses.get(name, {"status": "ok", "reason": ""})
    status, reason = known["status"], known["reason"]
    if status != "excluded" and name in pool["accused"]:  # graver than a reply that was not taken
        status = "accused"
        reason = (
            f"its evidence deviates by {pool['deviations'][name]:.1f} standard deviations; "
            f"{pool['critical']:.1f} is the bound"
        )
    elif status == "ok" and name in pool["excluded"]:
        status, reason = "excluded", "farthest from the others by rank; not accused"
    left_out = sum(name in entry["excluded"] for entry in state.rounds)
    if left_out:
        reason += f"{'; ' if reason else ''}its update was left out in {left_out} of {len(state.rounds)} rounds"
    count = pool["counts"].get(name)
    return {"name": name, "noisy_count": None if count is None else round(count, 1), "status": status, "reason": reason}


def _warnings(study: Study, state: State) -> list[str]:
    """What a reader must know before trusting the result."""
    accused, faulty = state.pool["accused"], study.consensus.faulty
    warnings = []
    if study.aggregation.pool == "mean" or study.aggregation.rule == "mean":
        warnings.append("The plain mean bears no liar at all: one forged table or update can turn the result.")
    if state.pool["faulty"] < faulty:
        warnings.append(
            f"{faulty - state.pool['faulty']} members gave no evidence and are counted among the {faulty} that may be "
            f"faulty: of those who did, {state.pool['faulty']} liars are borne."
        )
    if len(accused) > faulty:
        warnings.append(
            f"{len(accused)} members are accused, more than faulty = {faulty}: the guarantee does not hold. Either "
            "more members lie than was assumed, or their populations differ."
        )
    if state.consensus["stands"]:
        warnings.append(
            "What the votes left had no causal order, so the proposal stands; what was opposed is contested."
        )
    if any(effect["graph_implies_zero"] for effect in state.effects):
        warnings.append(
            "The adopted graph has no causal path for an effect that was asked for. The number is what the evidence "
            "gives; the graph may lack an edge for want of data or because of the noise."
        )
    return warnings


def _pooled(study: Study, frame: pd.DataFrame, effect: Mapping[str, Any]) -> float | None:
    """The pooled, non-private reference: least squares on everybody's true rows, which only a simulation has."""
    if effect["estimate"] is None:
        return None
    names = [effect["treatment"], effect["outcome"], *effect["adjustment"]]
    columns = {}
    for name in names:
        values = frame[name].to_numpy(dtype=np.float64)
        columns[name] = np.log1p(values) if study.variable(name).transform == "log1p" else values
    evidence = Evidence.from_data(pd.DataFrame(columns))
    return average_effect(evidence, effect["treatment"], effect["outcome"], effect["adjustment"]).estimate


def _write(out: Path, result: dict[str, Any], coordinator: Coordinator, roster: Roster) -> None:
    """Everything a run leaves behind; ``result.json`` last, so that its presence means that the rest is there."""
    pattern = CausalGraph.from_json(result["graph"]["pattern"])
    effect = result["effects"][0] if result["effects"] else {"treatment": None, "outcome": None}
    svg = draw(pattern, result["marks"], treatment=effect["treatment"], outcome=effect["outcome"])
    write_text(out / "graph.json", json.dumps(result["graph"], indent=1))
    write_text(out / "graph.svg", svg)
    model = coordinator.model()
    if model is not None:
        model.save(out / "model.safetensors")
    (out / "ledger.bundle").write_bytes(export(coordinator.log))
    keys = {member.name: member.key for member in roster.members}
    write_text(out / "policy", write_policy(coordinator.log.head.origin, coordinator.key, keys))
    write_report(result, svg, out / "report.html")
    write_text(out / "result.json", json.dumps(result, indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    os.replace(temporary, path)
