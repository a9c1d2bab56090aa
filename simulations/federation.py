"""A whole federation on one machine: the same coordinator and nodes as in a deployment, inline or on Ray.

A run's folder holds the coordinator's ledger, one folder for each node (rows, key, journal), and what the study
produced. Killed at any point, it is resumed from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from causaldao.client.app import client_app
from causaldao.client.data.checks import require as require_data
from causaldao.client.node import Node
from causaldao.conditions import observing
from causaldao.decisions import require_members, seed_of
from causaldao.errors import ConfigurationError, DataError, MisuseError
from causaldao.files import write_text
from causaldao.ledger.log import Log
from causaldao.members import Member, Roster
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.effects import average_effect
from causaldao.models.estimators import aipw
from causaldao.server.app import server_app
from causaldao.server.clock import Clock, SimulatedClock
from causaldao.server.coordinator import Coordinator
from causaldao.server.mailbox import Mailbox
from causaldao.server.progress import Event
from causaldao.server.results import result as closed
from causaldao.server.results import write
from causaldao.signing import SigningKey, check_name, sha256
from causaldao.simulations import ray_engine
from causaldao.simulations.attacks import Conduct
from causaldao.simulations.datasets import split
from causaldao.simulations.engine import NO_FAULTS, Faults, InlineGrid, run
from causaldao.simulations.members import (
    FEDERATION,
    ORIGIN,
    RUN_FILE,
    STUDY_FILE,
    Setting,
    coordinator_key,
    liars,
    open_node,
    prepare,
    require_attack,
    witness_key,
)
from causaldao.study import Study

ENGINES = ("inline", "ray")
_FOLDS = 5
__all__ = ["ENGINES", "Setting", "simulate"]


def simulate(
    study: Study,
    data: pd.DataFrame | Mapping[str, pd.DataFrame],
    out: Path,
    setting: Setting,
    *,
    engine: str = "inline",
    resume: bool = False,
    progress: Callable[[Event], None] = lambda event: None,
    on_state: Callable[[str], None] = lambda state: None,
    faults: Faults = NO_FAULTS,
    conducts: Mapping[str, Conduct] | None = None,
    with_updates: bool = False,
    environments: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run a study over simulated members and write the run's folder; returns the content of ``result.json``.

    ``data`` is one table to be dealt to the members at random, sizes up to 4:1, or one table for each named member.
    Noise is seeded only if the study says ``simulation = true``; else it is the operating system's entropy.
    On the engine "ray" the members run in processes of their own and time is real; a run that was killed on one engine
    may be resumed on the other. ``faults`` and ``conducts`` are live objects, for the engine "inline" only.
    ``with_updates`` keeps the members' updates in the ledger, so that an audit can check aggregates down to them.
    ``environments`` are what the members of a study that has some declare, by name.

    Raises
    ------
    GuaranteeError
        the study's faulty is more than this many members can bear: names the largest f. Nothing is written.
    DataError
        the table to be dealt does not fit the study's variables. Nothing is written.
    ConfigurationError
        the folder holds a run and ``resume`` was not asked for, or holds another run than the one to resume; or Ray
        is asked for and not installed; or a member of a study with environments has none of them.
    MisuseError
        there is no such engine, or it cannot do what is asked; or the liars' attack is none on such a study.
    """
    _require_engine(engine, faults, conducts)
    names = tuple(check_name(name) for name in sorted(data)) if isinstance(data, Mapping) else setting.names
    require_members(study, len(names))
    _require_environments(study, names, environments or {})
    require_attack(study, setting)
    parts = _dealt(study, data, setting, names)
    _claim(out, _described(study, data, setting, environments), study, resume)
    folders, key = prepare(out, study, setting, parts, environments), coordinator_key(out)
    lying = {**liars(study, setting), **(conducts or {})}
    nodes = {folder.name: open_node(folder, lying.get(folder.name)) for folder in folders}
    members = tuple(Member(folder.name, nodes[folder.name].key.public, witness_key(folder)) for folder in folders)
    roster = Roster(FEDERATION, members, study.consensus.faulty)
    clock = ray_engine.EngineClock() if engine == "ray" else SimulatedClock()
    conducted: list[Coordinator] = []

    def conduct(grid: Grid, context: Context) -> None:
        coordinator = Coordinator(
            study, roster, key, log, Mailbox(grid, roster), clock, progress, on_state, with_updates
        )
        coordinator.run()
        conducted.append(coordinator)

    with _log(out, key, clock) as log:
        if isinstance(clock, ray_engine.EngineClock):
            ray_engine.run(server_app(conduct), out, len(nodes), clock)
        else:
            run(server_app(conduct), InlineGrid({name: _app(node) for name, node in nodes.items()}, clock, faults))
        (coordinator,) = conducted
        # The study is closed; what follows only reads.
        whole = data if isinstance(data, Mapping) else {"": data}
        compared = coordinator.state.pool.get("environments", {})
        told = partial(_pooled, study, _alike(study, whole, environments or {}, observing(study, compared)))
        result = closed(study, coordinator, names, simulation=_truth(setting), pooled=told)
        write(out, result, coordinator)
    return result


