"""The first hour of a node: a look at its table, its keys, and a ``node.toml`` to edit. Nothing is sent."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causaldao.client.config import NODE_FILE, NodeConfig
from causaldao.client.data.profile import Guess, draft, guess, profile
from causaldao.client.data.query import require_url
from causaldao.client.data.sources import batches, persons_twice
from causaldao.client.overview import there
from causaldao.errors import ConfigurationError, DataError
from causaldao.files import write_text


@dataclass(frozen=True)
class Begun:
    """A node that is ready to be written."""

    folder: Path
    text: str
    guesses: tuple[Guess, ...]

    @property
    def offered(self) -> tuple[Guess, ...]:
        return tuple(found for found in self.guesses if found.kind)

    @property
    def left_out(self) -> tuple[Guess, ...]:
        return tuple(found for found in self.guesses if not found.kind)

    def write(self) -> dict[str, str]:
        """Make the keys and write ``node.toml`` last, so that it stands for the whole; returns the ids of the keys."""
        from causaldao.client.enrolment import make_keys

        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = make_keys(self.folder)
        try:
            write_text(self.folder / NODE_FILE, self.text, 0o600)  # its comments tell of the rows
        except OSError as error:
            raise ConfigurationError(f"{self.folder / NODE_FILE} cannot be written: {error.strerror}.") from error
        return {"signing": keys.signing.id, "witness": keys.witness.id}


def begin(folder: Path, name: str, dataset: str, source: Mapping[str, Any], epsilon: float) -> Begun:
    """Profile a table and draft the node's file; ``source`` is its [source] table, relative to this process's folder.

    Raises
    ------
    ConfigurationError
        the folder holds a node already, or a value is not as it must be.
    DataError
        the table cannot be read, or a cohort view has more than one row for a person.
    """
    _require_new(folder)
    lifetime = {"epsilon": epsilon}
    given = {"name": name, "dataset": dataset, "source": _absolute(source), "lifetime": lifetime}
    config = NodeConfig.parse(given, "node init")
    view = config.table.cohort_view
    twice = persons_twice(config.table, folder) if view is not None else 0
    if twice:
        raise DataError(
            f"{twice} rows of the cohort view {view!r} are a further row of a person who has one already: privacy is "
            "that of a row, so make the view one row for each person."
        )
    guesses = tuple(guess(seen, omop=view is not None) for seen in profile(batches(config.table, folder)))
    text = draft(name, dataset, config.table, guesses, epsilon)
    NodeConfig.parse(tomllib.loads(text), NODE_FILE)
    return Begun(folder, text, guesses)


def _require_new(folder: Path) -> None:
    if (folder / NODE_FILE).exists():
        raise ConfigurationError(
            f"{folder} holds a node already ({', '.join(there(folder))}), and nothing of it is overwritten: edit its "
            f"{NODE_FILE}, go on with causaldao node join, or name another folder."
        )


def _absolute(source: Mapping[str, Any]) -> dict[str, Any]:
    """The source with whole paths, so that the node can be started from anywhere."""
    value = dict(source)
    if "path" in value:
        value["path"] = str(Path(value["path"]).resolve())
    if "url" in value:
        url = require_url(value["url"])
        if url.get_backend_name() == "sqlite":
            value["url"] = url.set(database=str(Path(str(url.database)).resolve())).render_as_string()
    return value
