"""A table whose rows say of which institution, and under which conditions, they are: the members of a simulation."""

from __future__ import annotations

import pandas as pd

from causaldao.errors import DataError
from causaldao.signing import check_name


def by_site(table: pd.DataFrame, site: str, environment: str = "") -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Each site's rows, without the two columns, and the environment that it declares; {} if no column says that. A
    variable without a value in any of a site's rows is one that the site does not have, so it gets no such column.

    Raises
    ------
    DataError
        a column is missing or has no value in some row, or a site has rows of two environments.
    IdentityError
        a site has a name that no member can have.
    """
    for column in filter(None, (site, environment)):
        if column not in table.columns:
            known = ", ".join(map(str, table.columns))
            raise DataError(f"The table has no column {column!r}; it has {known}.")
        if empty := int(table[column].isna().sum()):
            raise DataError(f"The column {column!r} is empty in {empty} rows: say of each what it is, or drop it.")
    sites = table[site].astype(str)
    rows = table.drop(columns=[column for column in (site, environment) if column])
    parts = {
        check_name(name): rows[sites == name].reset_index(drop=True).dropna(axis="columns", how="all")
        for name in sorted(set(sites))
    }
    if not environment:
        return parts, {}
    conditions = table[environment].astype(str).groupby(sites).unique()
    two = {name: sorted(found) for name, found in conditions.items() if len(found) > 1}
    if two:
        name, found = min(two.items())
        raise DataError(
            f"{len(two)} site(s) have rows of more than one environment; {name} of {' and '.join(found)}. A member's "
            "records are of one: give each site's conditions a name of their own in the site column."
        )
    return parts, {str(name): str(found[0]) for name, found in conditions.items()}
