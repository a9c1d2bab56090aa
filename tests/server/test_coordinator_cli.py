"""`causaldao coordinator` and `causaldao study`: one envelope, the right exit status, and no refused change."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from causaldao.__main__ import app
from causaldao.dictionary import Offered, SiteDictionary, make
from causaldao.enrolment import Token
from causaldao.errors import ConfigurationError, GuaranteeError
from causaldao.server import studies
from causaldao.server.home import DATABASE_VARIABLE, SETTINGS, Home
from causaldao.server.progress import Event
from causaldao.server.registry import Standing
from causaldao.signing import VerifyKey
from tests.causaldao.cases import STUDY_TOML
from tests.server import homes

STUDY = """
[study]
name = "small"
question = "Does a move c?"
purpose = "A test."
retention = "A day."
[[variables]]
name = "a"
kind = "continuous"
bounds = [-6.0, 6.0]
[[variables]]
name = "c"
kind = "continuous"
bounds = [-6.0, 6.0]
[training]
rounds = 0
[privacy]
epsilon = 4.0
delta = 1e-5
[members]
n_min = 50
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return homes.create(tmp_path / "home")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path / "study.toml"


def run(*arguments: Any) -> tuple[int, dict[str, Any]]:
    """Exit status and envelope; stdout holds nothing else."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    envelope = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert envelope["schema_version"] == 1
    assert envelope["status"] == ("ok" if result.exit_code == 0 else "error")
    if result.exit_code:
        assert envelope["error"]["exit_code"] == result.exit_code
        assert Path(envelope["error"]["help"]).exists()
    return result.exit_code, envelope["data" if result.exit_code == 0 else "error"]


def said(*arguments: Any) -> str:
    """What a person reads of a command that succeeds."""
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


# init


def test_init_makes_another_coordinator_than_it_says(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    status, data = run(
        "coordinator", "init", folder, "--federation", "demo", "--host", "hub.example.org", "--fleet-port", 1,
        "--faulty", 1,
    )  # fmt: skip
    assert status == 0
    home = Home.open(folder)
    assert data == {
        "folder": str(folder), "federation": "demo", "fleet": "hub.example.org:1", "enrolment": "hub.example.org:9093",
        "ledger": "hub.example.org:9094", "key": home.key.public.to_text("coordinator"),
        "authority": home.authority.fingerprint,
    }  # fmt: skip
    assert home.settings.faulty == 1
    before = (folder / SETTINGS).read_bytes()
    status, error = run("coordinator", "init", folder, "--federation", "demo")
    assert (status, error["code"]) == (10, "configuration")
    assert (folder / SETTINGS).read_bytes() == before


def test_faults_of_init_are_told_one_at_a_time_or_leave_a_folder(tmp_path: Path) -> None:
    status, error = run(
        "coordinator", "init", tmp_path / "home", "--federation", "No Name", "--fleet-port", 70000, "--faulty", -1,
        "--database", "postgresql://me:hunter2@db/x",
    )  # fmt: skip
    assert (status, error["code"]) == (10, "configuration")
    assert [problem.split(":")[0] for problem in error["problems"]] == [
        "--federation", "--fleet_port", "--database", "--faulty",
    ]  # fmt: skip
    assert "hunter2" not in json.dumps(error)
    assert DATABASE_VARIABLE in json.dumps(error)
    assert not (tmp_path / "home").exists()


def test_a_person_is_not_told_what_to_do_next(tmp_path: Path) -> None:
    text = said("coordinator", "init", tmp_path / "home", "--federation", "demo", "--host", "127.0.0.1")
    assert "127.0.0.1:9092" in text
    assert "ledger://127.0.0.1:9094" in text
    assert f"causaldao coordinator start {tmp_path / 'home'}" in text


def test_a_ledger_that_is_not_served_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAUSALDAO_LEDGER_PORT", "7")
    given = ("coordinator", "init", tmp_path / "one", "--federation", "demo", "--host", "127.0.0.1")
    assert run(*given)[1]["ledger"] == "127.0.0.1:7"
    assert "ledger://127.0.0.1:7" in said("coordinator", "status", tmp_path / "one")
    said("coordinator", "init", tmp_path / "none", "--federation", "demo", "--ledger-port", 0)
    assert Home.open(tmp_path / "none").settings.ledger_port == 0
    status, data = run("coordinator", "status", tmp_path / "none")
    assert (status, data["ledger"]) == (0, "")
    assert "not served" in said("coordinator", "status", tmp_path / "none")


# members


def test_a_token_is_for_another_name_address_or_authority(home: Home) -> None:
    status, data = run("coordinator", "invite", home.folder, "north")
    assert (status, data["name"], data["minutes"]) == (0, "north", 15)
    token = Token.from_text(data["token"])
    assert (token.federation, token.name, token.address) == ("test", "north", home.enrolment)
    assert token.authority_pem == home.authority.certificate_pem
    assert (
        said("coordinator", "invite", home.folder, "south").strip()
        == said("coordinator", "invite", home.folder, "south").strip()
        or len(home.registry.invitations()) == 2
    )  # invited again: the first token is void


def test_a_name_that_is_none_or_is_taken_is_invited(home: Home) -> None:
    homes.admit(home, "north")
    for name in ("No Name", "north"):
        status, error = run("coordinator", "invite", home.folder, name)
        assert (status, error["code"]) == (14, "identity")
    assert home.registry.invitations()[0].name == "north"
    assert len(home.registry.invitations()) == 1


def test_the_wrong_members_are_admitted(home: Home) -> None:
    homes.join(home, "north", "south", "west")
    status, error = run("coordinator", "admit", home.folder)
    assert (status, error["code"]) == (2, "misuse")
    assert "north, south, west" in error["message"]
    status, data = run("coordinator", "admit", home.folder, "south")
    assert status == 0
    ((admitted),) = data["admitted"]
    assert admitted["name"] == "south"
    assert VerifyKey.from_text(admitted["key"])[1] == homes.key("south").public
    text = said("coordinator", "admit", home.folder, "--all")
    assert f"admitted north, key {homes.key('north').public.id}" in text
    assert {member.state for member in home.registry.members()} == {"admitted"}
    status, error = run("coordinator", "admit", home.folder, "--all")
    assert (status, "waiting: nobody" in error["message"]) == (2, True)
    status, error = run("coordinator", "admit", home.folder, "stranger")
    assert (status, error["code"]) == (10, "configuration")


def test_a_revoked_member_comes_back_or_the_reason_is_lost(home: Home) -> None:
    homes.admit(home, "north")
    status, data = run("coordinator", "revoke", home.folder, "north", "--reason", "left the federation")
    assert (status, data) == (0, {"name": "north", "state": "revoked", "motions": []})
    with home.log() as log:
        (entry,) = log.entries(kinds=("member.revoke",))
    assert entry.body["reason"] == "left the federation"
    assert run("coordinator", "admit", home.folder, "north")[0] == 14
    assert run("coordinator", "invite", home.folder, "north")[0] == 14
    assert run("coordinator", "revoke", home.folder, "stranger")[0] == 10
    assert run("coordinator", "revoke", home.folder, "north")[0] == 0  # again changes nothing


# folders that are none


@pytest.mark.parametrize(
    "command", [("invite", "north"), ("admit", "north"), ("revoke", "north"), ("status",)], ids=lambda found: found[0]
)
def test_a_folder_without_a_coordinator_is_a_traceback(tmp_path: Path, command: tuple[str, ...]) -> None:
    verb, *rest = command
    status, error = run("coordinator", verb, tmp_path / "nowhere", *rest)
    assert (status, error["code"]) == (10, "configuration")
    assert "coordinator init" in error["message"]
    assert not (tmp_path / "nowhere").exists()


def test_a_lost_database_is_made_anew(home: Home) -> None:
    """An empty ledger in its place would be another history."""
    (home.folder / "coordinator.db").rename(home.folder / "moved.db")
    status, error = run("coordinator", "invite", home.folder, "north")
    assert (status, error["code"]) == (15, "ledger")
    assert not (home.folder / "coordinator.db").exists()


def test_a_key_that_others_can_read_is_used(home: Home, study: Path) -> None:
    homes.join(home, "north")
    (home.folder / "signing.pem").chmod(0o644)
    status, error = run("coordinator", "admit", home.folder, "north")
    assert (status, error["code"]) == (14, "identity")
    assert [member.state for member in home.registry.members()] == ["pending"]


# studies


def test_a_study_is_proposed_to_too_few_or_twice(home: Home, study: Path) -> None:
    status, error = run("study", "propose", home.folder, study)
    assert (status, error["code"]) == (13, "guarantee")
    homes.admit(home, "north", "south", "west")
    status, data = run("study", "propose", home.folder, study)
    assert (status, data["name"], data["state"], data["misfits"]) == (0, "small", "proposed", {})
    assert run("study", "propose", home.folder, study)[1] == data
    assert len(home.registry.studies()) == 1


def test_what_dictionaries_say_against_a_study_is_not_told(home: Home, study: Path) -> None:
    homes.admit(home, "north", "south", "west")
    site = SiteDictionary("test", "north", (Offered("a", "binary"), Offered("c", "continuous")))
    home.registry.set_dictionary("north", make(site, homes.key("north"), secrets.token_hex(16)).decode())
    text = said("study", "propose", home.folder, study)
    assert "north: variable 'a': kind: here 'binary', in the study 'continuous'" in text
    assert "causaldao node approve DIR small" in text
    data = run("study", "propose", home.folder, study)[1]
    assert list(data["misfits"]) == ["north"]


@pytest.mark.parametrize("text", ["", "[study", STUDY.replace("epsilon = 4.0", "epsilon = -1.0")])
def test_a_study_that_is_none_is_proposed(home: Home, study: Path, text: str) -> None:
    homes.admit(home, "north", "south", "west")
    study.write_text(text)
    status, error = run("study", "propose", home.folder, study)
    assert (status, error["code"]) == (10, "configuration")
    assert run("study", "propose", home.folder, study.with_name("nowhere.toml"))[0] == 10
    with home.log() as log:
        assert not log.entries(kinds=("study.proposed",))


def test_a_study_runs_without_a_coordinator_or_a_proposal(home: Home, study: Path) -> None:
    homes.admit(home, "north", "south", "west")
    for verb in ("run", "resume"):
        status, error = run("study", verb, home.folder, "small")
        assert (status, error["code"]) == (10, "configuration")
        assert "proposed so far: none" in error["message"]
    status, error = run("study", "run", home.folder, study)
    assert (status, error["code"]) == (17, "network")
    assert "coordinator start" in error["message"]
    assert home.registry.study("small").state == "proposed"  # run proposes first
    assert run("study", "resume", home.folder, "small")[0] == 17


@pytest.fixture
def conducted(home: Home, study: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A coordinator that runs; what is followed, the last item the error with which the run ends, or None."""
    homes.admit(home, "north", "south", "west")
    outcome: list[Any] = []

    def begin(home: Home, row: Any) -> int:
        outcome.append(row.hash)
        return 7

    def follow(home: Home, row: Any, run: int, after: int, tell: Any) -> None:
        tell(Event("evidence", "3 of 3"))
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        folder = home.study_folder(row.hash)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text('{"graph": {}}')

    monkeypatch.setattr(studies, "begin", begin)
    monkeypatch.setattr(studies, "follow", follow)
    return outcome


