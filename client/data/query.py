"""Reading an institution's table from its database, and nothing but reading.

SQLite and PostgreSQL, through SQLAlchemy. A query must be one SELECT (or WITH … SELECT) statement; besides, the
connection is opened read-only, so that the database refuses what this check may miss. Give the node an account of the
database that can only read, all the same.

OMOP: a view with one row for each person, of whatever columns the owner chose, and ``person_id``, which is dropped: it
shows that a row is a person and is never a variable. Names of columns are those of the OMOP Common Data Model v5.4
(https://ohdsi.github.io/CommonDataModel/cdm54.html, table PERSON).
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from causaldao.errors import ConfigurationError, DataError

PERSON = "person_id"
_DRIVERS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}
_WRITES = frozenset(
    {"INSERT", "UPDATE", "DELETE", "MERGE", "INTO", "TRUNCATE", "DROP", "ALTER", "CREATE", "GRANT", "ATTACH", "PRAGMA"}
)
# What is no code of the query: strings, quoted names, comments, PostgreSQL's dollar quotes
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|/\*.*?\*/|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$""", re.DOTALL)
_VIEW = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)?")
_ESCAPES = re.compile(r"\b[eE]'")
_BATCH = 65_536
_CONNECT_SECONDS = 10


def require_select(query: str) -> str:
    """The query without its last semicolon, if it is one statement that reads.

    Raises
    ------
    ConfigurationError
        more than one statement, a statement that does not begin with SELECT or WITH, or a word that writes.
    """
    text = query.strip().removesuffix(";").rstrip()
    if _ESCAPES.search(text):
        raise ConfigurationError("The query holds an escape string (E'…'): write it as a plain string, '…'.")
    bare = _QUOTED.sub(" ", text)
    if ";" in bare:
        raise ConfigurationError("The query holds more than one statement: give one SELECT, without a ';' inside.")
    words = re.findall(r"\w+", bare.upper())
    if not words or words[0] not in ("SELECT", "WITH"):
        raise ConfigurationError(
            f"The query begins with {words[0] if words else 'nothing'}: give one SELECT (or WITH … SELECT) statement; "
            "a node only reads."
        )
    writes = sorted(_WRITES & set(words))
    if writes:
        raise ConfigurationError(
            f"The query holds {', '.join(writes)}, and a node only reads. If that is the name of a column, write it in "
            "double quotes."
        )
    return text


def require_url(text: str) -> sa.URL:
    """The address of a database, without a password in it; ConfigurationError otherwise, which never shows the URL."""
    try:
        url = sa.make_url(text)
    except ArgumentError as error:
        raise ConfigurationError(
            "The database URL cannot be read: give, for example, sqlite:////data/ward.db or "
            "postgresql://reader@db.example.org/ward."
        ) from error
    if url.password is not None or {"password", "passfile"} & set(url.query):
        raise ConfigurationError(
            "The database URL holds a password, and files get copied: take it out, set it as an environment variable, "
            'and name that variable in node.toml: password_env = "WARD_DB_PASSWORD" (in [source]).'
        )
    if url.get_backend_name() not in _DRIVERS:
        raise ConfigurationError(
            f"The database URL is of kind {url.drivername!r}, expected one of {', '.join(_DRIVERS)}: export the table "
            "to a file instead."
        )
    if url.get_backend_name() == "sqlite" and not url.database:
        raise ConfigurationError("The database URL names no file: give, for example, sqlite:////data/ward.db.")
    return url


def require_view(view: str) -> str:
    """The SELECT over a view; ConfigurationError unless it is a plain name or SCHEMA.NAME."""
    if not _VIEW.fullmatch(view):
        raise ConfigurationError(f"The cohort view {view!r} is no name of a view: expected NAME or SCHEMA.NAME.")
    return f"SELECT * FROM {view}"


def frames(address: str, query: str, folder: Path, password_env: str | None = None) -> Iterator[pd.DataFrame]:
    """The result of a query in frames of object columns, at most 65,536 rows each; at least one frame, perhaps empty.

    A relative SQLite file is taken from ``folder``. The password, if any, is that of the environment variable
    ``password_env``.

    Raises
    ------
    ConfigurationError
        an address, a query or a password variable that is not as it must be.
    DataError
        the database cannot be reached, or refuses the query.
    """
    url, statement = require_url(address), require_select(query)
    engine = _engine(url, folder, _password(password_env))
    try:
        with engine.connect() as connection:
            reading = connection.execution_options(**_options(url))
            result = reading.exec_driver_sql(statement)
            names = list(result.keys())
            yield _frame([], names)
            for rows in result.partitions(_BATCH):
                yield _frame(rows, names)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise DataError(
            f"The database {url.render_as_string(hide_password=True)} did not answer the query: {reason}. Try the "
            "query in the database's own client with the node's account."
        ) from error
    finally:
        engine.dispose()


def _password(variable: str | None) -> str | None:
    if variable is None:
        return None
    if variable not in os.environ:
        raise ConfigurationError(
            f"The database's password is to come from the environment variable {variable!r}, which is not set: set it "
            "for the node's process, or take password_env out of node.toml."
        )
    return os.environ[variable]


def _engine(url: sa.URL, folder: Path, password: str | None) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        path = (folder / str(url.database)).resolve()
        if not path.is_file():
            raise DataError(f"There is no database file {path}: check the URL.")
        file = f"file:{quote(str(path))}?mode=ro"  # else SQLite would make an empty file for a mistyped name
        return sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(file, uri=True), poolclass=sa.NullPool)
    chosen = url.set(drivername=_DRIVERS["postgresql"])
    if password is not None:
        chosen = chosen.set(password=password)
    try:
        return sa.create_engine(chosen, poolclass=sa.NullPool, connect_args={"connect_timeout": _CONNECT_SECONDS})
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "Reading from PostgreSQL needs its driver: install it with pip install 'causaldao[postgres]'."
        ) from error


def _options(url: sa.URL) -> dict[str, Any]:
    # no_parameters: a '%' or ':' in the query is the query's own
    options: dict[str, Any] = {"no_parameters": True, "stream_results": True}
    return options if url.get_backend_name() == "sqlite" else {**options, "postgresql_readonly": True}


def _frame(rows: Sequence[Sequence[Any]], names: Sequence[str]) -> pd.DataFrame:
    columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    cells = {place: pd.Series([_plain(c) for c in column], dtype=object) for place, column in enumerate(columns)}
    frame = pd.DataFrame(cells, index=range(len(rows)))
    frame.columns = pd.Index(names)  # as the query names them, even twice the same
    return frame


def _plain(cell: Any) -> Any:
    return float(cell) if isinstance(cell, Decimal) else cell
