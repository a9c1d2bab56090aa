"""What a closed study leaves behind: ``result.json``, graph, model, ledger, policy and report, in one run folder.

A deployment and a simulation write the same files with the same keys. Only a simulation knows who lied, and what
everybody's rows in one place would have given: elsewhere ``simulation`` is null, and so is each effect's ``pooled``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from causaldao.conditions import observing
from causaldao.decisions import supporters
from causaldao.files import write_text
from causaldao.ledger.bundle import export
from causaldao.ledger.log import Log
from causaldao.ledger.note import with_cosignatures
from causaldao.messages import names_of
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.pictures.page import page
from causaldao.pictures.svg import draw
from causaldao.server import membership
from causaldao.server.coordinator import Coordinator
from causaldao.server.example import example
from causaldao.server.recording import State
from causaldao.server.report import write as write_report
from causaldao.study import Study

_NO_POOL: Mapping[str, Any] = {"accused": (), "excluded": (), "counts": {}}  # of a study of local ballots
_MOST_DRAWN = 20  # marks of local mode that did not enter
_ARROW = (
    "Its direction comes from comparing environments, which no member's own evidence can: the votes are on the link."
)
_CHECKPOINTS = 50  # the last ones that are listed
Reference = Callable[[Mapping[str, Any]], float | None]
"""The pooled, non-private answer to one effect of the result, where somebody holds all rows."""


def result(
    study: Study,
    coordinator: Coordinator,
    names: Sequence[str],
    *,
    simulation: Mapping[str, Any] | None = None,
    pooled: Reference | None = None,
) -> dict[str, Any]:
    """The content of ``result.json`` for a study that its coordinator has closed; it only reads.

    ``names`` are the members in the order they are listed. ``simulation`` (seed, liars, attack) and ``pooled`` are a
    simulation's alone: without them ``simulation`` is None, and ``pooled`` in the effects.
    """
    state, model = coordinator.state, coordinator.model()
    privacy, noise = study.privacy, coordinator.noise
    graphs = coordinator.graphs() if study.local else {}
    abstained = {name: ballot.abstains for name, ballot in graphs.items() if ballot.abstains}
    return {
        "study": {
            "name": study.name, "hash": study.hash, "question": study.study.question, "purpose": study.study.purpose,
            **({"evidence": "local"} if study.local else {}),
        },
        "members": [_member(name, state, abstained) for name in names],
        **({"environments": _environments(study, state)} if study.environments else {}),
        "simulation": None if simulation is None else {**simulation, "noise": noise},
        "graph": {key: state.consensus[key] for key in ("pattern", "dag", "arrows") if key in state.consensus},
        "marks": state.consensus["marks"],
        "contested": [mark for mark in state.consensus["marks"] if mark["status"] == "contested"],
        "effects": [{**effect, "pooled": pooled(effect) if pooled else None} for effect in state.effects],
        "example": None if model is None else example(model, state.effects),
        "privacy": {
            "unit": "one record", "adjacency": "add or remove one record", "epsilon": privacy.epsilon,
            "delta": privacy.delta, "split": study.to_json()["privacy"]["split"], "noise": noise,
            "spent": coordinator.spent(),
        },
        "warnings": _local_warnings(study, state, graphs, abstained) if study.local else _warnings(study, state),
        "pool": _without_evidence(state.pool) or None,
        "ledger": _ledger(coordinator.log),
        "rounds": state.rounds,
        "seconds": state.seconds,
    }  # fmt: skip


def write(out: Path, result: Mapping[str, Any], coordinator: Coordinator) -> None:
    """Everything a run leaves behind; ``result.json`` last, so that its presence means that the rest is there.

    ``out`` is a folder that exists; a file that is there already is replaced.
    """
    log = coordinator.log
    pattern = CausalGraph.from_json(result["graph"]["pattern"])
    effect = result["effects"][0] if result["effects"] else {"treatment": None, "outcome": None}
    treatment, outcome = effect["treatment"], effect["outcome"]
    shown = drawn(result["marks"])
    svg = draw(pattern, shown, treatment=treatment, outcome=outcome)
    write_text(out / "graph.json", json.dumps(result["graph"], indent=1))
    write_text(out / "graph.svg", svg)
    asked = result["study"]
    text = page(
        pattern, title=f"{asked['name']}: the adopted graph", subtitle=asked["question"], marks=shown,
        votes=coordinator.votes(), treatment=treatment, outcome=outcome, report=True,
        directed={(min(pair), max(pair)): _ARROW for pair in result["graph"].get("arrows", ())},
    )  # fmt: skip
    write_text(out / "graph.html", text)
    model = coordinator.model()
    if model is not None:
        model.save(out / "model.safetensors")
    (out / "ledger.bundle").write_bytes(export(log, result["ledger"]["size"]))
    write_text(out / "policy", membership.policy(log, coordinator.key.public))
    write_report(result, svg, out / "report.html", explore=True)
    write_text(out / "result.json", json.dumps(result, indent=1, allow_nan=False))


def drawn(marks: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The marks to be drawn: all of shared mode; of local mode, where any member's slip is one, those that entered and,
    of those that half of the supporters it takes have, the most supported `_MOST_DRAWN`. Liars may invent as many as
    they like, and a picture of hundreds takes minutes to lay out. The report lists all."""
    missed = [mark for mark in marks if "needed" in mark and mark["status"] != "adopted"]
    ranked = sorted(missed, key=lambda mark: (-mark["support"], mark["nodes"]))
    left = [mark for k, mark in enumerate(ranked) if k >= _MOST_DRAWN or 2 * mark["support"] < mark["needed"]]
    hidden = {tuple(mark["nodes"]) for mark in left}
    return [mark for mark in marks if tuple(mark["nodes"]) not in hidden]