def test_the_result_of_a_run_is_another_or_mixed_with_its_progress(
    home: Home, study: Path, conducted: list[Any]
) -> None:
    status, data = run("study", "run", home.folder, study)
    (hash,) = conducted
    assert (status, data) == (0, {"folder": str(home.study_folder(hash)), "result": {"graph": {}}})


@pytest.mark.parametrize("error", [GuaranteeError("2 of 3"), ConfigurationError("x", problems=["y"])])
def test_a_failed_run_ends_well(home: Home, study: Path, conducted: list[Any], error: Exception) -> None:
    conducted.append(error)
    status, told = run("study", "run", home.folder, study)
    assert status == getattr(error, "exit_code", None)
    assert told["message"] == getattr(error, "message", None)


# status


def test_the_status_says_otherwise_than_the_database(home: Home, study: Path) -> None:
    homes.admit(home, "north", "south", "west")
    homes.join(home, "late")
    run("study", "propose", home.folder, study)
    row = home.registry.study("small")
    home.registry.seen("north", datetime(2027, 1, 2, 3, 4, tzinfo=UTC), "0.1.0")
    found = {
        "north": Standing("approved"), "south": Standing("declined", "no column c", "data", 11),
        "west": Standing("pending", "not approved yet"),
    }  # fmt: skip
    home.registry.put_standings(row.hash, found)
    status, data = run("coordinator", "status", home.folder)
    assert (status, data["federation"], data["process"]) == (0, "test", None)
    states = {member["name"]: member["state"] for member in data["members"]}
    assert states == {"late": "pending", "north": "admitted", "south": "admitted", "west": "admitted"}
    (told,) = data["studies"]
    assert told["summary"] == "1 of 3 approved, 1 declined: data 11, 1 pending"
    assert told["members"]["south"] == {"state": "declined", "reason": "no column c", "code": "data", "exit_code": 11}
    text = said("coordinator", "status", home.folder)
    for line in ("test: not running", "last call 2027-01-02T03:04", "declined  no column c", told["summary"]):
        assert line in text


