"""New keys in the place of a member's own: made here, voted on by the members, taken up when the ledger has them.

Begun with `rotate`, and ended by calling it again once enough members have voted; in the founding once is enough. Until
then the old keys hold, so nothing is lost if the vote fails. A witness begins anew with its new key: its old state
belongs to the old key, and is kept under another name.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from causaldao.client import enrolment
from causaldao.client.enrolment import PATIENCE, SIGNING_FILE, WITNESS_FILE, WITNESS_STATE, Patience
from causaldao.errors import RefusedError
from causaldao.files import hold
from causaldao.ledger.witness import Witness
from causaldao.signing import SigningKey

NEXT_SIGNING, NEXT_WITNESS = "signing.next.pem", "witness.next.pem"


def rotate(folder: Path, now: datetime, *, patience: Patience = PATIENCE) -> str:
    """Go on with new keys as far as it goes now: the id of the motion that is voted on, "" if the keys are in place.

    Raises
    ------
    RefusedError
        the keys may be taken up, but the node is running with the old ones; or the operator has not admitted it yet.
    IdentityError, NetworkError
        as of `causaldao.client.enrolment.renew`.
    """
    federation = enrolment.read_federation(folder)
    begun = (folder / NEXT_SIGNING).exists()
    if begun and enrolment.is_known(folder, SigningKey.load(folder / NEXT_SIGNING), now, patience=patience):
        _take_up(folder, federation["origin"])
        return ""
    for name in (NEXT_WITNESS, NEXT_SIGNING):
        if not (folder / name).exists():
            SigningKey.generate().save(folder / name)
    signing, witness = (SigningKey.load(folder / name) for name in (NEXT_SIGNING, NEXT_WITNESS))
    motion = enrolment.rotate(folder, signing, witness.public, now, patience=patience)
    if not motion:
        _take_up(folder, federation["origin"])
    return motion


def _take_up(folder: Path, origin: str) -> None:
    """Put the new keys in their places, the signing key last: while its file is there, the same again goes on."""
    (folder / "run").mkdir(exist_ok=True)
    lock = hold(folder / "run" / "lock")
    if lock is None:
        raise RefusedError(
            "The new keys may be taken up, but this node runs with the old ones: stop it, and do it again."
        )
    with lock:
        if (folder / NEXT_WITNESS).exists():
            _renew_witness(folder, origin)
        os.replace(folder / NEXT_SIGNING, folder / SIGNING_FILE)


def _renew_witness(folder: Path, origin: str) -> None:
    state = folder / WITNESS_STATE
    kept = folder / f"witness-{SigningKey.load(folder / WITNESS_FILE).public.id}.db"
    if state.exists() and not kept.exists():
        os.replace(state, kept)
    if not state.exists():
        Witness.create(state, origin)
    os.replace(folder / NEXT_WITNESS, folder / WITNESS_FILE)
