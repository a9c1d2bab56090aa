"""Front doors and instruments against their definitions, and against models with explicit latents."""

from __future__ import annotations

import numpy as np
import pytest

from causaldao.errors import MisuseError, NotIdentifiable
from causaldao.models.criteria import Instrument, front_door_set, instruments, is_front_door_set
from causaldao.models.graph import CausalGraph
from causaldao.models.identification import identify
from tests.counts import count
from tests.models.latent_models import BinaryModel, random_admg
from tests.models.test_adjustment import linear, subsets

FRONT_DOOR = CausalGraph.admg([("x", "m"), ("m", "y")], [("x", "y")])


def test_a_front_door_set_gives_another_value_or_is_not_found() -> None:
    rng = np.random.default_rng(1)
    found = larger = missing = 0
    for _ in range(count(150, 3000)):
        graph = random_admg(rng, int(rng.integers(3, 6)), rng.uniform(0.4, 0.7), rng.uniform(0.1, 0.3))
        x, y = (str(name) for name in rng.choice(graph.nodes, 2, replace=False))
        if y not in graph.descendants(x):
            continue
        valid = [z for z in subsets(sorted({*graph.nodes} - {x, y})) if is_front_door_set(graph, x, y, z)]
        model = BinaryModel.draw(rng, graph)
        joint = model.under()
        for mediators in valid:
            right = model.effect((x,), (y,), ())
            np.testing.assert_allclose(by_hand(joint.names, joint.values, x, y, mediators), right, atol=1e-9)
        try:
            chosen = front_door_set(graph, x, y)
        except NotIdentifiable:
            assert not valid, (graph, x, y)
            missing += 1
            continue
        assert tuple(sorted(chosen)) in valid
        assert not any(is_front_door_set(graph, x, y, chosen - {name}) for name in chosen)
        found += 1
        larger += len(chosen) > 1
    assert min(found, missing) >= count(3, 50)
    assert larger >= count(0, 3)


def by_hand(names: tuple[str, ...], joint: np.ndarray, x: str, y: str, mediators: tuple[str, ...]) -> np.ndarray:
    """The front-door formula with axes (x, y), the mediators as one variable."""
    kept = [names.index(name) for name in (x, y, *mediators)]
    others = tuple(axis for axis in range(len(names)) if axis not in kept)
    order = sorted(kept)
    p = joint.sum(axis=others).transpose([order.index(axis) for axis in kept]).reshape(2, 2, -1)
    p_x, p_xm = p.sum(axis=(1, 2)), p.sum(axis=1)
    inner = np.einsum("xym,x->ym", p / p_xm[:, None], p_x)
    result: np.ndarray = np.einsum("xm,ym->xy", p_xm / p_x[:, None], inner)
    return result


def test_a_confounded_mediator_opens_a_front_door() -> None:
    assert front_door_set(FRONT_DOOR, "x", "y") == {"m"}
    for arc in (("x", "m"), ("m", "y")):
        shut = CausalGraph.admg(FRONT_DOOR.directed, [("x", "y"), arc])
        with pytest.raises(NotIdentifiable, match="front door from x to y"):
            front_door_set(shut, "x", "y")
    beside = CausalGraph.admg([*FRONT_DOOR.directed, ("x", "y")], [("x", "y")])
    assert not is_front_door_set(beside, "x", "y", {"m"})


def test_a_mediator_that_only_helps_another_is_left_out() -> None:
    """b is on no path from x, but without it m <-> b -> y is a back door."""
    graph = CausalGraph.admg([("x", "m"), ("m", "y"), ("b", "y")], [("x", "y"), ("m", "b")])
    assert not is_front_door_set(graph, "x", "y", {"m"})
    assert front_door_set(graph, "x", "y") == {"b", "m"}


