"""Structural causal models on a DAG: sampling, interventions and counterfactuals.

Every variable j is a mechanism of its parents plus independent noise, z_j = f_j(z_pa(j)) + e_j (an additive
noise model: Pearl, *Causality*, 2009, ch. 7; Peters, Janzing & Schölkopf, *Elements of Causal Inference*,
2017, ch. 6). do(z_j = v) replaces the one equation of j; a counterfactual keeps the noise of the factual row
(abduction), replaces the equations (action) and solves again (prediction).

Units: rows that go in and come out of `sample`, `counterfactual` and `moments`, and the values of a `do`, are
natural (each variable after its declared transform); `loss` takes rows in the scaled units z = (x - centre) /
half in which evidence is released and models are trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from causaldao.errors import CausalDAOError, DataError, MisuseError
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.effects import least_squares
from causaldao.models.graph import CausalGraph
from causaldao.models.saving import Array, read_model, tensor_problems, write_model

Do = Mapping[str, float]

_FORMAT = "causaldao-neural-scm/1"
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_UNEXPLAINED = 1e-10  # smallest residual variance of a node, as a share of its own variance
_ROWS = 8192  # rows per forward pass when sampling: the masked input is (rows, d, d)


class CausalModel(Protocol):
    """What serving and training ask of a model, whatever its mechanisms are."""

    @property
    def graph(self) -> CausalGraph: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def loss(self, batch: Tensor) -> Tensor:
        """Loss of each record: (n, d) scaled -> (n,)."""

    def sample(self, n: int, do: Do | None, generator: torch.Generator) -> Tensor:
        """Rows under do: (n, d) float64, natural units."""

    def counterfactual(self, factual: Tensor, do: Do) -> Tensor:
        """The same units had `do` been done: (n, d) natural -> (n, d) natural."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """The parameters, by name."""


@dataclass(frozen=True, eq=False)
class LinearSCM:
    """A linear-Gaussian model, z = B z + b + e with e_j ~ N(0, scale_j²), in closed form.

    weight (d, d) float64: weight[j, i] is the direct effect of i on j (zero unless i -> j), in scaled units;
    intercept, scale, centre, half (d,) float64. Columns follow `names`.
    """

    graph: CausalGraph
    names: tuple[str, ...]
    weight: Tensor
    intercept: Tensor
    scale: Tensor
    centre: Tensor
    half: Tensor

    @classmethod
    def from_evidence(cls, evidence: Evidence, dag: CausalGraph) -> Self:
        """Regress every node on its parents, from second moments alone, by maximum likelihood.

        On a complete DAG the model's mean and covariance are those of the evidence (divisor n).

        Raises:
            MisuseError: `dag` is not a DAG over the names of the evidence.
            DataError: a parent block is not positive definite, or a node does not vary given its parents.
        """
        require_dag(dag, evidence.names)
        d = len(evidence.names)
        weight = torch.zeros(d, d, dtype=torch.float64)
        intercept, scale = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
        for j, name in enumerate(evidence.names):
            parents = tuple(p for p in evidence.names if p in dag.parents(name))
            fit = least_squares(evidence, name, parents)
            intercept[j] = fit.coefficients[0]
            weight[j, [evidence.names.index(p) for p in parents]] = fit.coefficients[1:]
            scale[j] = _residual_scale(evidence, j, fit.residual_squares, parents)
        return cls(dag, tuple(evidence.names), weight, intercept, scale, evidence.centre, evidence.half)

    def predict(self, scaled: Tensor) -> Tensor:
        """Each node's mechanism at its parents' values: (n, d) -> (n, d), scaled units."""
        return scaled.to(torch.float64) @ self.weight.T + self.intercept

    def loss(self, batch: Tensor) -> Tensor:
        """Per record, the mean over nodes of (residual / scale)² / 2: (n, d) scaled -> (n,)."""
        return _loss(batch, self.predict(_columns(batch, len(self.names))), self.scale)

    def moments(self, do: Do | None = None) -> tuple[Tensor, Tensor]:
        """Exact mean (d,) and covariance (d, d) under do, natural units.

        With A = (I - B_do)⁻¹: mean A b_do, covariance A diag(scale_do²) Aᵀ; do zeroes the rows of its nodes.
        """
        held, value = _intervention(self.names, do, self.centre, self.half)
        total = self._total(held)
        mean = total @ torch.where(held, value, self.intercept)
        spread = total * self.scale.masked_fill(held, 0.0)
        return self.centre + self.half * mean, self.half[:, None] * (spread @ spread.T) * self.half

    def sample(self, n: int, do: Do | None, generator: torch.Generator) -> Tensor:
        """n independent rows under do: (n, d) float64, natural units."""
        held, value = _intervention(self.names, do, self.centre, self.half)
        noise = self.scale * _normal(n, len(self.names), generator)
        scaled = torch.where(held, value, self.intercept + noise) @ self._total(held).T
        return _hold(self.centre + self.half * scaled, self.names, do)

    def counterfactual(self, factual: Tensor, do: Do) -> Tensor:
        """Abduction, action, prediction, exactly: (n, d) natural -> (n, d) natural.

        The noise cancels: the change of a row solves c = B_do c + (v - z) on the held nodes, so what does not
        descend from them comes back bit for bit.
        """
        rows = finite_rows(factual, len(self.names))
        held, value = _intervention(self.names, do, self.centre, self.half)
        start = torch.where(held, value - (rows - self.centre) / self.half, 0.0)
        return _hold(rows + self.half * (start @ self._total(held).T), self.names, do)

    def state_dict(self) -> dict[str, Tensor]:
        """weight, intercept, scale, centre and half, as they are."""
        return {name: getattr(self, name) for name in ("weight", "intercept", "scale", "centre", "half")}

    def _total(self, held: Tensor) -> Tensor:
        # Forward substitution in causal order, not a pivoted inverse: no path, then exactly 0.
        order = [self.names.index(name) for name in self.graph.topological_order()]
        identity = torch.eye(len(order), dtype=torch.float64)
        kept = (self.weight * ~held[:, None])[order][:, order]
        solved = torch.linalg.solve_triangular(identity - kept, identity, upper=False, unitriangular=True)
        total = torch.empty_like(solved)
        total[torch.tensor(order)[:, None], torch.tensor(order)] = solved
        return total


class NodeLinear(nn.Module):
    """One affine map per node, (n, d, in) -> (n, d, out): weight (d, out, in), bias (d, out), zero at first.

    With x (d, in) the layer's input for a record, g (d, out) the gradient of the record's loss in its output,
    the gradient is g[j] ⊗ x[j] in weight[j] and g[j] in bias[j], of squared norm Σ_j ‖g[j]‖² (‖x[j]‖² + 1).
    """

    def __init__(self, nodes: int, inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(nodes, outputs, inputs, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(nodes, outputs, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ndi,doi->ndo", x, self.weight) + self.bias


class NeuralSCM(nn.Module):
    """An additive noise model with mechanisms f_j(z) = w_j·z + b_j + MLP_j(z), z masked to the parents of j.

    All d mechanisms run as one: the input (n, d) is expanded to (n, d, d) and multiplied by mask (d, d),
    mask[j, i] = 1 iff i -> j, before the first layer, so the gradient at a masked weight is exactly zero. The
    MLP has one layer of tanh: bounded activations keep per-record gradients small, and so what clipping takes
    away (Papernot et al., AAAI 2021). All trainable parameters are in `NodeLinear` layers.

    mask, scale, centre and half_range are plain attributes: not trained, not in `state_dict`, not moved by
    `to`. scale (d,) is the noise of each node in `sample` and the unit of its residual in `loss`; it stays
    what the linear start left unexplained: once mechanisms explain more, `sample` is noisier than the data.
    """

    def __init__(
        self,
        graph: CausalGraph,
        names: Sequence[str],
        hidden: int,
        *,
        scale: Tensor,
        centre: Tensor,
        half: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """All mechanisms zero; `from_linear` and `from_state` fill them. scale, centre and half are (d,)."""
        super().__init__()
        require_dag(graph, names)
        if hidden < 1:
            raise MisuseError(f"hidden={hidden} units: expected at least 1.")
        self._graph, self._names, d = graph, tuple(names), len(names)
        self.mask = torch.tensor(graph.adjacency(self._names).T.copy(), dtype=dtype)
        self.scale, self.centre, self.half_range = scale, centre, half
        self.linear = NodeLinear(d, d, 1, dtype)
        self.hidden = NodeLinear(d, d, hidden, dtype)
        self.head = NodeLinear(d, hidden, 1, dtype)

    @classmethod
    def from_linear(
        cls,
        linear: LinearSCM,
        hidden: int = 16,
        *,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Start exactly at the linear model: its weights, random hidden units, and a head of zeros.

        generator draws the hidden units: weights of variance 1 / parents, biases uniform on [-1, 1].
        """
        model = cls(
            linear.graph,
            linear.names,
            hidden,
            scale=linear.scale.clone(),
            centre=linear.centre.clone(),
            half=linear.half.clone(),
            dtype=dtype,
        )
        fan_in = model.mask.sum(1).clamp(min=1.0)
        draw = torch.randn(model.hidden.weight.shape, generator=generator, dtype=dtype)
        with torch.no_grad():
            model.linear.weight.copy_(linear.weight[:, None, :])
            model.linear.bias.copy_(linear.intercept[:, None])
            model.hidden.weight.copy_(draw * model.mask[:, None, :] / fan_in.sqrt()[:, None, None])
            model.hidden.bias.copy_(2 * torch.rand(model.hidden.bias.shape, generator=generator, dtype=dtype) - 1)
        return model

    @property
    def graph(self) -> CausalGraph:
        """The DAG that masks the mechanisms."""
        return self._graph

    @property
    def names(self) -> tuple[str, ...]:
        """The columns, in order."""
        return self._names

    def layers(self) -> Iterator[NodeLinear]:
        """The layers that hold every trainable parameter."""
        yield from (self.linear, self.hidden, self.head)

    def forward(self, scaled: Tensor) -> Tensor:
        """Each node's mechanism at its parents' values: (n, d) -> (n, d), scaled units."""
        parents = scaled.to(self.mask.dtype).unsqueeze(1) * self.mask
        output: Tensor = self.linear(parents) + self.head(torch.tanh(self.hidden(parents)))
        return output.squeeze(2)

    def loss(self, batch: Tensor) -> Tensor:
        """Per record, the mean over nodes of (residual / scale)² / 2: (n, d) scaled -> (n,)."""
        prediction = self(_columns(batch, len(self.names)))
        return _loss(batch.to(prediction.dtype), prediction, self.scale.to(prediction.dtype))

    @torch.no_grad()
    def sample(self, n: int, do: Do | None, generator: torch.Generator) -> Tensor:
        """n independent rows under do, with Gaussian noise of `scale`: (n, d) float64, natural units."""
        held, value = _intervention(self.names, do, self.centre, self.half_range)
        noise = self.scale * _normal(n, len(self.names), generator)
        scaled = torch.cat([self._solve(rows, held, value) for rows in torch.split(noise, _ROWS)])
        return _hold(self.centre + self.half_range * scaled, self.names, do)

    @torch.no_grad()
    def counterfactual(self, factual: Tensor, do: Do) -> Tensor:
        """Abduction, action, prediction: (n, d) natural -> (n, d) natural.

        What does not descend from a held node, and every row whose held values are what they were, comes back
        bit for bit.
        """
        rows = finite_rows(factual, len(self.names))
        held, value = _intervention(self.names, do, self.centre, self.half_range)
        change = [
            self._change(chunk, held, value) for chunk in torch.split((rows - self.centre) / self.half_range, _ROWS)
        ]
        return _hold(rows + self.half_range * torch.cat(change), self.names, do)

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """(tensors, meta): parameters, scale, centre and half as numpy arrays, and the rest as JSON."""
        tensors = {**self.state_dict(), "scale": self.scale, "centre": self.centre, "half": self.half_range}
        arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in tensors.items()}
        meta = {
            "format": _FORMAT,
            "names": list(self.names),
            "graph": self.graph.to_json(),
            "hidden": self.hidden.bias.shape[1],
            "dtype": str(self.mask.dtype).removeprefix("torch."),
        }
        return {name: array.copy() for name, array in arrays.items()}, meta

    @classmethod
    def from_state(cls, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> Self:
        """Rebuild a model from what came from outside; nothing is allocated before it is checked.

        Raises DataError, listing each tensor that is missing, extra, not finite, or of wrong shape or dtype.
        """
        graph, names, hidden, dtype = _read_meta(meta)
        if problems := tensor_problems(tensors, _layout(len(names), hidden, dtype), ("scale", "half")):
            raise DataError(f"The model's state does not fit its description: {problems[0]}", problems=problems)
        arrays = {name: torch.from_numpy(np.array(array, copy=True)) for name, array in tensors.items()}
        plain = {name: arrays.pop(name) for name in ("scale", "centre", "half")}
        model = cls(graph, names, hidden, **plain, dtype=_DTYPES[dtype])
        model.load_state_dict(arrays)
        return model

    def save(self, path: str | PathLike[str]) -> None:
        """Write tensors and description as one safetensors file."""
        write_model(path, *self.state())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote. Raises DataError when the file is absent or is not such a model."""
        return cls.from_state(*read_model(path))

    def _solve(self, noise: Tensor, held: Tensor, value: Tensor) -> Tensor:
        scaled = torch.where(held, value, torch.zeros_like(noise))
        for level in self._levels(held):
            scaled[:, level] = (self(scaled) + noise)[:, level]
        return scaled

    def _change(self, factual: Tensor, held: Tensor, value: Tensor) -> Tensor:
        # The noise is factual - f(factual), so it cancels from f(z) + noise - factual = f(z) - f(factual): a
        # node whose parents stay keeps its value to the last bit, in whatever precision the mechanisms run.
        before, scaled = self(factual), torch.where(held, value, factual)
        for level in self._levels(held):
            scaled[:, level] = (factual + (self(scaled) - before))[:, level]
        return scaled - factual

    def _levels(self, held: Tensor) -> list[list[int]]:
        depth: dict[str, int] = {}
        for name in self.graph.topological_order():
            depth[name] = 1 + max((depth[parent] for parent in self.graph.parents(name)), default=-1)
        free = [j for j in range(len(self.names)) if not held[j]]
        groups = [[j for j in free if depth[self.names[j]] == level] for level in range(len(self.names))]
        return [group for group in groups if group]


def require_dag(graph: CausalGraph, names: Sequence[str]) -> None:
    """MisuseError unless the graph is a DAG over these names."""
    if not graph.is_dag:
        raise MisuseError("A structural model needs a DAG; take the consensus' dag, or an extension of the pattern.")
    if sorted(graph.nodes) != sorted(names):
        odd = ", ".join(sorted(set(graph.nodes) ^ set(names)))
        raise MisuseError(f"Graph and columns name different variables: {odd}. Name each in both.")


def _residual_scale(evidence: Evidence, j: int, residual_squares: float, parents: Sequence[str]) -> float:
    variance, spread = residual_squares / evidence.count, float(evidence.covariance()[j, j])
    if not variance > _UNEXPLAINED * max(spread, 0.0) or spread <= 0:
        given = f" given {', '.join(parents)}" if parents else ""
        raise DataError(
            f"{evidence.names[j]} has residual variance {variance:.3g}{given} (scaled units), expected > 0. "
            "Drop a constant or duplicated variable; under noise use more records or a larger epsilon."
        )
    return math.sqrt(variance)


def _loss(batch: Tensor, prediction: Tensor, scale: Tensor) -> Tensor:
    return ((batch - prediction) / scale).square().mean(1) / 2


def _normal(n: int, d: int, generator: torch.Generator) -> Tensor:
    if n < 1:
        raise MisuseError(f"n={n} rows to sample: expected at least 1.")
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def _columns(batch: Tensor, d: int) -> Tensor:
    # Shape only: the private trainer maps loss over records, where values cannot be branched on.
    if batch.ndim != 2 or batch.shape[1] != d:
        raise DataError(f"Rows of shape {tuple(batch.shape)}: expected (n, {d}), one column for each variable.")
    return batch


def finite_rows(factual: Tensor, d: int) -> Tensor:
    """The rows as float64. DataError unless they are (n, d) and finite."""
    rows = _columns(factual, d).to(torch.float64)
    if not bool(torch.isfinite(rows).all()):
        row, column = torch.nonzero(~torch.isfinite(rows))[0].tolist()
        raise DataError(f"Row {row}, column {column} is {rows[row, column].item()}: expected finite numbers.")
    return rows


def _intervention(names: Sequence[str], do: Do | None, centre: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """(held (d,) bool, value (d,) in scaled units, 0 where free)."""
    do = {} if do is None else do
    if unknown := sorted(set(do) - set(names)):
        raise MisuseError(f"do() names {', '.join(unknown)}, which the model lacks. It has {', '.join(names)}.")
    for name, value in do.items():
        if not math.isfinite(value):
            raise MisuseError(f"do({name}={value}): expected a finite number.")
    held = torch.tensor([name in do for name in names])
    natural = torch.tensor([float(do.get(name, 0.0)) for name in names], dtype=torch.float64)
    return held, torch.where(held, (natural - centre) / half, 0.0)


def _hold(rows: Tensor, names: Sequence[str], do: Do | None) -> Tensor:
    # The held value itself, not its round trip through scaled units.
    for name, value in (do or {}).items():
        rows[:, names.index(name)] = float(value)
    return rows


def _layout(d: int, hidden: int, dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    parameters = {
        "linear.weight": (d, 1, d),
        "linear.bias": (d, 1),
        "hidden.weight": (d, hidden, d),
        "hidden.bias": (d, hidden),
        "head.weight": (d, 1, hidden),
        "head.bias": (d, 1),
    }
    plain = dict.fromkeys(("scale", "centre", "half"), ((d,), "float64"))
    return {**{name: (shape, dtype) for name, shape in parameters.items()}, **plain}


def _read_meta(meta: Mapping[str, Any]) -> tuple[CausalGraph, tuple[str, ...], int, str]:
    expected = {"format", "names", "graph", "hidden", "dtype"}
    if not isinstance(meta, Mapping) or set(meta) != expected or meta["format"] != _FORMAT:
        raise DataError(f"The model's description is not {_FORMAT}: expected the keys {', '.join(sorted(expected))}.")
    names, hidden, dtype = meta["names"], meta["hidden"], meta["dtype"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"names={names!r} in the model's description: expected a list of texts.")
    if type(hidden) is not int or hidden < 1 or dtype not in _DTYPES:
        raise DataError(
            f"hidden={hidden!r}, dtype={dtype!r} in the model's description: "
            f"expected an integer of at least 1 and one of {', '.join(_DTYPES)}."
        )
    try:
        graph = CausalGraph.from_json(meta["graph"])
        require_dag(graph, names)
    except (CausalDAOError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"The model's description holds no DAG over {', '.join(names)}: {error}") from error
    return graph, tuple(names), hidden, dtype
