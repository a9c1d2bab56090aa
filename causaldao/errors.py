"""The one tree of errors.

    CausalDAOError
    ├── Finding              1   a check ran and found something: a ledger that does not verify
    ├── MisuseError          2   the call or the command line is wrong
    ├── ConfigurationError  10   a study, node or coordinator file is wrong
    ├── DataError           11   an institution's data do not fit the study's dictionary
    ├── BudgetError         12   a release would overspend a privacy budget
    ├── GuaranteeError      13   too few members, or more faults than a rule can bear
    ├── IdentityError       14   a signature, a key or an envelope is not what it should be
    ├── LedgerError         15   the ledger cannot be written, or is inconsistent
    │   ├── ProofError      15   a Merkle proof does not prove what it is shown for
    │   └── StaleError      15   a checkpoint does not reach what a witness has seen
    ├── NotIdentifiable     16   the graph and the data cannot answer the question
    ├── NetworkError        17   a peer could not be reached in time
    └── RefusedError        18   the node's own policy says no
        └── DeclinedError   18   its owner read the study and said no

The number is the exit status of the command line; ``code`` is the stable word that may cross the wire (the text never
does). Each has a page in ``docs/errors``, named after ``page``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Witness(Protocol):
    """What shows that a question has no answer; `str` says it in words."""

    def to_json(self) -> dict[str, Any]: ...


class CausalDAOError(Exception):
    """What a user can do wrong or what can go wrong for them: names the value, the bound and the remedy.

    ``problems`` lists every fault when several were found at once, so that they can be mended in one go.
    """

    exit_code = 1
    code = "error"

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)

    @property
    def page(self) -> str:
        """The name of its page in ``docs/errors``."""
        return self.code

    @property
    def details(self) -> dict[str, Any]:
        """What a machine is told of this error beside its message, as plain data."""
        return {}

    def __str__(self) -> str:
        return "\n".join([self.message, *(f"  - {problem}" for problem in self.problems)])


class Finding(CausalDAOError):
    """A check did its work and found a fault."""

    exit_code = 1
    code = "finding"


class MisuseError(CausalDAOError):
    """The caller asked for something that does not exist or cannot be."""

    exit_code = 2
    code = "misuse"


class ConfigurationError(CausalDAOError):
    """A configuration, study, knowledge or graph is wrong."""

    exit_code = 10
    code = "configuration"


class DataError(CausalDAOError):
    """Data do not fit the dictionary they are declared against."""

    exit_code = 11
    code = "data"


class BudgetError(CausalDAOError):
    """A release would spend more privacy than was allowed; nothing was drawn."""

    exit_code = 12
    code = "budget"


class GuaranteeError(CausalDAOError):
    """A quorum is missing, or a rule is asked to bear more faults than it can."""

    exit_code = 13
    code = "guarantee"


class IdentityError(CausalDAOError):
    """A signature, key, name or envelope is not what it should be."""

    exit_code = 14
    code = "identity"


class LedgerError(CausalDAOError):
    """The ledger cannot be written to, or what is read from it does not hold together."""

    exit_code = 15
    code = "ledger"


class ProofError(LedgerError):
    """A Merkle proof does not prove what it is shown for."""


class StaleError(LedgerError):
    """A checkpoint does not reach what a witness has seen already: it must be shown one that does, with a proof."""

    code = "stale"

    @property
    def page(self) -> str:
        return LedgerError.code


class NotIdentifiable(CausalDAOError):
    """The question has no answer from this graph and these data.

    ``hedge`` is the `causaldao.models.hedge.Hedge` that proves it; None where something else stands in the way, such as
    an edge without a direction.
    """

    exit_code = 16
    code = "not-identifiable"

    def __init__(self, message: str, *, problems: Sequence[str] = (), hedge: Witness | None = None) -> None:
        super().__init__(message, problems=problems)
        self.hedge = hedge

    @property
    def details(self) -> dict[str, Any]:
        return {} if self.hedge is None else {"hedge": self.hedge.to_json()}


class NetworkError(CausalDAOError):
    """A peer did not answer in time or could not be reached."""

    exit_code = 17
    code = "network"


class RefusedError(CausalDAOError):
    """The node's own policy forbids what was asked of it."""

    exit_code = 18
    code = "refused"


class DeclinedError(RefusedError):
    """The node's owner declined this study: an answer, unlike the silence of one who has not decided yet."""

    code = "declined"

    @property
    def page(self) -> str:
        return RefusedError.code


def by_code(code: str) -> type[CausalDAOError]:
    """The class of an error that another process told by its code; `CausalDAOError` for a code that is none."""
    waiting: list[type[CausalDAOError]] = [CausalDAOError]
    while waiting:
        found = waiting.pop()
        if found.code == code:
            return found
        waiting.extend(found.__subclasses__())
    return CausalDAOError
