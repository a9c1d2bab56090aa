"""A study: a question and its protocol, one TOML file,
pinned by its hash and approved by each node before any row is read.

The hash is the SHA-256 of the RFC 8785 JSON of the validated study with its defaults filled in, so two files that mean
the same have one hash, and a default that changes in a later version changes it.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict
from functools import cached_property
from math import inf
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from causaldao.errors import CausalDAOError, ConfigurationError
from causaldao.models.discovery.block_score import BLOCK_PENALTY
from causaldao.models.discovery.evidence import Dictionary, FeatureRows, Variable
from causaldao.models.discovery.features import FeatureMap
from causaldao.models.discovery.moment_fit import PENALTY as MOMENT_PENALTY
from causaldao.models.discovery.score import PENALTY
from causaldao.models.knowledge import Knowledge
from causaldao.optimisers import FedAdam, FedAvg, FedAvgM, build
from causaldao.signing import canonical, sha256
from causaldao.study_faults import ROBUST, WAVED, faults

Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Fraction = Annotated[float, Field(gt=0, le=1)]
WAVES, WIDTH, SEED = 8, 0.25, 0  # of the Fourier map, by default
SETTINGS = ("rate", "momentum", "second", "floor")  # of a server optimiser


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class About(_Table):
    """Who asks what and why, and how long results are kept: what a data-protection officer must know."""

    name: Slug
    question: Annotated[str, Field(min_length=1, max_length=2000)]
    purpose: Annotated[str, Field(min_length=1, max_length=2000)]
    retention: Annotated[str, Field(min_length=1, max_length=500)]
    simulation: bool = False


class VariableSpec(_Table):
    """One variable of the public dictionary; see `Variable`. A categorical one has levels in place of bounds."""

    name: Name
    kind: Literal["continuous", "binary", "count", "categorical"]
    bounds: tuple[float, float]
    unit: str = ""
    transform: Literal["identity", "log1p"] = "identity"
    tier: Annotated[int, Field(ge=0, le=1000)] | None = None
    levels: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_bounds(cls, value: Any) -> Any:
        """Levels have no bounds, but a hashed variable has some: those of its codes, whatever the file leaves out."""
        if isinstance(value, dict) and value.get("kind") == "categorical" and "bounds" not in value:
            return {**value, "bounds": (0.0, 1.0)}
        return value

    def build(self) -> Variable:
        return Variable(self.name, self.kind, self.bounds, self.unit, self.transform, self.tier, self.levels)


class DiscoverySpec(_Table):
    """What is released and how the graph is proposed. ``clip`` is C², the bound on a record's squared norm.

    ``waves``, ``width`` and the public ``seed`` are of the Fourier map alone. ``restore`` puts back what the clip took
    (`models/discovery/clipping.py`). ``interventions`` says what the targets of environments underwent: "hard", they
    were set, or "soft", they still listen to their causes (`models/discovery/interventional.py`). With evidence "local"
    a member releases the graph that it finds in its own noisy moments, and never these (`causaldao.graph_ballots`).
    """

    evidence: Literal["shared", "local"] = "shared"
    features: Literal["identity", "one-hot", "fourier"] = "identity"
    method: Literal["boss", "pc", "ges", "moment-fit"] = "boss"
    clip: Annotated[float, Field(gt=1)] | None = None
    lattice: Annotated[int, Field(ge=16, le=65536)] = 1024
    restarts: Annotated[int, Field(ge=1, le=1000)] = 12
    penalty: Annotated[float, Field(gt=0)] | None = None
    alpha: Fraction = 0.01
    restore: bool = False
    waves: Annotated[int, Field(ge=2, le=200)] | None = None
    width: Annotated[float, Field(gt=0, le=100)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    interventions: Literal["hard", "soft"] = "hard"


class EnvironmentSpec(_Table):
    """Conditions under which a member gathered its records, and the variables acted on there; none: it observed."""

    name: Slug
    targets: tuple[Name, ...] = ()


class KnowledgeSpec(_Table):
    """Edges that must or cannot be, as [cause, effect] pairs; tiers stand with the variables."""

    required: tuple[tuple[Name, Name], ...] = ()
    forbidden: tuple[tuple[Name, Name], ...] = ()


class ConsensusSpec(_Table):
    """``threshold`` τ, the fault bound f, and the family-wise level of an accusation and of each ballot's tests."""

    threshold: Annotated[float, Field(gt=0.5, le=1)] = 0.6
    faulty: Annotated[int, Field(ge=0)] = 0
    level: Annotated[float, Field(gt=0, lt=0.5)] = 0.01


