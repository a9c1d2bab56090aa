"""The rounds of training: from the logged geometry to weights, with the updates to the model; and the losses."""

from __future__ import annotations

from collections.abc import Iterator
from math import isclose, isqrt
from typing import Any

import numpy as np
import torch

from causaldao.aggregation import Aggregate, aggregate, weights_from_gram
from causaldao.aggregation.rules import Rule, by_name, faults_left, require
from causaldao.audit.case import ROUNDING, Audit, Case, ErasedError, Fault, differences
from causaldao.decisions import (
    Learnt,
    decide_round,
    first_model,
    generator_of,
    update_size,
)
from causaldao.ledger.verify import Line
from causaldao.models.graph import CausalGraph
from causaldao.signing import digest

GEOMETRY = 1e-4  # relative: norms and Gram matrix are summed from single-precision products


def aggregates(case: Case, result: Audit) -> None:
    model = None
    for line in list(case.lines("aggregate")):
        case.last = line.index
        if model is None:
            _start(case, line, result)
        updates = _updates(case, line)
        found = None if updates is None else _again(case, line, updates)
        wrongs = [*_aggregate_faults(case, line, model), *_weight_faults(case, line)]
        if updates is not None:
            wrongs += _update_faults(case, line, updates, found)
        result.faults += [Fault(line.index, f"the aggregate of round {line.body['round']} {what}") for what in wrongs]
        model = line.body["result"]
        _result(case, line, updates, result)
    released = case.one("release")
    if released is not None and model is not None and released.body["model"] != model:
        result.faults.append(Fault(released.index, "the released model is not the result of the last aggregate"))


def _result(case: Case, line: Line, updates: torch.Tensor | None, result: Audit) -> None:
    """How far an aggregate could be followed: to its weights, or with the updates to the model that came of it."""
    what, rule = f"aggregate of round {line.body['round']}", _bounds(case, line)[0]
    if updates is None:
        case.learnt = None
        needs = f"{what}: {rule.name} needs the updates (--with-updates)"
        (result.checked if rule.recomputable else result.unchecked).append(what if rule.recomputable else needs)
    elif case.learnt is not None and digest(case.learnt.model) == line.body["result"]:
        result.checked.append(f"{what}, from the updates to the model")
    else:
        case.learnt = None
        what += ": the model that came of it has another digest, by rounding elsewhere or by design"
        result.unchecked.append(what)


def _start(case: Case, line: Line, result: Audit) -> None:
    """The first round starts from the linear solution of the pool.
    A digest has no tolerance, so another is no proof.
    """
    adopted = case.one("adopt")
    case.last = line.index
    if adopted is None:
        return
    dag = CausalGraph.from_json(adopted.body["consensus"]["dag"])
    try:
        first = first_model(case.given, case.answers[0], dag).state()[0]
    except ErasedError as error:
        result.unchecked.append(f"the model that training starts from: {error}")
        return
    if line.body["base"] == digest(first):
        case.learnt = Learnt(first, {})
        result.checked.append("the model that training starts from")
    else:
        result.unchecked.append(
            "the model that training starts from: here it has another digest, "
            "by rounding on another machine or by design"
        )


def _bounds(case: Case, line: Line) -> tuple[Rule, int]:
    """The study's rule, and how many of those who answered may still be faulty."""
    rule, answered = by_name(case.given.aggregation.rule), len(line.body["members"])
    return rule, faults_left(rule, len(case.members), case.given.consensus.faulty, answered)


def _aggregate_faults(case: Case, line: Line, before: str | None) -> Iterator[str]:
    """Whether an aggregate is by the study's rule, over the recorded updates, from the model before."""
    body, (rule, faulty) = line.body, _bounds(case, line)
    if (body["rule"], body["faulty"]) != (rule.name, faulty):
        yield "was not made by the study's rule and fault bound"
    if before is not None and body["base"] != before:
        yield "starts from another model than the round before ended with"
    said = case.words("update", body["round"])
    case.last = line.index
    require(rule, len(said), faulty)
    if sorted(said) != list(body["members"]):
        yield f"is over {list(body['members'])}, but the recorded updates are of {sorted(said)}"
    for member, (_, update) in sorted(said.items()):
        if update.body.get("base") != body["base"]:
            yield f"uses an update that {member} made against another model"
    norms = [said[member][0].body["norm"] for member in sorted(said)]
    if len(body["norms"]) != len(norms) or not np.allclose(body["norms"], norms, rtol=GEOMETRY, atol=0):
        yield "has other norms than its updates' entries"


def _weight_faults(case: Case, line: Line) -> Iterator[str]:
    """Whether who is left out follows from the weights, and they from the geometry."""
    body, (rule, faulty) = line.body, _bounds(case, line)
    if rule.weigh is None and (body["weights"] is not None or list(body["excluded"])):
        yield f"has weights or exclusions, but {rule.name} works on coordinates and has none"
    if rule.weigh is not None:
        zero = [name for name, weight in zip(body["members"], body["weights"], strict=True) if weight == 0]
        if zero != list(body["excluded"]):
            yield f"excludes {list(body['excluded'])}, its weights exclude {zero}"
    if rule.recomputable:
        gram, norms = _gram(case, line, rule), torch.tensor(body["norms"], dtype=torch.float64)
        if not _fits(gram, norms):
            yield "has a Gram matrix and norms that are not of the same updates"
        generator = generator_of(case.given, body["round"], body["base"])
        expected = weights_from_gram(gram, norms, rule, faulty, generator=generator)
        if differences(body["weights"], expected.tolist()):
            yield "has weights that do not follow from its Gram matrix"