def _require_engine(engine: str, faults: Faults, conducts: Mapping[str, Conduct] | None) -> None:
    if engine not in ENGINES:
        raise MisuseError(f"There is no engine {engine!r}; choose one of {', '.join(ENGINES)}.")
    if engine == "ray":
        ray_engine.require_ray()
        if conducts or faults is not NO_FAULTS:
            raise MisuseError("The engine 'ray' takes no faults and no conducts: its nodes live in other processes.")


def _require_environments(study: Study, names: Sequence[str], environments: Mapping[str, str]) -> None:
    known = [one.name for one in study.environments]
    if environments and not known:
        raise MisuseError(f"Study {study.name!r} has no environments to declare.")
    odd = sorted(name for name in names if known and environments.get(name) not in known)
    if odd or set(environments) - set(names):
        told = ", ".join(f"{name} {environments.get(name, 'none')!r}" for name in odd) or "some are of no member"
        raise ConfigurationError(
            f"Each member of study {study.name!r} declares one of its environments, {', '.join(known)}; {told}. On the "
            "command line: --site-column and --environment-column."
        )


def _alike(
    study: Study, parts: Mapping[str, pd.DataFrame], environments: Mapping[str, str], read: Sequence[str]
) -> list[pd.DataFrame]:
    """Everybody's rows, as tables within which they are alike: of a study with environments, a table for each of those
    where effects are ``read``."""
    if not study.environments:
        return [pd.concat(list(parts.values()), ignore_index=True)]
    found = [[part for name, part in parts.items() if environments[name] == one] for one in read]
    return [pd.concat(some, ignore_index=True) for some in found]


def _truth(setting: Setting) -> dict[str, Any]:
    """What only a simulation knows of itself."""
    return {
        "seed": setting.seed, "liars": list(setting.liar_names), "attack": setting.attack if setting.liars else None,
    }  # fmt: skip


def _described(
    study: Study,
    data: pd.DataFrame | Mapping[str, pd.DataFrame],
    setting: Setting,
    environments: Mapping[str, str] | None,
) -> dict[str, Any]:
    """What a resumed run must have in common with the one that was started."""
    tables = data if isinstance(data, Mapping) else {"": data}
    rows = {name: pd.util.hash_pandas_object(table, index=False) for name, table in tables.items()}
    digest = sha256(b"".join(name.encode() + b"\0" + rows[name].to_numpy().tobytes() for name in sorted(rows)))
    declared = {"environments": dict(environments)} if environments else {}
    return {"study": study.hash, "setting": setting.to_json(), "data": digest, **declared}


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
        write_text(out / STUDY_FILE, json.dumps(study.to_json(), indent=1))
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
    require_data(data, study.encoding)
    parts = split(data, setting.members, generator=np.random.default_rng([setting.seed, 0]))
    return dict(zip(names, parts, strict=True))


def _app(node: Node) -> ClientApp:
    def opener(context: Context) -> Node:
        return node

    return client_app(opener)


def _log(out: Path, key: SigningKey, clock: Clock) -> Log:
    url = f"sqlite:///{out / 'ledger.db'}"
    if (out / "ledger.db").exists():
        return Log.open(url, key, clock.now)
    return Log.create(url, ORIGIN, key, clock.now)


def _pooled(study: Study, frames: Sequence[pd.DataFrame], effect: Mapping[str, Any]) -> float | None:
    """The pooled, non-private reference by the effect's method, on everybody's true rows, which only a simulation has:
    least squares, of several tables about the mean of each, or cross-fitted AIPW."""
    if effect["estimate"] is None or not frames:
        return None
    asked = [effect["treatment"], effect["outcome"], *effect["adjustment"]]
    frames = [frame.reindex(columns=asked).dropna() for frame in frames]  # the rows that have all of it
    frame = pd.concat(frames, ignore_index=True)
    if frame.empty:
        return None
    columns: dict[str, Any] = {}
    adjustment: list[str] = []
    for name in asked:
        variable = study.variable(name)
        if variable.kind == "categorical":
            flags = {f"{name} = {level}": frame[name].astype(str) == level for level in variable.levels[1:]}
            columns |= {flag: true.to_numpy(dtype=np.float64) for flag, true in flags.items() if true.any()}
            adjustment += [flag for flag, true in flags.items() if true.any()]
            continue
        values = frame[name].to_numpy(dtype=np.float64)
        columns[name] = np.log1p(values) if variable.transform == "log1p" else values
        adjustment += [name] if name in effect["adjustment"] else []
    if effect.get("method") == "aipw":
        t, y, *z = columns.values()
        generator = np.random.default_rng(seed_of(study))
        zs = np.stack(z, axis=1) if z else np.zeros((len(t), 0))
        try:
            untreated, treated = aipw(t, y, zs, "linear", effect["estimand"] == "att", _FOLDS, generator).values
        except DataError:  # it is beside the answer, and the study is over
            return None
        return float(treated - untreated)
    if len(frames) > 1:
        table = np.repeat(range(len(frames)), [len(one) for one in frames])
        columns = {
            name: values - pd.Series(values).groupby(table).transform("mean") for name, values in columns.items()
        }
    evidence = Evidence.from_data(pd.DataFrame(columns))
    return average_effect(evidence, effect["treatment"], effect["outcome"], adjustment).estimate
