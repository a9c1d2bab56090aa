"""`discover` as it is called from Python: a table as well as evidence, and its docstring's example."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

import causaldao
from causaldao.errors import DataError, MisuseError
from causaldao.models import discovery
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.frames import FEATURES, evidence_of
from tests.models.random_models import sample, weights


def test_the_example_in_the_docstring_does_not_run() -> None:
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for example in finder.find(discovery.discover, "discover"):
        runner.run(example)
    assert runner.tries >= 7
    assert runner.failures == 0


def test_a_table_gives_another_graph_than_its_evidence() -> None:
    rng = np.random.default_rng(0)
    frame = sample(rng, weights(rng, 6, 2.0), 500)
    for method in discovery.METHODS:
        assert causaldao.discover(frame, method) == causaldao.discover(Evidence.from_data(frame), method)


def test_a_feature_map_that_is_not_there_is_passed_over() -> None:
    rng = np.random.default_rng(0)
    frame = sample(rng, weights(rng, 3, 2.0), 50)
    with pytest.raises(MisuseError, match=f"no feature map 'fouriers'.*{', '.join(FEATURES)}"):
        causaldao.discover(frame, features="fouriers")
    with pytest.raises(MisuseError, match="no options \\['size'\\]"):
        evidence_of(frame, size=3)
    with pytest.raises(DataError, match="'v01' holds something that is not a number"):
        causaldao.discover(frame.assign(v01="low"))


def test_evidence_is_read_as_if_it_had_other_features(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    frame = sample(rng, weights(rng, 3, 2.0), 50)
    monkeypatch.setattr("causaldao.models.discovery.frames.FEATURES", {**FEATURES, "squares": lambda frame: frame})
    with pytest.raises(MisuseError, match="Give the table"):
        evidence_of(Evidence.from_data(frame), "squares")
    assert evidence_of(frame, "squares") is frame