def _again(case: Case, line: Line, updates: torch.Tensor) -> Aggregate | None:
    """The round run again on the updates, which takes ``case.learnt`` one round further; None where the rule goes on
    from an aggregate before that could not be followed."""
    number, (rule, faulty) = line.body["round"], _bounds(case, line)
    if case.learnt is not None:
        found, case.learnt = decide_round(case.given, number, case.learnt, updates, faulty)
        return found
    if "state" in rule.needs:
        return None
    return aggregate(updates, rule, faulty, generator=generator_of(case.given, number, line.body["base"]))


def _update_faults(case: Case, line: Line, updates: torch.Tensor, found: Aggregate | None) -> Iterator[str]:
    """Whether norms, geometry and weights are those of the updates."""
    body, rule = line.body, _bounds(case, line)[0]
    norms = updates.double().norm(dim=1).tolist()
    for member, recorded, norm in zip(body["members"], body["norms"], norms, strict=True):
        if not isclose(recorded, norm, rel_tol=GEOMETRY):
            yield f"has an update of {member} under another norm than its own"
    if found is None:
        return
    gram = _gram(case, line, rule) if body.get("gram", body) is not None else None
    if not _same_geometry(gram, found.gram):
        yield "has a Gram matrix that is not that of the recorded updates"
    weights = None if found.weights is None else found.weights.tolist()
    if not rule.recomputable and differences(body["weights"], weights):
        yield "has weights that do not follow from the recorded updates"


def _gram(case: Case, line: Line, rule: Rule) -> torch.Tensor:
    """The Gram matrix of an aggregate: in its body, or, if it is large, in the payload that the body names as
    ``gram_payload``, little-endian float64 row by row. Its points are the n rows and the origin, and for a rule with a
    state that of the round before.
    """
    n = len(line.body["members"])
    if line.body.get("gram") is not None:
        gram = torch.tensor(line.body["gram"], dtype=torch.float64)
    else:
        if line.body["gram_payload"] not in line.payloads:
            raise ValueError("its Gram matrix is not one of its payloads")
        values = np.frombuffer(case.payload(line.body["gram_payload"]), dtype="<f8").astype(np.float64)
        side = isqrt(len(values))
        gram = torch.from_numpy(values.reshape(side, -1))
    sizes = (n + 1, n + 2) if "state" in rule.needs else (n + 1,)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or len(gram) not in sizes:
        expected = " or ".join(f"({size}, {size})" for size in sizes)
        raise ValueError(f"its Gram matrix has the shape {tuple(gram.shape)}, of {n} members it is {expected}")
    if not bool(torch.isfinite(gram).all()) or not torch.equal(gram, gram.T) or bool((gram.diagonal() < 0).any()):
        raise ValueError("its Gram matrix is none: it is not finite and symmetric with a diagonal of 0 or more")
    return gram


def _fits(gram: torch.Tensor, norms: torch.Tensor) -> bool:
    """Whether the rows' distances from the origin are their norms."""
    n, size = len(norms), gram.diagonal()
    squared = size[:n] + size[n] - 2 * gram[n, :n]
    return bool(((squared - norms.square()).abs() <= GEOMETRY * (size[:n] + size[n] + norms.square())).all())


def _same_geometry(recorded: torch.Tensor | None, found: torch.Tensor | None) -> bool:
    """Whether two Gram matrices agree, entry by entry in units of the two points' lengths, or there is none."""
    if recorded is None or found is None or recorded.shape != found.shape:
        return recorded is found
    length = found.diagonal().clamp_min(0).sqrt()
    return bool(((recorded - found).abs() <= GEOMETRY * length[:, None] * length[None] + ROUNDING).all())


def losses(case: Case, result: Audit) -> None:
    """Each round's loss is the median of what the members released on the round's own model, within [0, L]."""
    models = {line.body["round"]: line.body["result"] for line in case.lines("aggregate")}
    for state in list(case.lines("study.training")):
        words = case.words("evaluation", state.body["round"])
        case.last = state.index
        values = [
            float(np.frombuffer(case.payload(line.body["manifest"][0]["sha256"]), dtype="<f8")[0])
            for line, _ in words.values()
        ]
        expected = float(np.clip(np.median(values), 0.0, case.given.privacy.loss_bound)) if values else None
        if differences(state.body["loss"], expected):
            what = f"the loss of round {state.body['round']} is {state.body['loss']!r}, the members' give {expected!r}"
            result.faults.append(Fault(state.index, what))
        for line, said in words.values():
            if said.body.get("base") != models.get(state.body["round"]):
                result.faults.append(Fault(line.index, f"{said.member} evaluated another model than the round's"))
        result.checked.append(f"loss of round {state.body['round']}")


def _updates(case: Case, line: Line) -> torch.Tensor | None:
    """The (n, k) updates of a round in the order of their members' names, if the bundle carries them."""
    rows, here = dict[str, Any](), case.last
    for update in list(case.lines("update")):
        if update.body["round"] == line.body["round"]:
            (entry,) = update.body["manifest"]
            data = case.report.payloads.get(entry["sha256"])
            rows[update.body["member"]] = None if data is None else np.frombuffer(data, dtype="<f4")
    case.last = here
    if not rows or any(row is None or row.shape != (update_size(case.given),) for row in rows.values()):
        return None
    return torch.from_numpy(np.stack([rows[name] for name in sorted(rows)]).copy())


CHECKS = (aggregates, losses)
