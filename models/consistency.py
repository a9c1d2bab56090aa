"""How far rows depart from the mechanisms that are claimed of them, in standard units.

A mechanism says z_j = f_j(parents) + e_j with e_j of standard deviation scale_j. The residual over scale_j is what is
left of a row once its causes have had their say: if the mechanism holds, it has mean 0 and standard deviation 1,
whatever the causes were set to. A row of -4 at j is one in 16,000; a table whose residuals have a spread of 2 at j, or
a mean far from 0, comes from another mechanism at j.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.graph import CausalGraph
from causaldao.models.rules import CausalRuleSet
from causaldao.models.scm import LinearSCM, NeuralSCM


@dataclass(frozen=True, eq=False)
class Consistency:
    """Standardised residuals of n rows, (n, d), columns in the order of ``names``."""

    names: tuple[str, ...]
    residuals: Tensor

    @property
    def shift(self) -> Tensor:
        """(d,) √n times the mean residual: a standard normal draw if the mechanism holds."""
        return self.residuals.mean(0) * math.sqrt(len(self.residuals))

    @property
    def spread(self) -> Tensor:
        """(d,) the root of the mean square residual: 1 if the mechanism holds, up to about 0.7 / √n."""
        return self.residuals.square().mean(0).sqrt()

    @property
    def worst(self) -> Tensor:
        """(n,) of each row, the largest absolute residual."""
        return self.residuals.abs().amax(1)


def causal_consistency(rows: Tensor, model: LinearSCM | NeuralSCM) -> Consistency:
    """The residuals of rows (n, d), natural units, under a model, over what the model says of their spread.

    Raises:
        DataError: no rows, another shape, or values that are not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != len(model.names) or not len(rows):
        raise DataError(
            f"Rows of shape {tuple(rows.shape)}: expected (n, {len(model.names)}) with n of 1 or more, one column for "
            f"each of {', '.join(model.names)}."
        )
    if not bool(torch.isfinite(rows).all()):
        raise DataError("The rows hold values that are not finite: impute or drop those records first.")
    half = model.half if isinstance(model, LinearSCM) else model.half_range
    scaled = (rows.to(torch.float64) - model.centre) / half
    with torch.no_grad():
        expected = model.predict(scaled) if isinstance(model, LinearSCM) else model(scaled).to(torch.float64)
    return Consistency(tuple(model.names), (scaled - expected) / model.scale.to(torch.float64))


def model_of_rules(rules: CausalRuleSet, evidence: Evidence) -> LinearSCM:
    """The linear model whose mechanisms are the rules: strengths in standard deviations per standard deviation, offset
    0.

    Means and standard deviations are those of the evidence; the spread of each residual is what the rules leave
    unexplained there. Rules with an offset say nothing within one record and are left out.

    Raises:
        MisuseError: a rule names a variable that the evidence lacks.
        ConfigurationError: the rules make a cycle.
        DataError: the rules of an effect leave it no residual variance.
    """
    if unknown := sorted(set(rules.names) - set(evidence.names)):
        raise MisuseError(f"The rules name {', '.join(unknown)}. The evidence has {', '.join(evidence.names)}.")
    dag = CausalGraph.dag(rules.to_graph().directed, evidence.names)
    d, mean, deviation = evidence.d, evidence.mean(), evidence.covariance().diagonal().clamp_min(0).sqrt()
    strength = torch.zeros(d, d, dtype=torch.float64)
    for rule in rules:
        if rule.offset == 0:
            strength[evidence.index(rule.effect), evidence.index(rule.cause)] = rule.strength
    left = torch.eye(d, dtype=torch.float64) - strength
    variance = (left @ evidence.correlation() @ left.T).diagonal()
    if bool((variance <= 0).any()):
        name = evidence.names[int(variance.argmin())]
        raise DataError(
            f"The rules leave {name} a residual variance of {float(variance.min()):.3g} of its own, expected > 0: "
            "state weaker ones, or use less noisy evidence."
        )
    weight = strength * deviation[:, None] / deviation
    scale = variance.sqrt() * deviation
    return LinearSCM(dag, evidence.names, weight, mean - weight @ mean, scale, evidence.centre, evidence.half)
