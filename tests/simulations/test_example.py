"""The newcomer's example: a study that hospitals could really run, and tables that fit it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from causaldao.client.data.checks import require
from causaldao.decisions import require_members
from causaldao.errors import ConfigurationError, MisuseError
from causaldao.simulations.datasets import load
from causaldao.simulations.example import HOSPITALS, NAME, write_example
from causaldao.study import Study


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, list[Path]]:
    return write_example(tmp_path_factory.mktemp("example"))


def test_the_studys_file_is_another_study_or_a_simulations(example: tuple[Study, list[Path]]) -> None:
    study, paths = example
    text = (paths[0].parent / "study.toml").read_text()
    assert Study.from_toml(text, "study.toml").hash == study.hash
    assert study.name == NAME
    assert not study.study.simulation  # else a node whose file says insecure_seed would draw seeded noise
    assert "rand-hie" not in text.replace(NAME, "")  # no line of the scenario's own stayed behind
    assert study.training.rounds == 2  # each change of the scenario was made
    assert study.members.deadline == 600.0
    assert all(variable.unit == "" for variable in study.dictionary.variables)


def test_three_members_are_too_few_for_the_study(example: tuple[Study, list[Path]]) -> None:
    require_members(example[0], 3)


def test_a_hospitals_table_does_not_fit_the_study(example: tuple[Study, list[Path]]) -> None:
    study, paths = example
    assert [path.stem for path in paths] == list(HOSPITALS[:3])
    for path in paths:
        frame = pd.read_csv(path)
        require(frame, study.dictionary)
        assert study.members.n_min <= len(frame) <= study.members.n_max


def test_a_record_is_in_two_hospitals_or_in_none(example: tuple[Study, list[Path]]) -> None:
    dealt = pd.concat([pd.read_csv(path) for path in example[1]])
    whole = load("rand-hie")
    columns = list(whole.columns)
    ordered = [table.sort_values(columns).reset_index(drop=True) for table in (dealt[columns], whole)]
    pd.testing.assert_frame_equal(*ordered, check_dtype=False)


@pytest.mark.parametrize("members", [2, 8, -1])
def test_an_example_for_a_number_of_hospitals_that_cannot_be(tmp_path: Path, members: int) -> None:
    with pytest.raises(MisuseError, match=r"\[3, 7\]"):
        write_example(tmp_path / "example", members)
    assert not (tmp_path / "example").exists()


def test_a_folder_with_something_in_it_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text("mine")
    with pytest.raises(ConfigurationError, match="not empty"):
        write_example(tmp_path)
    assert (tmp_path / "study.toml").read_text() == "mine"
