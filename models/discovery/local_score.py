"""Which score serves a search: that of the evidence it is given."""

from __future__ import annotations

import math

from causaldao.errors import MisuseError
from causaldao.models.discovery.block_score import BLOCK_PENALTY, BlockScore
from causaldao.models.discovery.evidence import Evidence
from causaldao.models.discovery.score import PENALTY, LocalScore, Score
from causaldao.models.discovery.table_score import Kind, TableScore
from causaldao.models.discovery.tables import Tables
from causaldao.models.knowledge import Knowledge


def local_score(
    evidence: Evidence | Tables,
    knowledge: Knowledge,
    method: str,
    *,
    penalty: float | None,
    score: Kind | None,
    sample_size: float | None,
) -> LocalScore:
    """The score over the sorted names: on second moments the Gaussian BIC, of numbers or of blocks; on tables BDeu or
    the BIC. Options that are None have their defaults. ``method`` names the search in errors.

    Raises:
        MisuseError: an option that is not positive, or that the score does not have.
        DataError: the evidence cannot bear the score.
    """
    if isinstance(evidence, Evidence):
        if score is not None or sample_size is not None:
            raise MisuseError(
                f"The options score and sample_size of {method} are of tables, and this evidence is second moments, "
                "whose score is the Gaussian BIC. Leave them out, or give tables (LocalTables)."
            )
        cost = penalty if penalty is not None else BLOCK_PENALTY if evidence.blocks else PENALTY
        if not 0 < cost < math.inf:
            raise MisuseError(f"penalty is {penalty}. Give a number > 0, such as {PENALTY:g}.")
        chosen = evidence.select(sorted(evidence.names))
        return BlockScore.of(chosen, cost, knowledge) if chosen.blocks else Score.of(chosen, cost, knowledge, method)
    kind = score or "bdeu"
    odd = ("penalty", penalty, "bic") if kind == "bdeu" else ("sample_size", sample_size, "bdeu")
    if odd[1] is not None:
        raise MisuseError(f"The score {kind} has no option {odd[0]}, which is of {odd[2]}. Leave it out.")
    return TableScore.of(evidence, kind, sample_size if kind == "bdeu" else penalty, knowledge, method)
