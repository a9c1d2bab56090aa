"""The three questions against enumeration, closed forms and coverage; and the words that explain them."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from causaldao.errors import DataError, MisuseError
from causaldao.models.fitting import ensemble, fit
from causaldao.models.graph import CausalGraph
from causaldao.models.intervention import Intervention, Law
from causaldao.models.queries import conditional, counterfactual_interval, distribution, explain
from tests.counts import count
from tests.models.structural_models import BITS, GRAPH, LOGITS, NAMES, SLOPES, algebra, bits, enumerated, line


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _questions() -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """Every target under every action on at most one variable, given every value of at most two others."""
    found = []
    for target in BITS:
        for acted in (None, *(name for name in BITS if name != target)):
            rest = [name for name in BITS if name not in (target, acted)]
            for seen in [(), *((one,) for one in rest), tuple(rest[:2])]:
                for values in product((0.0, 1.0), repeat=len(seen) + (acted is not None)):
                    do = {} if acted is None else {acted: values[0]}
                    found.append((target, do, dict(zip(seen, values[len(do) :], strict=True))))
    return found


def test_a_conditional_answer_is_not_that_of_enumeration() -> None:
    questions = _questions()
    chosen = np.random.default_rng(0).permutation(len(questions))[: count(30, len(questions))]
    for place in chosen:
        target, do, given = questions[place]
        answer = conditional(bits(), target, do, given, n=8000, generator=generator(int(place)))
        truth = enumerated(target, do, given)
        assert abs(answer.mean - truth) < 4.5 * answer.error + 1e-6, (target, do, given)
        assert 100 <= answer.effective <= 8000.1


def test_conditioning_after_the_action_is_taken_for_conditioning_before() -> None:
    """Given d below the action, P(c | do(a), d) is neither P(c | do(a)) nor P(c | a, d)."""
    seen = {"d": 0.0}
    answer = conditional(bits(), "c", {"b": 1.0}, seen, n=100_000, generator=generator()).mean
    assert answer == pytest.approx(enumerated("c", {"b": 1.0}, seen), abs=0.01)
    assert abs(enumerated("c", {"b": 1.0}, {}) - answer) > 0.1
    assert abs(enumerated("c", {}, {"b": 1.0, **seen}) - answer) > 0.02


@pytest.mark.parametrize(
    ("target", "do", "shift", "given"),
    [
        ("y", {"x": 41.0}, {}, {"z": 1.5}),  # above
        ("y", {"x": 41.0}, {}, {"w": 56.0}),  # below the target
        ("z", {}, {"m": 2.0}, {"m": -60.0, "w": 50.0}),
        ("w", {"x": 39.0}, {}, {"m": -58.0, "z": 0.0}),
        ("m", {"z": 2.0}, {"y": -1.0}, {"y": -110.0}),
    ],
)
def test_a_conditional_answer_is_not_the_closed_form_of_a_gaussian(
    target: str, do: dict[str, float], shift: dict[str, float], given: dict[str, float]
) -> None:
    mean, covariance = algebra(do, shift)
    j, seen = NAMES.index(target), [NAMES.index(name) for name in given]
    slopes = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen, j])
    truth = mean[j] + slopes @ (np.array(list(given.values())) - mean[seen])
    variance = covariance[j, j] - slopes @ covariance[seen, j]
    act = Intervention.set(**do) | Intervention.shift(**shift)
    answer = conditional(line(), target, act, given, n=60_000, generator=generator())
    assert abs(answer.mean - truth) < 4 * answer.error
    assert answer.error < 0.1 * math.sqrt(variance)
    reach = 1.6449 * math.sqrt(variance)
    slack = 8 * math.sqrt(variance / answer.effective)
    assert answer.quantiles[0.05] == pytest.approx(truth - reach, abs=slack)
    assert answer.quantiles[0.95] == pytest.approx(truth + reach, abs=slack)


def test_a_replaced_mechanism_is_given_by_its_own_law() -> None:
    act = Intervention.replace(m=Law.normal(-60.0, 1.0))
    answer = conditional(line(), "y", act, {"m": -59.0}, n=20_000, generator=generator())
    mean = algebra({"m": -59.0}, {})[0][NAMES.index("y")]
    assert abs(answer.mean - mean) < 4 * answer.error
    silent = Intervention.replace(m=Law((), lambda columns, noise: noise))
    with pytest.raises(MisuseError, match="no log_prob"):
        conditional(line(), "y", silent, {"m": 1.0}, generator=generator())


def test_an_answer_from_too_few_rows_passes() -> None:
    with pytest.raises(MisuseError, match=r"worth [\d.]+ equal ones, expected 100"):
        conditional(line(), "y", {"x": 40.0}, {"z": 7.0, "w": 400.0}, n=2000, generator=generator())
    with pytest.raises(MisuseError, match=r"worth 0\.0 equal ones"):
        conditional(bits(), "c", {"a": 1.0}, {"a": 0.0}, generator=generator())
    assert conditional(bits(), "c", {"a": 1.0}, {"a": 1.0}, generator=generator()).effective == pytest.approx(10_000)


def test_a_mean_under_do_has_another_error() -> None:
    answer = distribution(line(), "y", {"x": 41.0}, n=20_000, generator=generator())
    mean, covariance = algebra({"x": 41.0}, {})
    j = NAMES.index("y")
    assert answer.error == pytest.approx(math.sqrt(covariance[j, j] / 20_000), rel=0.03)
    assert abs(answer.mean - mean[j]) < 4 * answer.error
    assert answer.quantiles[0.5] == pytest.approx(mean[j], abs=0.1 * math.sqrt(covariance[j, j]))


@pytest.mark.parametrize(
    ("ask", "error", "words"),
    [
        (lambda: distribution(line(), "q", {"x": 1.0}, generator=generator()), MisuseError, "no variable 'q'"),
        (lambda: distribution(line(), "x", {"x": 1.0}, generator=generator()), MisuseError, "set and asked for"),
        (lambda: conditional(line(), "y", {}, {"y": 1.0}, generator=generator()), MisuseError, "given and asked for"),
        (lambda: conditional(line(), "y", {}, {"q": 1.0}, generator=generator()), MisuseError, "names q"),
        (lambda: conditional(line(), "y", {}, {"w": math.nan}, generator=generator()), DataError, "w is not a finite"),
        (lambda: conditional(bits(), "c", {}, {"d": 0.5}, generator=generator()), DataError, "none of its levels"),
        (lambda: counterfactual_interval(line(), {"x": 1.0}, {}, generator=generator()), MisuseError, "m, w, y, z"),
    ],
)
def test_a_wrong_question_is_answered(ask: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        ask()


def test_what_a_row_leaves_open_is_settled() -> None:
    """P(c had been 1 under do(a = 1) | the row) by Gumbel-max, which for two levels is one logistic threshold."""
    record = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 0.0}
    model = bits()
    rows = torch.tensor([list(record.values())] * 20_000, dtype=torch.float64)
    changed = model.counterfactual(rows, {"a": 1.0, "b": 0.0}, generator())
    bias, weights = LOGITS["c"]
    before, after = (1 / (1 + math.exp(-bias - shift)) for shift in (weights["b"], weights["a"]))
    # c = 1 iff its uniform is below its probability; it was not below `before`
    assert float(changed[:, 2].mean()) == pytest.approx(max(after - before, 0) / (1 - before), abs=0.015)
    up = model.counterfactual(rows, {"b": 1.0, "a": 0.0}, generator())
    assert torch.equal(up, rows)  # nothing moved
    found = counterfactual_interval(model, record, {"a": 1.0}, generator=generator())
    assert found.interval["b"] == (1.0, 1.0)  # a raises b, which was 1 already: monotone
    assert "noise of b, c, d" in found.covers


def test_an_interval_covers_less_than_it_says() -> None:
    """Bootstrap intervals of counterfactuals on a line, over tables: the truth keeps the row's own noise."""
    truth, record = line(), dict(zip(NAMES, line().sample(1, None, generator(5))[0].tolist(), strict=True))
    changed = truth.counterfactual(torch.tensor([list(record.values())], dtype=torch.float64), {"x": 45.0})[0]
    tables, hits = count(20, 200), 0
    for seed in range(tables):
        frame = pd.DataFrame(truth.sample(120, None, generator(100 + seed)).numpy(), columns=list(NAMES))
        model = fit(frame, GRAPH, "linear", generator=generator(seed)).model
        others = ensemble(frame, GRAPH, "linear", members=39, generator=generator(seed))
        found = counterfactual_interval(model, record, {"x": 45.0}, others=others, level=0.9, generator=generator())
        low, high = found.interval["w"]
        hits += low <= float(changed[NAMES.index("w")]) <= high
    slack = 3 * math.sqrt(0.9 * 0.1 / tables)
    assert abs(hits / tables - 0.9) < slack
    assert "parameters (bootstrap, 39 models)" in found.covers


