"""Whether a node's own files and rows fit a study: what a dry run checks, and what the node itself asks at a roll call.

At the roll call only columns and the budget are looked at: to refuse over what one record holds would tell of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd

from causaldao.budget import epsilon_of, plan
from causaldao.client.config import NodeConfig
from causaldao.client.data.checks import check
from causaldao.client.data.mapping import apply, faults, mismatches
from causaldao.client.data.sources import load, persons_twice
from causaldao.client.privacy.journal import Journal
from causaldao.declared import Declaration, held
from causaldao.errors import BudgetError, ConfigurationError, DataError
from causaldao.graph_ballots import known
from causaldao.models.knowledge import NONE, Knowledge
from causaldao.signing import VerifyKey
from causaldao.study import Study

Table = pd.DataFrame


def check_study(config: NodeConfig, folder: Path, study: Study) -> tuple[str, ...]:
    """What a dry run checks: the node's own files, the data, and the whole study against the budget; the warnings.

    Nothing is written: a node without a journal has spent nothing.

    Raises
    ------
    DataError
        every fault of the mapping and of the data at once.
    BudgetError
        the study would pass the data set's lifetime cap.
    """
    if config.coordinator:
        VerifyKey.from_text(config.coordinator)
    declared = declared_knowledge(config, folder)
    declared.check(study.names)
    declaration(config, study)
    if study.local:
        known(study, declared)
    table = load(config.table, folder)
    warnings = [*_require_fit(config, table, study), *_person_warnings(config, folder)]
    if len(table) < study.members.n_min and study.local:
        warnings.append(
            f"warning: {len(table)} records are fewer than the study's n_min = {study.members.n_min}: a graph from so "
            "few, found by this node alone, shows little."
        )
    elif len(table) < study.members.n_min:
        warnings.append(
            f"warning: {len(table)} records are fewer than the study's n_min = {study.members.n_min}: evidence "
            "of so few is judged as if it were of more, so it may be excluded, or even accused."
        )
    require_budget(config, folder, study)
    return tuple(warnings)


def declaration(config: NodeConfig, study: Study) -> Declaration:
    """What the node's file says of its rows, as far as the study asks for it.

    Raises
    ------
    ConfigurationError
        the study has environments, and the file names none for it, or one that it lacks.
    """
    environment, known = config.environments.get(study.name, ""), [one.name for one in study.environments]
    if study.environments and environment not in known:
        raise ConfigurationError(
            f"node.toml says of study {study.name!r} {f'the environment {environment!r}' if environment else 'none'}, "
            "and the study's environments are "
            f"{', '.join(known)}. Write under [environments] {study.name} = {known[0]!r}, or whichever of them these "
            "records were gathered under."
        )
    lacks = declared_lacks(config, study)
    if set(lacks) == set(study.names):
        raise ConfigurationError(
            f"lacks: these records have none of the variables of study {study.name!r}: do not take part in it, or take "
            "out of the list in node.toml what they have."
        )
    return Declaration(environment if study.environments else "", lacks)


def study_mismatches(config: NodeConfig, study: Study) -> tuple[str, ...]:
    """Where the mapping in the node's file does not fit a study, in words; no row is read."""
    wanted = held(study.encoding, declared_lacks(config, study))
    found = mismatches(config.mapping, wanted)
    return tuple(str(one) + (_or_lack(config, study, one.variable) if one.what == "missing" else "") for one in found)


def declared_lacks(config: NodeConfig, study: Study) -> tuple[str, ...]:
    """The variables of a study that the node's file says these records do not have, as far as the study allows it."""
    return tuple(sorted(set(config.lacks) & set(study.members.may_lack)))


def _or_lack(config: NodeConfig, study: Study, name: str) -> str:
    """The other remedy for a variable that is not there."""
    if name in study.members.may_lack:
        return f' If these records do not have it, add it to the list in node.toml: lacks = ["{name}"].'
    return " node.toml says that it is lacking, which this study does not allow." if name in config.lacks else ""


def unfit(config: NodeConfig, table: Table, study: Study) -> dict[tuple[str, str], str]:
    """What is wrong with the mapping, by variable and kind of fault; columns only, no record."""
    wanted = held(study.encoding, declared_lacks(config, study))
    found = {(m.variable, m.what): str(m) for m in mismatches(config.mapping, wanted)}
    absent = {(name, "missing"): text for name, text in faults(list(table.columns), config.mapping, wanted).items()}
    return {
        (name, what): text + (_or_lack(config, study, name) if what == "missing" else "")
        for (name, what), text in {**found, **absent}.items()
    }


def _unread(config: NodeConfig, table: Table, study: Study) -> list[str]:
    """Columns that the node's file says are lacking, and that are there."""
    columns = {name: config.mapping[name].column if name in config.mapping else name for name in study.names}
    there = [name for name in declared_lacks(config, study) if columns[name] in table.columns]
    return [
        f"warning: column {columns[name]!r} is there, but lacks in node.toml names {name!r}: it is not read. Take it "
        "out of the list to give it."
        for name in there
    ]


def _require_fit(config: NodeConfig, table: Table, study: Study) -> list[str]:
    wrong = unfit(config, table, study)
    missing = {name for name, what in wrong if what == "missing"}  # said once is enough
    wanted = held(study.encoding, declared_lacks(config, study))
    problems = [
        replace(problem, remedy=problem.remedy + _or_lack(config, study, problem.column))
        if problem.column not in table.columns
        else problem
        for problem in check(apply(table, config.mapping, wanted), wanted)
        if problem.column not in missing
    ]
    errors = len(wrong) + sum(not problem.warning for problem in problems)
    texts = [*wrong.values(), *map(str, problems), *_unread(config, table, study)]
    if errors:
        raise DataError(
            f"The data do not fit the study's dictionary: {errors} problem(s). Mend them and run the check again.",
            problems=texts,
        )
    return texts


def _person_warnings(config: NodeConfig, folder: Path) -> list[str]:
    source = config.table
    twice = persons_twice(source, folder) if source.cohort_view is not None else 0
    if not twice:
        return []
    return [
        f"warning: {twice} record(s) of the cohort view are a further row of a person who has one already: privacy is "
        "that of a row, so make the view one row for each person."
    ]


def declared_knowledge(config: NodeConfig, folder: Path) -> Knowledge:
    """What the institution declares to know; a file that is missing or wrong is a ConfigurationError."""
    if config.knowledge is None:
        return NONE
    path = folder / config.knowledge
    try:
        return Knowledge.from_toml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The knowledge file {path} cannot be read: {error}.") from error


def require_budget(config: NodeConfig, folder: Path, study: Study) -> None:
    """Refuse a study whose whole plan, after all that other studies spent, would pass the data set's lifetime cap."""
    journal, lifetime = folder / "journal.db", config.lifetime
    debits = Journal.open(journal).debits(config.dataset) if journal.exists() else ()
    others = [spend for debit in debits if debit.key.study != study.hash for spend in debit.spends]
    after = epsilon_of([*others, *plan(study).spends], lifetime.delta)
    if after > lifetime.epsilon:
        raise BudgetError(
            f"Study {study.name!r} would take data set {config.dataset!r} to epsilon {after:.4g} at delta "
            f"{lifetime.delta:g}, past its lifetime cap of {lifetime.epsilon:g}. Nothing was spent. Use a smaller "
            "epsilon in the study, or raise [lifetime] in the node's file knowingly."
        )
