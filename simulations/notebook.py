"""A federation in ten lines of a notebook, on DataFrames.

>>> dao = CausalDAO({"dose": (0, 10), "pressure": (80, 200)}, epsilon=4,
...                 effects=[("dose", "pressure")])  # doctest: +SKIP
>>> for name, frame in frames.items():  # doctest: +SKIP
...     dao.register(FederatedClient(name, frame))
>>> result = dao.run()  # doctest: +SKIP
>>> result.graph, result.effects  # doctest: +SKIP

The same coordinator, nodes, evidence, ballots and ledger as everywhere else, in this process. Noise is the operating
system's entropy unless a seed is given; the result says which.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from causaldao.errors import IdentityError, MisuseError
from causaldao.models.graph import CausalGraph
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.models.rules import CausalRuleSet
from causaldao.models.scm import NeuralSCM
from causaldao.server.progress import Event
from causaldao.signing import check_name
from causaldao.simulations.federation import Setting, simulate
from causaldao.study import Study

Spec = tuple[float, float] | Mapping[str, Any]


@dataclass(frozen=True)
class FederatedClient:
    """An institution: a name and its rows, one record each. The rows go to this client's own node and no further."""

    name: str
    data: pd.DataFrame

    def __post_init__(self) -> None:
        check_name(self.name)


@dataclass(frozen=True)
class Result:
    """What a study found. ``details`` is the content of ``result.json``; ``folder`` holds ledger, model and report."""

    graph: CausalGraph
    dag: CausalGraph
    effects: list[dict[str, Any]]
    model: NeuralSCM | None
    details: dict[str, Any]
    folder: Path

    @property
    def accused(self) -> list[str]:
        """The members whose evidence fails the test against the pool."""
        return list(self.details["pool"]["accused"])

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"


class CausalDAO:
    """The consensus of a federation: members register, then one study is run.

    Parameters
    ----------
    variables : public bounds of each variable, ``(low, high)``, or a mapping with the keys of a study's variable.
    consensus_threshold : τ; a mark of the graph is struck if more than max(f, (1 - τ)·n) members oppose it.
    model_aggregation : rule of the updates, such as "arc+caf", "nnm+trimmed-mean" or "mean"; with "mean" the
        evidence is pooled without defence too, else by multi-Krum.
    faulty : the number f of members that may lie; multi-Krum needs at least 2f + 3 members.
    epsilon, delta : the record-level privacy that each member spends on the whole study.
    effects : (treatment, outcome), where the adopted graph says what to adjust for, or (treatment, outcome, adjustment)
        with the adjustment given: [] for a treatment that was drawn by lot; or a mapping with the keys of a study's
        effect. If one has ``"method": "aipw"``, such effects share half of what training and evaluation leave.
    knowledge : `Knowledge`, or a `CausalRuleSet` whose rules are required edges.
    rounds : of private training; 0 votes on the graph only.
    """

    def __init__(
        self,
        variables: Mapping[str, Spec],
        *,
        consensus_threshold: float = 0.6,
        model_aggregation: str = "arc+caf",
        faulty: int = 0,
        epsilon: float = 3.0,
        delta: float = 1e-6,
        effects: Sequence[tuple[str, str] | tuple[str, str, Sequence[str]] | Mapping[str, Any]] = (),
        knowledge: Knowledge | CausalRuleSet = NONE,
        rounds: int = 3,
        question: str = "What causes what?",
    ) -> None:
        known = knowledge.to_knowledge() if isinstance(knowledge, CausalRuleSet) else knowledge
        asked = [_effect(effect) for effect in effects]
        split = _split(rounds, sums=any(effect.get("method") == "aipw" for effect in asked))
        self._document: dict[str, Any] = {
            "study": {"name": "notebook", "question": question, "purpose": "exploration", "retention": "this session"},
            "variables": [_variable(name, spec, known) for name, spec in variables.items()],
            "knowledge": {"required": sorted(known.required), "forbidden": sorted(known.forbidden)},
            "consensus": {"threshold": consensus_threshold, "faulty": faulty},
            "training": {"rounds": rounds},
            "aggregation": {"rule": model_aggregation, "pool": "mean" if model_aggregation == "mean" else "multi-krum"},
            "privacy": {"epsilon": epsilon, "delta": delta, **({"split": split} if split else {})},
            "effects": asked,
        }
        self.study = Study.from_mapping(self._document, "CausalDAO")
        self._clients: dict[str, FederatedClient] = {}

    @property
    def clients(self) -> tuple[str, ...]:
        """The registered members."""
        return tuple(sorted(self._clients))

    def register(self, client: FederatedClient) -> None:
        """Admit a member: one name, one key, one vote."""
        if client.name in self._clients:
            raise IdentityError(f"There is a member {client.name!r} already: one institution has one vote.")
        self._clients[client.name] = client

    def run(
        self,
        *,
        seed: int | None = None,
        folder: Path | None = None,
        progress: Callable[[Event], None] = lambda event: None,
    ) -> Result:
        """Run the study. With a ``seed`` the noise is simulated and the result is not private; it says so."""
        if not self._clients:
            raise MisuseError("No member is registered: call register(FederatedClient(name, frame)) for each.")
        study = self.study
        if seed is not None:
            document = {**self._document, "study": {**self._document["study"], "simulation": True}}
            study = Study.from_mapping(document, "CausalDAO")
        out = Path(tempfile.mkdtemp(prefix="causaldao-")) if folder is None else folder
        frames = {name: client.data for name, client in self._clients.items()}
        details = simulate(study, frames, out, Setting(len(frames), seed=seed or 0), progress=progress)
        model = NeuralSCM.load(out / "model.safetensors") if study.training.rounds else None
        pattern, dag = (CausalGraph.from_json(details["graph"][name]) for name in ("pattern", "dag"))
        return Result(pattern, dag, details["effects"], model, details, out)


def _effect(spec: tuple[Any, ...] | Mapping[str, Any]) -> dict[str, Any]:
    """An effect as a study has it."""
    if isinstance(spec, Mapping):
        return dict(spec)
    return dict(zip(("treatment", "outcome", "adjustment"), spec, strict=False))


def _split(rounds: int, *, sums: bool) -> dict[str, float]:
    """Shares of ε; empty: the study's defaults. ``sums``: effects of method "aipw" are asked for."""
    if sums:
        trained = {"training": 0.3, "evaluation": 0.1} if rounds else {"training": 0.0, "evaluation": 0.0}
        half = (1 - sum(trained.values())) / 2
        return {"evidence": half, **trained, "effects": half}
    return {} if rounds else {"evidence": 1.0, "training": 0.0, "evaluation": 0.0}


def _variable(name: str, spec: Spec, knowledge: Knowledge) -> dict[str, Any]:
    given = dict(spec) if isinstance(spec, Mapping) else {"kind": "continuous", "bounds": tuple(spec)}
    tier = {"tier": knowledge.tiers[name]} if name in knowledge.tiers else {}
    return {"name": name, "kind": "continuous", **tier, **given}
