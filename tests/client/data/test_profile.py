"""What would go wrong with a first draft: names of people offered as levels, a large file whole in memory, a file that
cannot be read back.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from causaldao.client.config import NodeConfig
from causaldao.client.data import sources
from causaldao.client.data.profile import Guess, draft, guess, profile
from causaldao.client.data.sources import Source, batches
from causaldao.errors import DataError

CSV = """patient_id,age,Blut druck,sex,smoker,ward,code,mixed,born,none
1,34,120.5,M,0,A,1,1,2020-01-01,
2,56,NA,F,1,B,2,x,2020-01-02,
3,78,-9,F,0,C,2,2,2020-01-03,
"""


def guesses(folder: Path, text: str = CSV, name: str = "data.csv") -> dict[str, Guess]:
    (folder / name).write_text(text)
    return {found.column: found for found in map(guess, profile(batches(Source(path=name), folder)))}


def test_each_column_is_guessed(tmp_path: Path) -> None:
    found = guesses(tmp_path)
    assert {name: one.kind for name, one in found.items()} == {
        "patient_id": "", "age": "count", "Blut druck": "continuous", "sex": "binary", "smoker": "binary",
        "ward": "", "code": "binary", "mixed": "", "born": "", "none": "",
    }  # fmt: skip
    assert found["sex"].levels == {"F": 0.0, "M": 1.0}
    assert found["code"].levels == {"1": 0.0, "2": 1.0}
    assert found["Blut druck"].missing == ("NA",)
    assert "-9" in found["Blut druck"].note


def test_the_draft_can_be_read_back_and_says_nothing_of_units(tmp_path: Path) -> None:
    found = guesses(tmp_path, 'a "b",a_b,1st\n1.5,2.5,3.5\n-1,2,3\n')
    text = draft("north", 'ward "3"\n', Source(path="data.csv"), found.values(), 3.0)
    config = NodeConfig.parse(tomllib.loads(text), "node.toml")
    assert (config.dataset, config.lifetime.epsilon) == ('ward "3"\n', 3.0)
    assert {name: column.column for name, column in config.mapping.items()} == {
        "a_b": 'a "b"', "a_b_2": "a_b", "v_1st": "1st",
    }  # fmt: skip
    assert all(column.unit == "" for column in config.mapping.values())


def test_what_was_seen_stands_in_comments_only(tmp_path: Path) -> None:
    found = guesses(tmp_path)
    text = draft("north", "ward", Source(path="data.csv"), found.values(), 3.0)
    seen = [line for line in text.splitlines() if "34" in line or '"A"' in line]
    assert seen
    assert all(line.startswith("#") for line in seen)
    assert "stays on this machine" in text


def test_words_of_many_people_are_no_levels(tmp_path: Path) -> None:
    names = "name\n" + "".join(f"person {k}\n" for k in range(40))
    found = guesses(tmp_path, names)["name"]
    assert (found.kind, dict(found.levels)) == ("", {})
    assert "person" not in found.note


def test_a_line_break_in_a_name_starts_no_line_of_its_own(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x\n[mapping.evil]": ["a", "b", "c"]})
    found = [guess(seen) for seen in profile([frame])]
    text = draft("north", "ward", Source(path="d.csv"), found, 1.0)
    assert "mapping" not in tomllib.loads(text)


def test_a_large_file_is_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_BLOCK", 1 << 10)
    rows = "a,b\n" + "".join(f"{k},{k / 2}\n" for k in range(2000)) + "2000,x\n"
    (tmp_path / "data.csv").write_text(rows)
    parts = list(batches(Source(path="data.csv"), tmp_path))
    assert len(parts) > 5
    assert sum(map(len, parts)) == 2001
    first, second = profile(parts)
    assert (first.rows, first.low, first.high, first.whole) == (2001, 0.0, 2000.0, True)
    assert second.words == {"x"}


def test_parquet_is_profiled_as_well(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1, 2, None], "b": [True, False, True]}).to_parquet(tmp_path / "d.parquet")
    seen = profile(batches(Source(path="d.parquet"), tmp_path))
    assert [(s.name, s.rows, s.missing) for s in seen] == [("a", 3, 1), ("b", 3, 0)]


@pytest.mark.parametrize("text", ["a,b\n", "a,b", "", "a,a\n1,2\n", "a,b\n1\n", 'a,b\n1,"2\n'])
def test_a_table_that_cannot_be_profiled_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(DataError):
        profile(batches(Source(path="data.csv"), tmp_path))


OMOP: dict[str, list[Any]] = {
    "year_of_birth": [1950.0, 1960.0, 1970.0], "gender_concept_id": [8507.0, 8532.0, 0.0],
    "race_concept_id": [8527.0, 8516.0, 0.0], "ethnicity_concept_id": [38003563.0, 38003564.0, 38003564.0],
    "care_site_id": [1.0, 2.0, 3.0], "gender_source_value": ["M", "F", "U"], "hba1c": [5.5, 7.1, 6.0],
}  # fmt: skip


def test_the_columns_of_omop_are_known() -> None:
    found = {one.column: one for one in (guess(seen, omop=True) for seen in profile([pd.DataFrame(OMOP)]))}
    assert {name: one.kind for name, one in found.items()} == {
        "year_of_birth": "continuous", "gender_concept_id": "binary", "race_concept_id": "",
        "ethnicity_concept_id": "binary", "care_site_id": "", "gender_source_value": "", "hba1c": "continuous",
    }  # fmt: skip
    assert found["year_of_birth"].unit == "calendar year"
    levels = found["gender_concept_id"].levels
    assert (levels["8507"], levels["8532"]) == (levels["male"], levels["female"]) == (0, 1)
    assert "8527 White" in found["race_concept_id"].note