def test_a_mediator_stays_for_one_that_is_left_out_after_it() -> None:
    """Of w, c -> y nothing is needed, but c cannot go as long as w is there: w <- c -> y is a back door."""
    graph = CausalGraph.dag([("c", "y"), ("c", "w")], nodes=["x", "c", "w", "y"])
    assert not is_front_door_set(graph, "x", "y", {"w"})
    assert front_door_set(graph, "x", "y") == set()


def test_an_instrument_gives_another_ratio_than_the_total_effect() -> None:
    rng = np.random.default_rng(2)
    conditional = plain = 0
    for _ in range(count(100, 2000)):
        graph = random_admg(rng, int(rng.integers(3, 7)), rng.uniform(0.2, 0.5), rng.uniform(0.05, 0.25))
        x, y = (str(name) for name in rng.choice(graph.nodes, 2, replace=False))
        covariance, effects = linear(graph, rng)
        index = {name: i for i, name in enumerate(graph.nodes)}
        for instrument in instruments(graph, x, y, assume="linear"):
            given = [index[name] for name in sorted(instrument.given)]
            block = covariance[np.ix_([index[x], index[y]], [index[instrument.name]])][:, 0]
            if given:
                cross = covariance[np.ix_([index[x], index[y]], given)]
                inner = np.linalg.solve(covariance[np.ix_(given, given)], covariance[given, index[instrument.name]])
                block = block - cross @ inner
            assert abs(block[0]) > 1e-12, (graph, x, y, instrument)
            assert block[1] / block[0] == pytest.approx(effects[index[x], index[y]], abs=1e-7), (graph, instrument)
            conditional += bool(instrument.given)
            plain += not instrument.given
    assert min(conditional, plain) >= 5


def test_no_instrument_is_missed_that_needs_no_conditions() -> None:
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(count(60, 1000)):
        graph = random_admg(rng, 4, 0.4, 0.2)
        x, y = (str(name) for name in rng.choice(graph.nodes, 2, replace=False))
        covariance, effects = linear(graph, rng)
        index = {name: i for i, name in enumerate(graph.nodes)}
        found = {instrument.name for instrument in instruments(graph, x, y, assume="linear")}
        for z in {*graph.nodes} - {x, y} - graph.descendants(x):
            to_x, to_y = covariance[index[z], index[x]], covariance[index[z], index[y]]
            serves = abs(to_x) > 1e-9 and abs(to_y - effects[index[x], index[y]] * to_x) < 1e-9
            assert not serves or z in found, (graph, x, y, z)
            seen.add(serves)
    assert seen == {True, False}


def test_an_instrument_is_used_without_saying_what_it_takes() -> None:
    graph = CausalGraph.admg([("z", "x"), ("x", "y")], [("x", "y")])
    with pytest.raises(MisuseError, match=r"assume=''.*assume='linear'"):
        instruments(graph, "x", "y")
    assert instruments(graph, "x", "y", assume="linear") == (Instrument("z", frozenset()),)
    with pytest.raises(NotIdentifiable):
        identify(graph, "x", "y")


def test_an_instrument_with_a_common_cause_of_its_own_goes_unconditioned() -> None:
    graph = CausalGraph.admg([("w", "z"), ("w", "y"), ("z", "x"), ("x", "y")], [("x", "y")])
    assert instruments(graph, "x", "y", assume="linear") == (Instrument("z", frozenset({"w"})),)


@pytest.mark.parametrize(
    ("graph", "names", "message"),
    [
        (FRONT_DOOR, ("x", "q"), "no node q"),
        (FRONT_DOOR, ("x", "x"), "two roles"),
        (CausalGraph.cpdag([], [("x", "y")]), ("x", "y"), "direct every edge"),
    ],
)
def test_a_wrong_question_is_answered(graph: CausalGraph, names: tuple[str, str], message: str) -> None:
    with pytest.raises(MisuseError, match=message):
        front_door_set(graph, *names)
    with pytest.raises(MisuseError, match=message):
        instruments(graph, *names, assume="linear")
