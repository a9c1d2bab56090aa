"""What would go wrong with a file: a ragged line filled up, text guessed to be missing, a column renamed in
silence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from causaldao.client.data.sources import read
from causaldao.errors import DataError


def csv(folder: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_numbers_are_numbers_and_text_stays_text(tmp_path: Path) -> None:
    frame = read(csv(tmp_path, 'a,b,c\n1,0.5,x\n-2e3, 7 ,"y, z"\n'))
    assert frame.columns.tolist() == ["a", "b", "c"]
    assert frame["a"].tolist() == [1.0, -2000.0]
    assert frame["b"].dtype == np.float64
    assert frame["b"].tolist() == [0.5, 7.0]
    assert frame["c"].tolist() == ["x", "y, z"]


def test_only_an_empty_cell_is_missing(tmp_path: Path) -> None:
    frame = read(csv(tmp_path, "a,b\n1,NA\n,2\n"))
    assert np.isnan(frame["a"].to_numpy()[1])
    assert frame["b"].tolist() == ["NA", "2"]


def test_one_word_among_numbers_leaves_the_column_as_it_was_written(tmp_path: Path) -> None:
    assert read(csv(tmp_path, "a\n1\ntwo\n003\n"))["a"].tolist() == ["1", "two", "003"]


def test_levels_that_look_like_numbers_can_be_kept(tmp_path: Path) -> None:
    assert read(csv(tmp_path, "a,b\n01,1\n10,2\n"), text=["a"])["a"].tolist() == ["01", "10"]


def test_two_columns_of_one_name_are_both_kept_for_the_check(tmp_path: Path) -> None:
    assert read(csv(tmp_path, "a,b,a\n1,2,3\n")).columns.tolist() == ["a", "b", "a"]


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_the_data(tmp_path: Path) -> None:
    frame = read(csv(tmp_path, b"\xef\xbb\xbfa,b\r\n1,2\r\n"))
    assert frame.to_dict("list") == {"a": [1.0], "b": [2.0]}


@pytest.mark.parametrize("text", ["a,b\n", "a,b"])
def test_a_header_alone_is_a_table_without_records(tmp_path: Path, text: str) -> None:
    assert read(csv(tmp_path, text)).shape == (0, 2)


@pytest.mark.parametrize("text", ["", "\n", "\n1,2\n", ",\n1,2\n"])
def test_a_file_without_a_header_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="header"):
        read(csv(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n3\n", "a,b\n1,2,3\n", b"a,b\n1,\xff\xfe\n", 'a,b\n1,"2\n', b"\xff\xfea,b\n", 'a,"b\n1,2\n'],
)
def test_a_file_that_is_not_rectangular_text_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(DataError, match=r"data\.csv cannot be read as csv"):
        read(csv(tmp_path, text))


def test_an_absent_file_and_an_unknown_suffix_name_their_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="check the path"):
        read(tmp_path / "absent.csv")
    with pytest.raises(DataError, match=r"\.csv, \.parquet"):
        read(csv(tmp_path, "a\n1\n", "data.xlsx"))


def test_parquet_gives_the_same_table_as_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": [True, False], "c": [0.5, None], "d": ["x", "y"], "e": ["1", "2"]})
    frame.to_parquet(tmp_path / "data.parquet")
    read_back = read(tmp_path / "data.parquet")
    assert [str(kind) for kind in read_back.dtypes] == ["float64", "float64", "float64", "object", "float64"]
    assert read_back["b"].tolist() == [1.0, 0.0]
    assert np.isnan(read_back["c"].to_numpy()[1])


def test_parquet_with_one_name_twice_is_kept_for_the_check(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet").columns.tolist() == ["a", "a"]


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read(csv(tmp_path, "a,b\n1,2\n", "data.parquet"))


def test_dates_stay_dates_so_that_the_check_reports_them(tmp_path: Path) -> None:
    pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}).to_parquet(tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet")["a"].dtype == object
