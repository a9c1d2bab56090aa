"""What a node remembers of the ledger beside its witness's state: who the members are, what it was asked, what it said,
and the receipts of that.

A *word* is a reply that has to stand on the ledger. Its receipt is a C2SP tlog-proof, kept in the node's folder under
``receipts/`` as ``STUDY-KIND-ROUND.tlog-proof`` with the entry's record beside it: the two convince anybody who has the
federation's policy, without this node and without the coordinator.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from causaldao import governance
from causaldao.files import write_text
from causaldao.governance import Epoch

FOLDER = "receipts"
_METADATA = sa.MetaData()
_MEMBERS = sa.Table(
    "members",
    _METADATA,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
)
_QUESTIONS = sa.Table(
    "questions",
    _METADATA,
    sa.Column("study", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("known", sa.Integer, nullable=False),
)
_WORDS = sa.Table(
    "words",
    _METADATA,
    sa.Column("envelope", sa.Text, primary_key=True),
    sa.Column("study", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("given", sa.Integer, nullable=False),
    sa.Column("entry", sa.Integer),
    sa.Column("complaint", sa.Text),
)


@dataclass(frozen=True)
class Word:
    """A reply that has to stand on the ledger: SHA-256 of its envelope, its slot, when it was given (POSIX seconds),
    the index of its entry once its receipt is here, and the complaint that it was withheld, if one was made."""

    envelope: str
    study: str
    kind: str
    round: int
    given: int
    entry: int | None = None
    complaint: str | None = None

    @property
    def name(self) -> str:
        """The name of its receipt's file, without the ending."""
        return f"{self.study}-{self.kind}-{self.round}"


class Receipts:
    """The memory of one node, in one SQLite file of its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        url = sa.URL.create("sqlite", database=str(folder / "receipts.db"))
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        _METADATA.create_all(self._engine)

    def members(self) -> list[tuple[int, bytes]]:
        """The entries that made the federation what it is, by their indices."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(_MEMBERS).order_by(_MEMBERS.c.position))
            return [(row.position, bytes(row.record)) for row in rows]

    def epoch(self, last: int | None = None) -> Epoch | None:
        """The federation by these entries up to ``last``; None without any. They were checked before they came here."""
        epoch: Epoch | None = None
        for index, record in self.members():
            if last is None or index <= last:
                entry = json.loads(record)
                epoch = governance.changed(epoch, index, entry["kind"], entry["body"])
        return epoch

    def learn(self, entries: list[tuple[int, bytes]]) -> None:
        """Remember entries that were checked."""
        if entries:
            with self._engine.begin() as connection:
                rows = [{"position": index, "record": record} for index, record in entries]
                connection.execute(sa.insert(_MEMBERS).prefix_with("OR IGNORE"), rows)

    def asked(self, study: str, kind: str, round: int, size: int) -> None:
        """Remember the size of the checkpoint that came with a question of a study, and which entries on the members
        are known at its first; asked again, a question is the last one."""
        with self._engine.begin() as connection:
            most = sa.select(sa.func.coalesce(sa.func.max(_QUESTIONS.c.number), 0)).where(_QUESTIONS.c.study == study)
            number = connection.scalar(most)
            first = sa.select(sa.func.min(_QUESTIONS.c.known)).where(_QUESTIONS.c.study == study)
            known = connection.scalar(first)
            if known is None:
                known = connection.scalar(sa.select(sa.func.max(_MEMBERS.c.position)))
            row = {
                "study": study, "kind": kind, "round": round, "size": size, "number": (number or 0) + 1,
                "known": -1 if known is None else known,
            }  # fmt: skip
            connection.execute(sa.insert(_QUESTIONS).prefix_with("OR REPLACE").values(row))

    def sizes(self, study: str, kind: str, round: int) -> list[int]:
        """Those of the study's questions before this one, in their order."""
        this = sa.and_(_QUESTIONS.c.kind == kind, _QUESTIONS.c.round == round)
        query = sa.select(_QUESTIONS.c.size).where(_QUESTIONS.c.study == study, sa.not_(this))
        with self._engine.connect() as connection:
            return [int(size) for size in connection.scalars(query.order_by(_QUESTIONS.c.number))]

    def known_at(self, study: str) -> int | None:
        """The last entry on the members that was known when the study asked first; None if it never did."""
        with self._engine.connect() as connection:
            known = connection.scalar(sa.select(sa.func.min(_QUESTIONS.c.known)).where(_QUESTIONS.c.study == study))
        return None if known is None else int(known)

    def given(self, word: Word) -> None:
        """Remember a word before it is sent; the same again changes nothing."""
        with self._engine.begin() as connection:
            connection.execute(sa.insert(_WORDS).prefix_with("OR IGNORE").values(vars(word)))

    def words(self, study: str | None = None) -> list[Word]:
        """What was said, in this study or in all."""
        query = sa.select(_WORDS).order_by(_WORDS.c.given, _WORDS.c.kind, _WORDS.c.round)
        if study is not None:
            query = query.where(_WORDS.c.study == study)
        with self._engine.connect() as connection:
            return [Word(**row) for row in connection.execute(query).mappings()]

    def keep(self, word: Word, index: int, receipt: str, record: bytes) -> None:
        """Keep the receipt of a word: its files first, so that what is remembered is there."""
        folder = self._folder / FOLDER
        folder.mkdir(exist_ok=True)
        (folder / f"{word.name}.record").write_bytes(record)
        write_text(folder / f"{word.name}.tlog-proof", receipt)
        with self._engine.begin() as connection:
            mine = _WORDS.c.envelope == word.envelope
            connection.execute(sa.update(_WORDS).where(mine).values(entry=index))

    def complain(self, word: Word, complaint: str) -> None:
        """Remember that it was complained of a word's receipt, and in what words."""
        with self._engine.begin() as connection:
            mine = _WORDS.c.envelope == word.envelope
            connection.execute(sa.update(_WORDS).where(mine).values(complaint=complaint))
