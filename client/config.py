"""The node's own files: ``node.toml``, which a person edits, and ``federation.json``, which joining writes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from causaldao.client.data.mapping import Column
from causaldao.client.data.query import PERSON
from causaldao.client.data.sources import Source
from causaldao.dictionary import Offered, require_names
from causaldao.errors import ConfigurationError
from causaldao.signing import NAME

NODE_FILE = "node.toml"
FEDERATION_FILE = "federation.json"
_PINNED = ("federation", "coordinator")
_SLUG = f"^{NAME.pattern}$"


class Lifetime(BaseModel):
    """The most a data set may ever spend, over all studies."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epsilon: Annotated[float, Field(gt=0)] = 10.0
    delta: Annotated[float, Field(gt=0, lt=0.01)] = 1e-5


class NodeConfig(BaseModel):
    """What a node is and where its rows are.

    ``dataset`` is the name its budget is kept under, whatever file holds it. ``data`` is a file, ``source`` any source;
    one of them is given. ``mapping`` is what is offered, by the names of variables; empty, it offers every column under
    its own name. ``federation`` and the ``coordinator``'s key are empty until the node has joined; so is
    the ``origin``, the name of the federation's ledger. ``environments`` says by a study's name under which of its
    conditions the rows were gathered, ``lacks`` which variables are not in them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=_SLUG)]
    federation: Annotated[str, Field(pattern=f"^({NAME.pattern})?$")] = ""
    coordinator: str = ""
    origin: str = ""
    data: str | None = None
    source: Source | None = None
    dataset: Annotated[str, Field(min_length=1, max_length=200)]
    mapping: dict[str, Column] = {}
    environments: dict[str, str] = {}
    lacks: tuple[str, ...] = ()
    share_columns: bool = False
    approved: tuple[str, ...] = ()
    lifetime: Lifetime = Lifetime()
    knowledge: str | None = None
    insecure_seed: int | None = None

    @classmethod
    def parse(cls, value: Mapping[str, Any], source: str) -> NodeConfig:
        """A configuration from a mapping such as TOML gives; every fault is reported at once."""
        problems = list(_together(value))
        try:
            config = cls.model_validate(value)
        except ValidationError as error:
            problems += [
                f"{'.'.join(map(str, e['loc']))}: "
                + e["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
                for e in error.errors()
            ]
        if problems:
            raise ConfigurationError(
                f"{source} has {len(problems)} fault(s):", problems=[f"{source}: {problem}" for problem in problems]
            )
        return config

    @classmethod
    def load(cls, folder: Path, *, joined: bool = True) -> NodeConfig:
        """The configuration of the node in ``folder``; ``joined`` asks for one that belongs to a federation.

        Raises
        ------
        ConfigurationError
            a file that is absent or wrong, two files that disagree, or a node that has not joined.
        """
        value = _toml(folder / NODE_FILE)
        pinned = _federation(folder / FEDERATION_FILE)
        for key in pinned:
            if value.setdefault(key, pinned[key]) != pinned[key]:
                raise ConfigurationError(
                    f"{NODE_FILE} names the {key} {value[key]!r}, but this node joined {pinned[key]!r} "
                    f"({FEDERATION_FILE}): take {key} out of {NODE_FILE}, or make another node for the other "
                    "federation."
                )
        config = cls.parse(value, NODE_FILE)
        if joined and not config.federation:
            raise ConfigurationError(
                f"The node in {folder} belongs to no federation yet: run causaldao node join {folder} TOKEN first, "
                "with the token that its operator gave you."
            )
        return config

    @property
    def table(self) -> Source:
        """Where the rows are."""
        return self.source if self.source is not None else Source(path=self.data)

    @property
    def offered(self) -> tuple[Offered, ...]:
        """What others may know of the variables."""
        return tuple(
            column.offered(name, share_column=self.share_columns) for name, column in sorted(self.mapping.items())
        )


def read_text(path: Path) -> str:
    """A text file; ConfigurationError if it is absent or no UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def _together(value: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with keys taken together."""
    if "data" in value and "source" in value:
        yield 'data: leave out one of data and [source]; data = "FILE" is short for [source] with path = "FILE"'
    elif "data" not in value and "source" not in value:
        yield 'data: missing; give data = "FILE", or a [source] table'
    for key, other in (_PINNED, reversed(_PINNED)):
        if key in value and other not in value:
            yield f"{other}: missing beside {key}; give both, or join a federation, which writes them"
    mapping = value.get("mapping")
    if isinstance(mapping, dict):
        try:
            require_names(mapping)
        except ConfigurationError as error:
            yield f"mapping: {error.message}"
        for name, column in mapping.items():
            if isinstance(column, dict) and str(column.get("column", "")).casefold() == PERSON:
                yield f"mapping.{name}: {PERSON} says who somebody is; it is never a variable"


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}.") from error


def _federation(path: Path) -> dict[str, Any]:
    """What joining wrote; empty if the node has not joined."""
    if not path.exists():
        return {}
    try:
        value = json.loads(read_text(path))
        return {key: str(value[key]) for key in (*_PINNED, "origin")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{path} is not what joining writes ({error}): restore it from a copy, or join again."
        ) from error
