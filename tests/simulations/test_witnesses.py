"""The members as witnesses of the ledger, in whole studies: what a coordinator cannot do without their refusing.

Each coordinator here is the real one, or the real one made dishonest in one point; its members are honest nodes.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from causaldao.client.node import Node
from causaldao.client.overview import status
from causaldao.client.receipts import Receipts
from causaldao.errors import CausalDAOError, GuaranteeError, LedgerError
from causaldao.ledger.entry import Entry
from causaldao.ledger.log import Log
from causaldao.ledger.verify import Policy, verify, verify_receipt
from causaldao.server.witnessing import View, Witnessing
from causaldao.signing import SigningKey
from causaldao.simulations.federation import simulate
from causaldao.trail import Trail
from tests.simulations import small

QUORUM = 5  # of seven members, two of whom may lie


class Stop(Exception):
    """Ends a run at a state, as a kill would."""


def stop_at(state: str) -> Callable[[str], None]:
    def on_state(reached: str) -> None:
        if reached == state:
            raise Stop

    return on_state


def run(out: Path, *, until: str | None = None, resume: bool = False, rounds: int = 1) -> dict[str, Any]:
    study = small.study(rounds=rounds)
    if until is None:
        return simulate(study, small.table(), out, small.SETTING, resume=resume)
    with pytest.raises(Stop):
        simulate(study, small.table(), out, small.SETTING, resume=resume, on_state=stop_at(until))
    return {}


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a database in use of SQLite's write-ahead log."""
    for name in (target, Path(f"{target}-wal"), Path(f"{target}-shm")):
        name.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)


def rolled_back(folder: Path, *, until: str) -> Path:
    """A run that went on to ``until``, and whose coordinator then got its ledger of the roll call back."""
    out = folder / "run"
    run(out, until="roll-call")
    copy_database(out / "ledger.db", folder / "old.db")
    run(out, until=until, resume=True)
    copy_database(folder / "old.db", out / "ledger.db")
    return out


def nodes(out: Path) -> list[Path]:
    return sorted((out / "nodes").iterdir())