def test_paths_are_explained_wrongly() -> None:
    told = " ".join(explain(GRAPH, {"x": 1.0}, "w"))
    assert "x moves w along x -> m -> y -> w." in told
    assert "z causes both x and w" in told
    cut = " ".join(explain(GRAPH, {"x": 1.0, "m": 0.0}, "w"))
    assert "x -> m -> y -> w carries nothing from x: it is cut at m." in cut
    assert "No directed path leads from x to w under this action" in cut
    assert "m moves w along m -> y -> w." in cut
    assert explain(GRAPH, {"w": 1.0}, "z") == (
        "No directed path leads from w to z under this action: it moves nothing there.",
    )
    shifted = " ".join(explain(GRAPH, Intervention.shift(x=1.0), "w"))
    assert "cuts the arrows" not in shifted
    assert "x is shifted" in shifted
    law = Intervention.replace(m=Law.normal(0.0, 1.0), x=Law.normal(0.0, 1.0))
    assert "it is cut at m" in " ".join(explain(GRAPH, law, "y"))
    assert len(SLOPES) == 5


def test_a_thousand_paths_are_all_told() -> None:
    layers = [[f"{letter}{k}" for k in range(4)] for letter in "bcdef"]
    edges = [("a", name) for name in layers[0]] + [(name, "g") for name in layers[-1]]
    for above, below in pairwise(layers):
        edges += list(product(above, below))
    told = explain(CausalGraph.dag(edges), {"a": 1.0}, "g")
    assert len(told) == 13
    assert "988 other paths" in told[-1]