def _ledger(log: Log) -> dict[str, Any]:
    """The newest checkpoint that a quorum cosigned, and who cosigned which before; the head, if there is none."""
    epoch, checkpoints = membership.epoch(log), log.checkpoints()
    agreed = [size for size, names in checkpoints.items() if len(epoch.members.keys() & set(names)) >= epoch.quorum]
    head = log.head_at(max(agreed, default=log.head.size))
    return {
        "size": head.size, "root": head.root, "cosigners": list(checkpoints.get(head.size, ())),
        "quorum": epoch.quorum, "checkpoint": with_cosignatures(head.note, log.cosignatures(head.size).values()),
        "checkpoints": [
            {"size": size, "cosigners": len(names)} for size, names in sorted(checkpoints.items())[-_CHECKPOINTS:]
        ],
    }  # fmt: skip


def _without_evidence(pool: Mapping[str, Any]) -> dict[str, Any]:
    """A pool, and those within environments, without the moments, which stand on the ledger."""
    found = {key: value for key, value in pool.items() if key != "evidence"}
    if "environments" in found:
        found["environments"] = {name: _without_evidence(one) for name, one in found["environments"].items()}
    return found


def _environments(study: Study, state: State) -> list[dict[str, Any]]:
    """What members declared, by environment of the study; ``status`` is compared, set aside, silent (they gave no
    evidence) or empty, and ``effects`` says whether effects are read from it."""
    pools, aside = state.pool["environments"], state.pool["aside"]
    read = observing(study, pools)
    here = {name: state.declared[name]["environment"] for name in state.present}
    return [
        {
            "name": one.name, "targets": list(one.targets),
            "members": [name for name, environment in here.items() if environment == one.name],
            "status": "compared" if one.name in pools else "set aside" if one.name in aside
            else "silent" if one.name in here.values() else "empty",
            "effects": bool(state.effects) and one.name in read,
        }
        for one in study.environments
    ]  # fmt: skip


def _set_aside(environment: str, aside: Mapping[str, Any]) -> str:
    number = len(aside["members"])
    return (
        f"not compared: {number} member{'s' if number != 1 else ''} of environment {environment!r}, "
        f"the rule needs {aside['needs']}"
    )


def _member(name: str, state: State, abstained: Mapping[str, str]) -> dict[str, Any]:
    pool, said = state.pool or _NO_POOL, state.declared.get(name, {})
    environment = said.get("environment", "")
    known = state.statuses.get(name, {"status": "ok", "reason": ""})
    status, reason = known["status"], known["reason"]
    if status != "excluded" and name in pool["accused"]:  # graver than a reply that was not taken
        status = "accused"
        reason = (
            f"its evidence deviates by {pool['deviations'][name]:.1f} standard deviations; "
            f"{pool.get('environments', {}).get(environment, pool)['critical']:.1f} is the bound"
        )
    elif status != "excluded" and (sums := [e for e in state.effects if name in e.get("accused", ())]):
        status = "accused"
        reason = "; ".join(
            f"its sums for {effect['treatment']} on {effect['outcome']} deviate by {effect['deviations'][name]:.1f} "
            f"standard deviations; {effect['critical']:.1f} is the bound"
            for effect in sums
        )
    elif status == "ok" and name in pool.get("aside", {}).get(environment, {"members": ()})["members"]:
        status, reason = "excluded", _set_aside(environment, pool["aside"][environment])
    elif status == "ok" and name in pool["excluded"]:
        status, reason = "excluded", "farthest from the others by rank; not accused"
    for what, key in (("left out", "excluded"), ("weighed down", "down_weighted")):
        times = sum(name in entry[key] for entry in state.rounds)
        if times:
            reason += f"{'; ' if reason else ''}its update was {what} in {times} of {len(state.rounds)} rounds"
    if name in abstained:
        reason += f"{'; ' if reason else ''}its ballot abstains: its noisy moments bore no graph ({abstained[name]})"
    count = pool["counts"].get(name)
    return {
        "name": name, "noisy_count": None if count is None else round(count, 1), "status": status, "reason": reason,
        **({"environment": environment} if environment else {}),
        **({"lacks": said["lacks"]} if "lacks" in said else {}),
    }  # fmt: skip