def _check(study: Path, text: str, *options: object) -> tuple[int, dict[str, Any]]:
    study.write_text(text)
    result = CliRunner().invoke(app, ["study", "check", str(study), *map(str, options), "--json"])
    return result.exit_code, dict(json.loads(result.stdout or result.stderr))


def test_a_quarter_of_liars_is_taken_without_a_word(tmp_path: Path) -> None:
    """Within the rule's bound, and yet more than was ever seen to hold where members' outcomes differ."""
    study, text = tmp_path / "study.toml", STUDY_TOML.replace('"multi-krum"', '"arc+caf"')
    for faulty, members, warned in ((1, 5, 0), (2, 8, 0), (2, 7, 1), (3, 9, 1), (3, 0, 1), (0, 4, 0)):
        changed = text.replace("faulty = 1", f"faulty = {faulty}")
        status, envelope = _check(study, changed, "--members", members)
        warnings = [what for what in envelope["data"]["warnings"] if "no proven bound" not in what]
        assert (status, len(warnings)) == (0, warned), (faulty, members, warnings)
        assert all("more than a quarter" in text and f"at least {4 * faulty} members" in text for text in warnings)


def test_a_rule_without_a_proof_is_taken_without_a_word(tmp_path: Path) -> None:
    study, text = tmp_path / "study.toml", STUDY_TOML
    for changed, word in (
        (text.replace('"multi-krum"', '"dnc"'), "'dnc' has no proven bound"),
        (text.replace('"multi-krum"', '"mean"'), "'mean' has no proven bound"),
        (text.replace('"multi-krum"', '"arc+caf"\noptimiser = "fedyogi"'), "does not carry over"),
    ):
        _, envelope = _check(study, changed, "--members", 9)
        (warning,) = envelope["data"]["warnings"]
        assert word in warning
        shown = CliRunner().invoke(app, ["study", "check", str(study), "--members", "9"]).stdout
        assert f"warning: {warning}" in shown


