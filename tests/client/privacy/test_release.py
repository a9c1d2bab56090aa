"""What would go wrong with evidence: a record that weighs more than the sensitivity, a count or a shape
that tells.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pandas as pd
import pytest

from causaldao.client.privacy.noise import NoiseSource
from causaldao.client.privacy.release import exact_moments, release_evidence
from causaldao.errors import DataError, MisuseError
from causaldao.models.discovery.evidence import Dictionary, Evidence, Variable
from tests.counts import count

SEED = b"causaldao release tests, seed 01"
RECORDS = count(2_000, 10_000)
DRAWS = count(400, 4_000)
VARIABLES = (
    Variable("age", "continuous", (18, 90)),
    Variable("bmi", "continuous", (-1e12, 3e12)),
    Variable("smoker", "binary", (0, 1)),
    Variable("visits", "count", (0, 400), transform="log1p"),
    Variable("tiny", "continuous", (-1e-9, 1e-9)),
)
NAMES = [variable.name for variable in VARIABLES]
CORNERS = [list(corner) for corner in product(*(variable.bounds for variable in VARIABLES))]
ODD = [-0.0, 0.0, 1e308, -1e308, 5e-324, math.inf, -math.inf, math.nan, 0.5, 1 - 2**-53, 1 + 2**-52]


def adversarial(rng: np.random.Generator, rows: int) -> pd.DataFrame:
    """Corners, records at the edge of the norm, odd floats, and random ones within and far beyond the
    bounds.
    """
    low, high = np.array([v.bounds for v in VARIABLES]).T
    inside = low + (high - low) * rng.random((rows, 5))
    beyond = inside + (high - low) * rng.standard_cauchy((rows, 5)) * 10.0 ** rng.integers(-12, 13, (rows, 1))
    corner = np.array(CORNERS)[rng.integers(0, len(CORNERS), rows)]
    edge = (low + high) / 2 + (high - low) / 2 * _direction(rng, rows) * math.sqrt(1.5) * (
        1 + rng.normal(0, 1e-3, (rows, 1))
    )
    odd = rng.choice(ODD, (rows, 5))
    kind = rng.integers(0, 5, (rows, 1))
    mixed = np.choose(kind, [inside, beyond, corner, edge, np.where(rng.random((rows, 5)) < 0.5, odd, inside)])
    return pd.DataFrame(mixed, columns=NAMES)


def _direction(rng: np.random.Generator, rows: int) -> np.ndarray:
    raw = rng.normal(size=(rows, 5))
    return np.asarray(raw / np.linalg.norm(raw, axis=1, keepdims=True))


@pytest.mark.parametrize(("clip", "lattice"), [(2.5, 1024), (6.0, 1024), (1.0001, 1024), (3.3, 16), (2.5, 65536)])
def test_no_record_weighs_more_than_the_sensitivity(clip: float, lattice: int) -> None:
    dictionary = Dictionary(VARIABLES, clip, lattice)
    frame = adversarial(np.random.default_rng(7), RECORDS // 5 if clip != 2.5 else RECORDS)
    bound = Fraction(clip) * lattice**2
    for place in range(len(frame)):
        matrix = exact_moments(frame.iloc[[place]], dictionary).astype(object)
        assert matrix.trace() <= bound  # the squared norm of the row, in Python's integers
        assert (matrix * matrix).sum() <= bound**2  # the squared Frobenius norm
        assert matrix[0, 0] == lattice**2


def test_adding_or_removing_a_record_moves_the_moments_by_its_own_outer_product() -> None:
    dictionary = Dictionary(VARIABLES, 2.5)
    frame = adversarial(np.random.default_rng(8), 300)
    whole = exact_moments(frame, dictionary)
    for place in range(0, 300, 3):
        without = exact_moments(frame.drop(index=place), dictionary)
        assert (whole - without == exact_moments(frame.iloc[[place]], dictionary)).all()


def test_the_fast_product_is_the_exact_one_in_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    dictionary = Dictionary(VARIABLES, 6.0, 65536)
    frame = adversarial(np.random.default_rng(9), 1000)
    whole = exact_moments(frame, dictionary)
    rows = dictionary.lattice_rows(
        frame.clip(*np.array([v.bounds for v in VARIABLES]).T, axis=1).fillna(
            {v.name: sum(v.bounds) / 2 for v in VARIABLES}
        )
    ).astype(object)
    assert (whole == rows.T @ rows).all()
    monkeypatch.setattr("causaldao.client.privacy.release._EXACT", 10 * 6 * 65536**2)
    assert (exact_moments(frame, dictionary) == whole).all()


def test_noise_has_the_declared_variance_on_and_off_the_diagonal() -> None:
    dictionary, frame = Dictionary(VARIABLES, 2.5), adversarial(np.random.default_rng(1), 50)
    exact, source, sigma = (
        exact_moments(frame, dictionary)[np.triu_indices(6)],
        NoiseSource.simulated(SEED),
        10**6,
    )
    drawn = np.stack([release_evidence(frame, dictionary, sigma, source) - exact for _ in range(DRAWS)]) / sigma
    diagonal = np.equal(*np.triu_indices(6))
    assert drawn[:, diagonal].var() == pytest.approx(1.0, rel=0.06)
    assert drawn[:, ~diagonal].var() == pytest.approx(0.5, rel=0.06)
    between = np.corrcoef(drawn.T) - np.eye(21)
    assert np.abs(between).max() < 5 / math.sqrt(DRAWS)


def test_the_shape_depends_on_the_dictionary_alone_even_without_records() -> None:
    dictionary, frame = Dictionary(VARIABLES, 2.5), adversarial(np.random.default_rng(2), 9)
    shapes = {release_evidence(frame.iloc[:n], dictionary, 10).shape for n in (0, 1, 9)}
    assert shapes == {(21,)}


def test_the_default_noise_is_fresh_entropy() -> None:
    dictionary, frame = Dictionary(VARIABLES, 2.5), adversarial(np.random.default_rng(3), 9)
    first, second = (release_evidence(frame, dictionary, 10**9) for _ in range(2))
    assert (first != second).all()


def test_a_simulated_release_repeats() -> None:
    dictionary, frame = Dictionary(VARIABLES, 2.5), adversarial(np.random.default_rng(3), 9)
    first, second = (release_evidence(frame, dictionary, 10**6, NoiseSource.simulated(SEED)) for _ in range(2))
    assert (first == second).all()


def test_one_unreadable_record_does_not_stop_a_release() -> None:
    dictionary = Dictionary((Variable("x"), Variable("y")), 3.0)
    frame = pd.DataFrame({"x": [0.1, 0.9, "n/a"], "y": [0.5, math.nan, math.inf]})
    assert exact_moments(frame, dictionary)[0, 0] == 3 * 1024**2
    assert release_evidence(frame, dictionary, 10).shape == (6,)


def test_what_is_released_is_read_back_as_evidence() -> None:
    dictionary = Dictionary((Variable("x"), Variable("y")), 3.0)
    frame = pd.DataFrame(np.random.default_rng(4).random((5000, 2)), columns=["x", "y"])
    triangle = release_evidence(frame, dictionary, 10**5, NoiseSource.simulated(SEED))
    evidence = Evidence.from_release(triangle, dictionary, 10**5)
    exact = Evidence.from_data(frame, dictionary)
    assert float((evidence.moments - exact.moments).abs().max()) < 6 * evidence.noise
    assert evidence.noise == 10**5 / 1024**2


def test_evidence_without_noise_is_never_released() -> None:
    with pytest.raises(MisuseError, match="sigma"):
        release_evidence(adversarial(np.random.default_rng(5), 3), Dictionary(VARIABLES, 2.5), 0)


def test_a_missing_column_is_a_data_error() -> None:
    with pytest.raises(DataError, match="'smoker'"):
        release_evidence(
            adversarial(np.random.default_rng(6), 3).drop(columns="smoker"), Dictionary(VARIABLES, 2.5), 10
        )