class TrainingSpec(_Table):
    """Private federated training; ``rounds = 0`` makes a study that votes on the graph only.

    ``proximal`` is μ of FedProx (Li et al. 2020), ``momentum`` β of the members' own average over rounds (Karimireddy
    et al. 2021). Both act on what the noise has already covered, so they cost no ε.
    """

    model: Literal["neural-scm"] = "neural-scm"
    hidden: Annotated[int, Field(ge=1, le=1024)] = 16
    rounds: Annotated[int, Field(ge=0, le=10_000)] = 5
    steps: Annotated[int, Field(ge=1, le=100_000)] = 20
    sample_rate: Fraction = 0.05
    rate: Annotated[float, Field(gt=0, le=10)] = 0.1
    clip: Annotated[float, Field(gt=0)] = 1.0
    proximal: Annotated[float, Field(ge=0, le=100)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5


class AggregationSpec(_Table):
    """The robust rule of the updates, the rule of the pool, and what the model makes of an aggregate: `optimisers`.

    What an optimiser's own settings are not given, its defaults fill in; one that it does not have is refused.
    """

    rule: Annotated[str, Field(min_length=1, max_length=64)] = "arc+caf"
    pool: Literal["multi-krum", "mean", "sieve"] = "multi-krum"
    optimiser: Annotated[str, Field(min_length=1, max_length=64)] = "fedavg"
    rate: Annotated[float, Field(gt=0, le=10)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    second: Annotated[float, Field(ge=0, lt=1)] | None = None
    floor: Annotated[float, Field(gt=0, le=1)] | None = None

    def build(self) -> FedAvg | FedAvgM | FedAdam:
        """The server optimiser; a MisuseError for an unknown one, or for a setting that it does not have."""
        return build(self.optimiser, self.model_dump(include=set(SETTINGS)))


class SplitSpec(_Table):
    """Shares of ε; they sum to 1. ``effects`` is for the effects of method "aipw", all of them together."""

    evidence: Annotated[float, Field(gt=0, le=1)] = 0.5
    training: Annotated[float, Field(ge=0, le=1)] = 0.4
    evaluation: Annotated[float, Field(ge=0, le=1)] = 0.1
    effects: Annotated[float, Field(ge=0, lt=1)] = 0.0


class PrivacySpec(_Table):
    """Record-level (ε, δ), neighbours by adding or removing one record. ``loss_bound`` L clips a record's loss."""

    epsilon: Annotated[float, Field(gt=0, le=100)]
    delta: Annotated[float, Field(gt=0, lt=0.01)]
    split: SplitSpec = SplitSpec()
    loss_bound: Annotated[float, Field(gt=0)] = 4.0


class MembersSpec(_Table):
    """Clamp of a member's (noisy) count, the seconds after which an absent member is given up, and the variables that a
    member may say at the roll call it does not have.
    """

    n_min: Annotated[int, Field(ge=10)] = 200
    n_max: Annotated[int, Field(ge=10)] = 1_000_000
    deadline: Annotated[float, Field(gt=0)] = 600.0
    may_lack: tuple[Name, ...] = ()


class EffectSpec(_Table):
    """An effect to estimate; ``adjustment`` "auto" asks the adopted graph,
    a list is taken as given (empty: randomised).

    ``method``: "moments" reads a linear effect from the pooled evidence; "aipw" asks each member for the noisy sums of
    its influence values (`causaldao.models.summaries`), and then has an ``estimand``, the ``overlap`` within which
    scores are kept, the ``clip`` of an influence value in the outcome's unit (None: from the evidence), and the
    ``spread`` that honest members' effects may have, a standard deviation (None: estimated).
    """

    treatment: Name
    outcome: Name
    adjustment: Literal["auto"] | tuple[Name, ...] = "auto"
    method: Literal["moments", "aipw"] = "moments"
    estimand: Literal["ate", "att"] = "ate"
    overlap: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    clip: Annotated[float, Field(gt=0)] | None = None
    spread: Annotated[float, Field(ge=0)] | None = None


class Study(_Table):
    """A validated study. Build it with `Study.from_toml` or `Study.from_mapping`."""

    study: About
    variables: Annotated[tuple[VariableSpec, ...], Field(max_length=500)]
    discovery: DiscoverySpec = DiscoverySpec()
    knowledge: KnowledgeSpec = KnowledgeSpec()
    consensus: ConsensusSpec = ConsensusSpec()
    training: TrainingSpec = TrainingSpec()
    aggregation: AggregationSpec = AggregationSpec()
    privacy: PrivacySpec
    members: MembersSpec = MembersSpec()
    environments: Annotated[tuple[EnvironmentSpec, ...], Field(max_length=100)] = ()
    effects: tuple[EffectSpec, ...] = ()

    @classmethod
    def from_toml(cls, text: str, source: str = "study") -> Study:
        """Parse and validate; every fault is reported at once as ``source: table.key: what is wrong``."""
        try:
            value = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{source} is not valid TOML: {error}.") from error
        return cls.from_mapping(value, source)

    @classmethod
    def from_mapping(cls, value: Any, source: str = "study") -> Study:
        """Validate a mapping, such as the JSON form of a study that a ledger carries."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            problems = [problem for fault in error.errors() for problem in _problems(source, fault)]
            raise ConfigurationError(f"{source} has {len(problems)} fault(s):", problems=problems) from error

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        problems = faults(self)
        for part in (lambda: self.encoding, lambda: self.prior):
            try:
                part()
            except CausalDAOError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def to_json(self) -> dict[str, Any]:
        """The JSON form that is hashed: validated, defaults filled in.

        What a study does not use of `DiscoverySpec` and older studies did not have stays out, so that those keep their
        hash: ``restore`` where it is false, the settings of waves where there are none, environments where none are
        declared, and what members may lack where they may lack nothing.
        """
        value: dict[str, Any] = self.model_dump(mode="json")
        discovery, encoding = value["discovery"], self.encoding
        discovery |= {"clip": encoding.clip, "penalty": self.penalty}
        if isinstance(encoding, FeatureMap) and encoding.features == "fourier":
            discovery |= {name: getattr(encoding, name) for name in WAVED}
        else:
            discovery = {key: kept for key, kept in discovery.items() if key not in WAVED}
        if not self.environments:
            del value["environments"], discovery["interventions"]
        value["members"]["may_lack"].sort()  # in whatever order they were written
        if not self.members.may_lack:
            del value["members"]["may_lack"]
        value["discovery"] = {key: kept for key, kept in discovery.items() if key != "restore" or kept}
        value["aggregation"] |= asdict(self.aggregation.build())
        # A study that asks for no "aipw" has the JSON, and so the hash, that it had before there was one.
        for effect in value["effects"]:
            if effect["method"] == "moments":
                for key in ROBUST:
                    del effect[key]
        if not self.privacy.split.effects:
            del value["privacy"]["split"]["effects"]
        return value

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return sha256(canonical(self.to_json()))

    @property
    def robust_effects(self) -> tuple[EffectSpec, ...]:
        """The effects of method "aipw", for which each member makes a release."""
        return tuple(effect for effect in self.effects if effect.method == "aipw")

    @property
    def local(self) -> bool:
        """Whether members vote straight from their rows: then nothing is pooled, and only a graph is adopted."""
        return self.discovery.evidence == "local"

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(v.name for v in self.variables)

    @cached_property
    def encoding(self) -> FeatureRows:
        """The public map of a record to the bounded row whose second moments are released."""
        spec = self.discovery
        if spec.features == "identity":
            return self.dictionary
        clip = inf if spec.clip is None else spec.clip
        waves = WAVES if spec.waves is None else spec.waves
        width = WIDTH if spec.width is None else spec.width
        seed = SEED if spec.seed is None else spec.seed
        variables = tuple(v.build() for v in self.variables)
        return FeatureMap(variables, spec.features, waves, width, True, seed, clip, spec.lattice)

    @cached_property
    def dictionary(self) -> Dictionary:
        """The variables as numbers, which training and effects take; a ConfigurationError if one is categorical."""
        own = self.discovery.clip if self.discovery.features == "identity" else None
        clip = own if own is not None else float(len(self.variables) + 1)
        return Dictionary(tuple(v.build() for v in self.variables), clip, self.discovery.lattice)

    @property
    def penalty(self) -> float:
        """The price of a parent for boss, ges and moment-fit: as given, or the default for the method and evidence."""
        if self.discovery.penalty is not None:
            return self.discovery.penalty
        if self.discovery.method == "moment-fit":
            return MOMENT_PENALTY
        return BLOCK_PENALTY if any(size > 1 for size in self.encoding.blocks) else PENALTY

    @cached_property
    def prior(self) -> Knowledge:
        """The study's own knowledge: required and forbidden edges, and the variables' tiers."""
        tiers = {v.name: v.tier for v in self.variables if v.tier is not None}
        return Knowledge(frozenset(self.knowledge.required), frozenset(self.knowledge.forbidden), tiers)

    def variable(self, name: str) -> VariableSpec:
        return next(v for v in self.variables if v.name == name)


def _problems(source: str, fault: Any) -> list[str]:
    where = ".".join(str(part) for part in fault["loc"]) or "study as a whole"
    if fault["type"] == "extra_forbidden":
        return [f"{source}: {where}: unknown key; check the spelling against docs/studies.md"]
    given = f" (got {fault['input']!r})" if isinstance(fault["input"], str | int | float | bool) else ""
    faults = fault["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list").split("\n")
    return [f"{source}: {where}: {what.strip().removeprefix('- ')}{given}" for what in faults]