def policy(out: Path) -> Policy:
    return Policy.parse((out / "policy").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    run(out)
    return out


def test_a_study_ends_without_a_quorum_having_cosigned_all_of_it(whole: Path) -> None:
    result = json.loads((whole / "result.json").read_text())
    report = verify((whole / "ledger.bundle").read_bytes(), policy(whole))
    assert report.entries[-1].kind == "study.closed"
    assert result["ledger"]["size"] == report.size
    assert len(report.cosigners) >= QUORUM == report.quorum
    assert policy(whole).satisfied(report.cosigners)


def test_a_word_has_no_receipt_that_convinces_an_outsider(whole: Path) -> None:
    for folder in nodes(whole):
        words = Receipts(folder).words()
        assert {(word.kind, word.round) for word in words} == {
            ("evidence", 0), ("ballot", 0), ("update", 1), ("evaluation", 1),
        }  # fmt: skip
        for word in words:
            receipt = (folder / "receipts" / f"{word.name}.tlog-proof").read_text()
            record = (folder / "receipts" / f"{word.name}.record").read_bytes()
            assert verify_receipt(receipt, record, policy(whole)).body["member"] == folder.name
        assert status(folder)["witness"]["without_receipt"] == 0
        assert status(folder)["witness"]["status"] == "witnessing"


def test_a_receipt_is_taken_for_another_entry(whole: Path) -> None:
    folder = nodes(whole)[0] / "receipts"
    receipts, records = sorted(folder.glob("*.tlog-proof")), sorted(folder.glob("*.record"))
    with pytest.raises(LedgerError):
        verify_receipt(receipts[0].read_text(), records[1].read_bytes(), policy(whole))


def test_a_rolled_back_coordinator_goes_on(tmp_path: Path) -> None:
    out = rolled_back(tmp_path, until="ballots")
    with pytest.raises(LedgerError, match="rolled back or replaced") as caught:
        run(out, resume=True)
    assert caught.value.exit_code == 15


def test_a_rolled_back_coordinator_that_does_not_care_gets_anything_from_anybody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = rolled_back(tmp_path, until="ballots")
    before = small.debits(out)
    monkeypatch.setattr(Witnessing, "heard", lambda *_: None)  # it will not hear what they say of its history
    with pytest.raises(GuaranteeError, match="Only 0 of the 5 members"):
        run(out, resume=True)
    assert small.debits(out) == before


def test_a_coordinator_shows_another_history_of_the_same_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork: from the roll call on, all members are shown a history that differs from the one they cosigned."""
    out = rolled_back(tmp_path, until="evidence")
    before = small.debits(out)
    monkeypatch.setattr(Witnessing, "heard", lambda *_: None)
    key = SigningKey.load(out / "coordinator.pem")
    with Log.open(f"sqlite:///{out / 'ledger.db'}", key) as log:
        log.append([Entry("complaint", {"study": small.study().hash, "reason": f"filler {k}"}) for k in range(40)])
    with pytest.raises(GuaranteeError, match="Only 0 of the 5 members"):
        run(out, resume=True)
    assert small.debits(out) == before
    kept = [json.dumps(status(folder)["witness"]) for folder in nodes(out)]
    assert all("witnessing" in text for text in kept)


def test_a_member_is_shown_a_history_that_nobody_else_confirms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolated, it may cosign what comes next; but it releases nothing that no quorum stands behind."""
    honest = View._trail

    def alone(view: View, name: str | None) -> Trail:
        trail = honest(view, name)
        return Trail(trail.checkpoint, trail.proofs, "", (), trail.last, trail.members, ())

    monkeypatch.setattr(View, "_trail", alone)
    out = tmp_path / "run"
    with pytest.raises(GuaranteeError, match="Only 0 of the 5 members that 'evidence' needs"):
        run(out)
    assert not any(small.debits(out).values())


@pytest.mark.parametrize("votes", ["none", "their own"])
def test_a_coordinator_admits_its_own_witnesses(votes: str, tmp_path: Path) -> None:
    from causaldao import governance
    from causaldao.ledger.note import COSIGNER, Verifier
    from causaldao.server import membership

    out = tmp_path / "run"
    run(out, until="roll-call")
    before = small.debits(out)
    coordinator = SigningKey.load(out / "coordinator.pem")
    with Log.open(f"sqlite:///{out / 'ledger.db'}", coordinator) as log:
        epoch = membership.epoch(log)
        for number in range(QUORUM):
            name, key, witness = f"sybil-{number}", SigningKey.generate(), SigningKey.generate()
            body: dict[str, Any] = {
                "member": name, "key": key.public.to_text(name), "epoch": epoch.number + number,
                "witness": Verifier.of(name, witness.public, COSIGNER).text,
            }  # fmt: skip
            if votes == "their own":
                vote = governance.make_vote(
                    key, federation=epoch.federation, member=name, epoch=epoch.number + number,
                    motion=governance.motion("member.admit", body), size=log.head.size, root=log.head.root,
                )  # fmt: skip
                body["votes"] = [{"member": name, "envelope": vote}]
            log.append([Entry("member.admit", body)])
    with pytest.raises((CausalDAOError, ValueError)):
        run(out, resume=True)
    assert small.debits(out) == before


def test_a_word_is_withheld_and_nobody_complains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Witnessing, "words", lambda *_: {})
    out = tmp_path / "run"
    run(out)
    complaints = [line for line in small.lines(out) if line.kind == "complaint"]
    assert {(line.body["by"], line.body["kind"]) for line in complaints} == {
        (folder.name, kind) for folder in nodes(out) for kind in ("evidence", "ballot", "update", "evaluation")
    }
    assert all(line.body["code"] == "withheld" and "envelope" in line.body for line in complaints)
    assert not small.audited(out).faults


def test_a_witness_that_lost_its_state_starts_over(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, until="roll-call")
    lost = nodes(out)[0]
    (lost / "witness.db").unlink()
    result = run(out, resume=True)
    assert small.status(result, lost.name)[0] == "quarantined"
    assert "ledger" in small.status(result, lost.name)[1]
    assert lost.name not in result["ledger"]["cosigners"]
    assert status(lost)["witness"]["status"] == "retired"
    assert [kind for kind, _, _ in small.debits(out).get(lost.name, [])] == []


def test_a_witness_restored_from_a_backup_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out, until="roll-call")
    restored = nodes(out)[0]
    copy_database(restored / "witness.db", tmp_path / "backup.db")
    run(out, until="evidence", resume=True)
    shutil.copy(tmp_path / "backup.db", restored / "witness.db")
    for suffix in ("-wal", "-shm"):
        (restored / f"witness.db{suffix}").unlink(missing_ok=True)
    result = run(out, resume=True)
    assert small.status(result, restored.name)[0] == "quarantined"
    assert status(restored)["witness"]["status"] == "retired"
    assert "old copy" in status(restored)["witness"]["reason"]


def test_a_request_without_a_trail_is_answered(whole: Path) -> None:
    from causaldao.client.witnessing import Attendant
    from causaldao.messages import COORDINATOR, make
    from causaldao.signing import peek

    request = make(
        SigningKey.load(whole / "coordinator.pem"), federation="simulation", study=small.study().hash, round=0,
        member=COORDINATOR, kind="evidence", body={}, nonce="0", parent="",
    )  # fmt: skip
    reply = Attendant(Node.open(nodes(whole)[0])).answer(request)
    assert (peek(reply.envelope).kind, peek(reply.envelope).body) == ("refusal.evidence", {"code": "identity"})
    assert not reply.tensors
