"""The simulated members of a run: what makes them, their folders and keys, and who of them lies.

Everything a member is stands in its folder and in the run's two files, so that any process can open it: the one that
runs the whole federation, or a worker of Ray that holds nothing of it in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import Context

from causaldao.client.enrolment import WITNESS_FILE
from causaldao.client.node import Lifetime, Node, NodeConfig
from causaldao.client.witnessing import STATE_FILE, create_state
from causaldao.errors import MisuseError
from causaldao.files import write_text
from causaldao.server.membership import MAX_MEMBERS
from causaldao.signing import SigningKey, VerifyKey
from causaldao.simulations.attacks import ATTACKS, Conduct, LyingNode, attack
from causaldao.study import Study

FEDERATION = "simulation"
ORIGIN = "causaldao.simulation"
RUN_FILE = "simulation.json"
STUDY_FILE = "study.json"
PARTITION = "partition-id"  # Flower's name for the number of a simulated node


@dataclass(frozen=True)
class Setting:
    """What makes a simulation: how many members, which of them lie and how, and the seed of it all. ``sites`` are
    their names, where the table has some."""

    members: int = 10
    liars: int = 0
    attack: str = "forge"
    seed: int = 0
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.liars <= self.members:
            raise MisuseError(f"liars = {self.liars} must lie in [0, {self.members}], the number of members.")
        if not 1 <= self.members <= MAX_MEMBERS:
            raise MisuseError(f"members = {self.members} must lie in [1, {MAX_MEMBERS}].")
        if self.seed < 0:
            raise MisuseError(f"seed = {self.seed} must be 0 or more.")
        object.__setattr__(self, "sites", tuple(self.sites))
        if self.sites and len(self.sites) != self.members:
            raise MisuseError(f"members = {self.members}, but {len(self.sites)} sites are named.")
        attack(self.attack)

    def to_json(self) -> dict[str, Any]:
        """As a run's folder holds it: without sites where none are named, as in runs from before there were any."""
        value = asdict(self)
        return {**value, "sites": list(self.sites)} if self.sites else {k: v for k, v in value.items() if k != "sites"}

    @property
    def names(self) -> tuple[str, ...]:
        if self.sites:
            return self.sites
        width = max(2, len(str(self.members)))
        return tuple(f"hospital-{k + 1:0{width}d}" for k in range(self.members))

    @property
    def liar_names(self) -> tuple[str, ...]:
        """Drawn at random by the seed, so that a rule cannot profit from their place or size."""
        chosen = np.random.default_rng([self.seed, 1]).choice(self.members, self.liars, replace=False)
        return tuple(sorted(self.names[k] for k in chosen))


def prepare(
    out: Path,
    study: Study,
    setting: Setting,
    parts: Mapping[str, pd.DataFrame],
    environments: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the folder of each member (rows, key, node.toml) and return them, in the order of names.

    ``environments`` are what members declare, by name; a member lacks what the study says one may lack and its table
    has not.
    Rows and keys that are there already stay: a resumed run has the members that it began with.
    """
    coordinator = coordinator_key(out).public.to_text("coordinator")
    folders = []
    for name in sorted(parts):
        folder = out / "nodes" / name
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "data.parquet").exists():
            temporary = folder / "data.tmp"
            parts[name].to_parquet(temporary)
            os.replace(temporary, folder / "data.parquet")
        config = NodeConfig(
            name=name, federation=FEDERATION, coordinator=coordinator, origin=ORIGIN, data="data.parquet",
            dataset=study.name,
            approved=(study.hash,), insecure_seed=setting.seed if study.study.simulation else None,
            lifetime=Lifetime(epsilon=study.privacy.epsilon, delta=study.privacy.delta),
            **_declared(study, name, parts[name], environments or {}),
        )  # fmt: skip
        write_text(folder / "node.toml", _toml(config))
        _key(folder / "key.pem")
        _key(folder / WITNESS_FILE)
        if not (folder / STATE_FILE).exists():
            create_state(folder, ORIGIN)
        folders.append(folder)
    return folders


def open_node(folder: Path, conduct: Conduct | None = None) -> Node:
    """The node in a folder that `prepare` wrote; with a ``conduct``, one whose owner has another than the honest."""
    node = Node.open(folder)
    return node if conduct is None else LyingNode(node.config, node.key, node.folder, conduct)


def require_attack(study: Study, setting: Setting) -> None:
    """Refuse liars whose attack has nothing to act on in this study: their run would look as if it were borne."""
    if setting.liars and attack(setting.attack).local != study.local:
        fitting = [name for name, one in ATTACKS.items() if one.local == study.local]
        raise MisuseError(
            f"The attack {setting.attack!r} does nothing in a study whose discovery.evidence is "
            f"{study.discovery.evidence!r}; choose one of {', '.join(fitting)}."
        )


def liars(study: Study, setting: Setting) -> dict[str, Conduct]:
    """The conduct of each member that lies."""
    return dict.fromkeys(setting.liar_names, attack(setting.attack).conduct(study)) if setting.liars else {}


@dataclass(frozen=True)
class RunFolder:
    """Opens the node of a message from the run's folder alone, in whatever process the message arrives.

    Nothing is kept between messages: two workers may serve one member in turn, and its folder is what they share.
    """

    out: str

    def __call__(self, context: Context) -> Node:
        run = Path(self.out)
        setting = Setting(**json.loads((run / RUN_FILE).read_text(encoding="utf-8"))["setting"])
        study = Study.from_mapping(json.loads((run / STUDY_FILE).read_text(encoding="utf-8")))
        folder = sorted((run / "nodes").iterdir())[int(context.node_config[PARTITION])]
        return open_node(folder, liars(study, setting).get(folder.name))


def witness_key(folder: Path) -> VerifyKey:
    """The key with which the member of a folder cosigns."""
    return SigningKey.load(folder / WITNESS_FILE).public


def coordinator_key(out: Path) -> SigningKey:
    """The key of the run's coordinator, made at the first call."""
    return _key(out / "coordinator.pem")


def _toml(config: NodeConfig) -> str:
    """A node's own file, so that its commands can be tried on a simulated node; JSON's strings and lists are TOML's."""
    values = {
        name: value for name, value in config.model_dump(mode="json", exclude_unset=True).items() if value is not None
    }
    tables = {name: values.pop(name) for name in ("lifetime", "environments") if name in values}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    for table, entries in tables.items():
        lines += ["", f"[{table}]", *(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in entries.items())]
    return "\n".join(lines)


def _declared(study: Study, name: str, rows: pd.DataFrame, environments: Mapping[str, str]) -> dict[str, Any]:
    lacks = tuple(sorted(set(study.members.may_lack) - set(rows.columns)))
    return {
        **({"environments": {study.name: environments[name]}} if name in environments else {}),
        **({"lacks": lacks} if lacks else {}),
    }


def _key(path: Path) -> SigningKey:
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        SigningKey.generate().save(temporary)
        os.replace(temporary, path)
    return SigningKey.load(path)
