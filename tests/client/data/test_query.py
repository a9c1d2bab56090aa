"""What would go wrong with a database: a query that writes, a password that is copied with a file, a person twice."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from causaldao.client.data.query import frames, require_select, require_url, require_view
from causaldao.client.data.sources import Source, batches, load, persons_twice
from causaldao.errors import CausalDAOError, ConfigurationError, DataError

ROWS = [(1, 34, 8507, "a"), (2, None, 8532, "b"), (3, 51, 8532, "c")]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "ward.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE person (person_id INT, age INT, gender_concept_id INT, note TEXT)")
        connection.executemany("INSERT INTO person VALUES (?, ?, ?, ?)", ROWS)
        connection.execute("CREATE VIEW cohort AS SELECT person_id, age, gender_concept_id FROM person")
    connection.close()
    return path


def source(path: Path, **what: Any) -> Source:
    return Source(url=f"sqlite:///{path}", **what)


WRITING = {
    "two statements": "SELECT 1; SELECT 2",
    "a delete after a select": "SELECT 1; DELETE FROM person",
    "a delete": "DELETE FROM person",
    "a delete in a WITH": "WITH gone AS (DELETE FROM person RETURNING *) SELECT * FROM gone",
    "a table made": "SELECT * INTO copy FROM person",
    "a comment before": "/* SELECT */ DROP TABLE person",
    "a pragma": "PRAGMA writable_schema = 1",
    "nothing": " ; ",
    "an escape string": r"SELECT E'\'' ; DELETE FROM person --'",
}


@pytest.mark.parametrize("case", WRITING)
def test_a_query_that_does_more_than_read_is_refused(case: str, database: Path) -> None:
    with pytest.raises(ConfigurationError):
        require_select(WRITING[case])
    with pytest.raises(ConfigurationError):
        list(frames(f"sqlite:///{database}", WRITING[case], database.parent))
    with pytest.raises(ValidationError):
        source(database, query=WRITING[case])


@pytest.mark.parametrize(
    "query",
    [
        "SELECT age FROM person;",
        "  with p as (select * from person) select age from p",
        "SELECT age FROM person WHERE note <> 'a; DELETE FROM person' -- DROP\n",
        'SELECT age AS "update" FROM person',
        "SELECT age /* ; DROP */ FROM person",
    ],
)
def test_a_query_that_reads_is_taken(query: str, database: Path) -> None:
    assert load(source(database, query=query), database.parent).shape[1] == 1


def test_what_the_check_would_miss_the_database_refuses(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causaldao.client.data.query.require_select", lambda query: query)
    for query in ("DELETE FROM person", "DROP TABLE person", "SELECT 1; DELETE FROM person"):
        with pytest.raises(DataError, match="did not answer"):
            list(frames(f"sqlite:///{database}", query, database.parent))
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM person").fetchone() == (3,)
    connection.close()


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url", [f"postgresql://reader:{SECRET}@db/ward", f"postgresql://reader@db/ward?password={SECRET}"]
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="password_env") as caught:
        require_url(url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["", "ward.db", "mysql://db/ward", "sqlite://", "oracle+x://db"])
def test_a_url_of_no_database_that_is_read_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="URL"):
        require_url(url)


def test_a_password_variable_that_is_not_set_is_named(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARD_PASSWORD", raising=False)
    with pytest.raises(ConfigurationError, match="'WARD_PASSWORD'"):
        load(source(database, query="SELECT 1", password_env="WARD_PASSWORD"), database.parent)
    monkeypatch.setenv("WARD_PASSWORD", SECRET)
    assert len(load(source(database, query="SELECT 1", password_env="WARD_PASSWORD"), database.parent)) == 1


def test_a_mistyped_file_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no database file"):
        load(source(tmp_path / "wrad.db", query="SELECT 1"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_file_is_taken_from_the_nodes_folder(database: Path) -> None:
    relative = Source(url="sqlite:///ward.db", query="SELECT age FROM person")
    assert len(load(relative, database.parent)) == 3


def test_an_unknown_column_is_told_without_a_traceback(database: Path) -> None:
    with pytest.raises(DataError, match="no such column: agee"):
        load(source(database, query="SELECT agee FROM person"), database.parent)


def test_a_database_that_is_away_is_told(tmp_path: Path) -> None:
    away = Source(url="postgresql://reader@127.0.0.1:1/ward", query="SELECT 1")
    with pytest.raises(CausalDAOError, match=r"did not answer|causaldao\[postgres\]"):
        load(away, tmp_path)


def test_a_driver_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigurationError, match=r"causaldao\[postgres\]"):
        load(Source(url="postgresql://reader@127.0.0.1:1/ward", query="SELECT 1"), tmp_path)


def test_columns_are_read_as_a_file_would_be(database: Path) -> None:
    frame = load(
        source(database, query="SELECT age, note, age AS age FROM person WHERE note LIKE '%' "), database.parent
    )
    assert frame.columns.tolist() == ["age", "note", "age"]
    assert frame.iloc[:, 0].dtype == np.float64
    assert np.isnan(frame.iloc[1, 0])
    assert frame["note"].tolist() == ["a", "b", "c"]
    empty = load(source(database, query="SELECT age FROM person WHERE 1 = 0"), database.parent)
    assert empty.shape == (0, 1)


def test_a_cohort_view_never_shows_who_is_who(database: Path) -> None:
    view = source(database, cohort_view="cohort")
    assert load(view, database.parent).columns.tolist() == ["age", "gender_concept_id"]
    assert [frame.columns.tolist() for frame in batches(view, database.parent)][-1] == ["age", "gender_concept_id"]
    assert persons_twice(view, database.parent) == 0


def test_a_person_with_two_rows_is_counted(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO person VALUES (1, 35, 8507, 'again')")
    connection.close()
    assert persons_twice(source(database, cohort_view="cohort"), database.parent) == 1


def test_a_view_without_person_id_is_refused(database: Path) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE VIEW nameless AS SELECT age FROM person")
    connection.close()
    with pytest.raises(DataError, match="person_id"):
        persons_twice(source(database, cohort_view="nameless"), database.parent)


@pytest.mark.parametrize("view", ["cohort; DROP TABLE person", "a.b.c", "", "co hort", 'co"hort', "(SELECT 1)"])
def test_a_view_is_a_name(view: str) -> None:
    with pytest.raises(ConfigurationError):
        require_view(view)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"path": "a.csv", "url": "sqlite:///a.db"},
        {"url": "sqlite:///a.db"},
        {"query": "SELECT 1"},
        {"url": "sqlite:///a.db", "query": "SELECT 1", "cohort_view": "v"},
        {"path": "a.csv", "password_env": "X"},
        {"path": "a.csv", "pasword": "X"},
    ],
    ids=str,
)
def test_a_source_is_one_place(value: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Source.model_validate(value)