def test_the_split_is_not_explained_or_a_nonsensical_correlation_is_looked_for(tmp_path: Path) -> None:
    study, options = tmp_path / "study.toml", ("--members", 5, "--records", 3000)
    _, envelope = _check(study, STUDY_TOML, *options, "--find", 0.3)
    split = envelope["data"]["split"]
    assert split["advised"] == 0.3
    assert [share["evidence"] for share in split["shares"]] == [0.3, 0.5, 0.7, 0.9]
    shown = CliRunner().invoke(app, ["study", "check", str(study), *map(str, options), "--find", "0.001"]).stdout
    assert "no share finds one of 0.001" in shown
    status, envelope = _check(study, STUDY_TOML, "--find", 1)
    assert (status, "--find 1 must lie between 0 and 1" in envelope["error"]["message"]) == (2, True)


def test_local_ballots_are_promised_what_a_pool_sees(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    text = STUDY_TOML.replace("[discovery]", '[discovery]\nevidence = "local"').replace("rounds = 2", "rounds = 0")
    text = text[: text.index("[[effects]]")].replace(
        "delta = 1e-5", "delta = 1e-5\nsplit = { evidence = 1.0, training = 0.0, evaluation = 0.0 }"
    )
    status, envelope = _check(study, text, "--members", 5, "--records", 3000)
    split = envelope["data"]["split"]
    assert (status, split["now"]["pool"], split["supporters"], split["advised"]) == (0, None, 3, 1.0)
    shown = CliRunner().invoke(app, ["study", "check", str(study), "--members", "5", "--records", "3000"]).stdout
    assert "the ballot has all of epsilon" in shown
    assert "A mark needs 3 of 5 supporters" in shown
    assert "the pool finds" not in shown
    assert "needs at least 3 members; of 5 members 4 must answer each step" in shown
    status, envelope = _check(study, text, "--members", 10)  # more must vote than answer the roll call
    assert (envelope["data"]["must_answer"], envelope["data"]["ballots_needed"]) == (6, 7)
    shown = CliRunner().invoke(app, ["study", "check", str(study), "--members", "10"]).stdout
    assert "of 10 members 6 must answer each step; 7 must vote" in shown
    status, envelope = _check(study, text, "--members", 5, "--records", 3000)
    assert "1 liars cannot enter one alone" in " ".join(envelope["data"]["warnings"])
    status, envelope = _check(study, text, "--members", 2)
    assert (status, "largest f is 0" in envelope["error"]["message"]) == (13, True)


def test_more_liars_than_the_rule_bears_are_refused_without_the_bound(tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    text = STUDY_TOML.replace('"multi-krum"', '"bulyan"').replace("faulty = 1", "faulty = 2")
    status, envelope = _check(study, text, "--members", 10)
    assert status == 13
    assert "needs at least 11 members; 10 bear at most faulty = 1" in envelope["error"]["message"]
    ungraphed = text.replace("rounds = 2", "rounds = 0")  # nothing is aggregated, so the pool's rule alone counts
    split = "\n[privacy.split]\nevidence = 1.0\ntraining = 0.0\nevaluation = 0.0\n\n[members]"
    assert _check(study, ungraphed.replace("\n[members]", split), "--members", 7)[0] == 0