def _local_warnings(study: Study, state: State, graphs: Collection[str], abstained: Mapping[str, str]) -> list[str]:
    """What a reader must know of a graph that rests on ballots alone, those of the members ``graphs``."""
    voters = set(graphs) - set(abstained)
    present, faulty = len(state.present), study.consensus.faulty
    enough = supporters(study, present)
    warnings = [
        f"Members voted straight from their own rows. Nobody can recompute a ballot, and a false one is not found; a "
        f"link stands because {enough} or more of {present} members say that they see it."
        + (f" {faulty} liars alone enter none." if faulty else "")
    ]
    if len(voters) - faulty < enough:
        warnings.append(
            f"{len(voters)} ballots say something, of which {faulty} may lie, and {enough} must support a link: liars "
            "could keep out every link, so that one is missing tells nothing."
        )
    if abstained:
        warnings.append(
            f"Of {len(graphs)} ballots {len(abstained)} say nothing, as noisy moments bore no graph: "
            f"{names_of(sorted(abstained))}."
        )
    if unlisted := state.consensus.get("unlisted"):
        warnings.append(f"{unlisted} further marks, that the fewest members have, are in no list here: none entered.")
    return warnings


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
    for environment, aside in sorted(state.pool.get("aside", {}).items()):
        warnings.append(
            f"{_set_aside(environment, aside)}. Set aside, and not accused: {', '.join(aside['members'])}. Their "
            "evidence is in no pool and speaks in their own ballots only."
        )
    read = [one for one in _environments(study, state) if one["effects"]] if study.environments else []
    if read:
        pools = [state.pool["environments"][one["name"]] for one in read]
        count, kept = sum(pool["evidence"]["moments"][0][0] for pool in pools), sum(len(pool["kept"]) for pool in pools)
        warnings.append(
            f"Effects are read where nothing was acted on: in {' and '.join(repr(one['name']) for one in read)}, from "
            f"evidence worth {count:.0f} records of {kept} of {len(state.present)} members."
            + (" Of environments read together no bound on liars is stated." if len(read) > 1 else "")
        )
    if len(accused) > faulty:
        warnings.append(
            f"{len(accused)} members are accused, more than faulty = {faulty}: the guarantee does not hold. Either "
            "more members lie than was assumed, or their populations differ."
        )
    if unrestored := state.proposal.get("unrestored"):
        warnings.append(
            f"What the clip took was not put back: the mean of {unrestored!r} is too far from the centre of its bounds."
        )
    if study.discovery.restore and not unrestored:
        warnings.append(
            "What the clip took was put back, which holds for records that are elliptical around the centre of their "
            "bounds; how far liars can move an effect is not known."
        )
    if study.encoding.blocks:
        warnings.append(
            f"The evidence is of features ({study.discovery.features}). A ballot speaks of the direction in which the "
            "pool sees most of a dependence."
        )
    if "discount" in state.pool:
        warnings += _lack_warnings(state)
    if state.consensus["stands"]:
        warnings.append(
            "What the votes left had no causal order, so the proposal stands; what was opposed is contested."
        )
    for effect in state.effects:
        asked = f"{effect['treatment']} on {effect['outcome']}"
        if len(effect.get("accused", ())) > effect.get("faulty", 0):
            warnings.append(
                f"For {asked}, {len(effect['accused'])} members' sums deviate, more than may be faulty: no bound is "
                "given, and either more members lie than was assumed, or their populations differ."
            )
        warnings += [f"{asked}: {note}" for note in effect.get("notes", ())]
    if any(effect["graph_implies_zero"] for effect in state.effects):
        warnings.append(
            "The adopted graph has no causal path for an effect that was asked for. The number is what the evidence "
            "gives; the graph may lack an edge for want of data or because of the noise."
        )
    return warnings


def _lack_warnings(state: State) -> list[str]:
    """What it costs that members lack variables."""
    pool = state.pool
    lacking = sorted({name for names in pool["lacks"].values() for name in names})
    warnings = [
        f"Not every member has {', '.join(lacking)}. For the graph the pool counts as {1 / pool['discount']:.0%} of "
        "the records that it would be worth if they had: weak edges may be missing. Each effect is read from those who "
        "have all its variables."
    ]
    if len(pool["used"]) < len(pool["kept"]):
        warnings.append(
            f"The graph is of the records of {', '.join(pool['used'])}, who lack nothing: alone they are worth more "
            "than moments of all members together."
        )
    least = float(torch.linalg.eigvalsh(Evidence.from_json(pool["evidence"]).covariance())[0])
    if least <= 0:
        warnings.append(
            f"Moments of different members together are no covariance here (least eigenvalue {least:.2g}): the search "
            "passed over parents and tests under which no variance is left, and the graph may be wrong for it."
        )
    return warnings
