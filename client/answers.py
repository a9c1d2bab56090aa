"""One slot, one answer: what the node has said in a study, kept so that it never says two things in one place.

A slot is (study, round, kind). The first request that is answered, or that privacy is spent for, binds it to the digest
of that request; the same request again gets the same bytes, another one is refused, since answering it would look like
equivocation. A request that is refused binds nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from causaldao.errors import RefusedError

_METADATA = sa.MetaData()
_SLOTS = sa.Table(
    "slots",
    _METADATA,
    sa.Column("study", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("reply", sa.LargeBinary),
)
_STUDIES = sa.Table(
    "studies",
    _METADATA,
    sa.Column("study", sa.Text, primary_key=True),
    sa.Column("document", sa.Text, nullable=False),
)


@dataclass(frozen=True)
class Slot:
    study: str
    round: int
    kind: str


class Answers:
    """The node's own answers in one SQLite file beside its privacy journal."""

    def __init__(self, path: Path) -> None:
        self._engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), poolclass=sa.NullPool)
        _METADATA.create_all(self._engine)

    def once(self, slot: Slot, base: str, produce: Callable[[], bytes]) -> bytes:
        """The stored reply of a slot, or the one that ``produce`` makes now.

        Raises
        ------
        RefusedError
            the slot was claimed by another request.
        """
        stored = self._find(slot, base)
        if stored is not None:
            return stored
        reply = produce()
        self.claim(slot, base)
        with self._engine.begin() as connection:
            empty = sa.and_(self._at(slot), _SLOTS.c.reply.is_(None))
            connection.execute(sa.update(_SLOTS).where(empty).values(reply=reply))
            return bytes(connection.execute(sa.select(_SLOTS.c.reply).where(self._at(slot))).scalar_one())

    def reply(self, slot: Slot) -> bytes | None:
        """What was answered in a slot, None if nothing was."""
        with self._engine.connect() as connection:
            data = connection.scalar(sa.select(_SLOTS.c.reply).where(self._at(slot)))
        return None if data is None else bytes(data)

    def keep_study(self, study: str, document: dict[str, Any]) -> None:
        """Remember the document of an approved study: later messages name it by hash only."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(_STUDIES).where(_STUDIES.c.study == study))
            connection.execute(sa.insert(_STUDIES).values(study=study, document=json.dumps(document)))

    def study(self, study: str) -> dict[str, Any] | None:
        with self._engine.connect() as connection:
            text = connection.scalar(sa.select(_STUDIES.c.document).where(_STUDIES.c.study == study))
        return None if text is None else dict(json.loads(text))

    def claim(self, slot: Slot, base: str) -> None:
        """Bind a slot to a request; called before anything is spent for it. RefusedError as for `once`."""
        with self._engine.begin() as connection:
            row = {**vars(slot), "base": base}
            connection.execute(sa.insert(_SLOTS).prefix_with("OR IGNORE").values(row))
        self._find(slot, base)

    def _find(self, slot: Slot, base: str) -> bytes | None:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(_SLOTS).where(self._at(slot))).one_or_none()
        if row is None:
            return None
        if row.base != base:
            raise RefusedError(
                f"{slot.kind!r} of round {slot.round} in study {slot.study[:12]} was asked for with request "
                f"{row.base[:12]} and is now asked for with {base[:12]}: one slot has one answer."
            )
        return None if row.reply is None else bytes(row.reply)

    @staticmethod
    def _at(slot: Slot) -> sa.ColumnElement[bool]:
        return sa.and_(*(_SLOTS.c[name] == value for name, value in vars(slot).items()))
