"""The deployment files: a command that does not exist, a door left open, a value that no template reads.

They are read, rendered and checked here without any container engine. `render` is a small, strict reader of the part of
Go's templates that the charts keep to; what it does not know is a fault.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import jsonschema
import kubernetes_validate
import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

import causaldao
from causaldao.__main__ import COMMANDS, app
from causaldao.metrics import VARIABLE
from causaldao.server.home import Home, Settings

ROOT = Path(__file__).parents[1]
DEPLOY = {"coordinator": ROOT / "server" / "deploy", "node": ROOT / "client" / "deploy"}
CHARTS = {role: folder / "helm" / f"causaldao-{role}" for role, folder in DEPLOY.items()}
UNITS = {
    "coordinator": DEPLOY["coordinator"] / "causaldao-coordinator.service",
    "node": DEPLOY["node"] / "causaldao-node@.service",
}
PUBLISHED = {"coordinator": {9092, 9093, 9094}, "node": set()}
KUBERNETES = ("1.30", "1.37")
ROLES = tuple(DEPLOY)


def parses(arguments: list[str]) -> None:
    """The real command line takes these arguments; nothing is run."""
    module, attribute, _ = COMMANDS[arguments[0]]
    group = get_command(getattr(import_module(module), attribute))
    assert isinstance(group, click.Group)
    command = group.commands[arguments[1]]
    command.make_context(arguments[1], list(arguments[2:]))


def test_the_lint_takes_any_command() -> None:
    parses(["coordinator", "start", "DIR", "--log-format", "json"])
    for wrong in (["coordinator", "start", "--log-format", "json"], ["node", "start", "DIR", "--port", "1"]):
        with pytest.raises(click.UsageError):
            parses(wrong)
    with pytest.raises(KeyError):
        parses(["coordinator", "begin", "DIR"])


# Compose and the image


def _service(role: str) -> dict[str, Any]:
    value = yaml.safe_load((DEPLOY[role] / "compose.yaml").read_text(encoding="utf-8"))
    assert set(value) == {"name", "services", "volumes"}
    assert list(value["services"]) == [role]
    named = {mount.split(":")[0] for mount in value["services"][role]["volumes"] if isinstance(mount, str)}
    assert named == set(value["volumes"])
    service: dict[str, Any] = value["services"][role]
    return service


@pytest.mark.parametrize("role", ROLES)
def test_compose_opens_a_door(role: str) -> None:
    service = _service(role)
    assert {int(binding.rpartition(":")[2]) for binding in service.get("ports", [])} == PUBLISHED[role]
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & set(service)
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"


COMPOSE = {
    "image", "command", "user", "read_only", "cap_drop", "security_opt", "init", "restart", "stop_signal",
    "stop_grace_period", "pids_limit", "ports", "volumes", "tmpfs", "healthcheck", "logging",
}  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_compose_passes_over_a_word_that_it_does_not_know(role: str) -> None:
    service = _service(role)
    assert COMPOSE - {"ports"} <= set(service) <= COMPOSE
    assert set(service["healthcheck"]) == {"test", "interval", "timeout", "start_period", "retries"}
    assert set(service["logging"]) == {"driver", "options"}


@pytest.mark.parametrize("role", ROLES)
def test_compose_runs_what_does_not_exist(role: str) -> None:
    service = _service(role)
    parses(service["command"])
    assert service["image"].endswith(f":{causaldao.__version__}}}")
    kind, probe = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    program, *arguments = shlex.split(probe.split("|")[0])
    assert program == "causaldao"
    parses(arguments)
    mounted = {_target(mount) for mount in service["volumes"]}
    assert {service["command"][2], arguments[2]} <= mounted


def _target(mount: str | Mapping[str, str]) -> str:
    return mount.split(":")[1] if isinstance(mount, str) else mount["target"]


def test_a_container_could_write_an_institutions_rows() -> None:
    (rows,) = (mount for mount in _service("node")["volumes"] if not isinstance(mount, str))
    assert rows["target"] == "/data"
    assert rows["read_only"] is True


def _home(role: str, folder: Path) -> None:
    """The least folder of which `status` can speak."""
    if role == "coordinator":
        Home.create(folder, Settings(federation="fed", host="localhost"), datetime.now(UTC))
    else:
        folder.mkdir()
        (folder / "node.toml").write_text('name = "north"\ndata = "rows.csv"\ndataset = "ward"\n', encoding="utf-8")
    (folder / "run").mkdir()


@pytest.mark.parametrize("role", ROLES)
def test_a_probe_is_well_when_nothing_runs(role: str, tmp_path: Path) -> None:
    probe = _service(role)["healthcheck"]["test"][1]
    folder = tmp_path / "home"
    _home(role, folder)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process, status in ((None, 1), (ended.pid, 1), (os.getpid(), 0)):
        if process is not None:
            said = {"pid": process, "state": "running", "started": "", "ports": {}}
            (folder / "run" / "status.json").write_text(json.dumps(said), encoding="utf-8")
        told = CliRunner().invoke(app, [role, "status", str(folder), "--json"])
        assert told.exit_code == 0
        found = subprocess.run(shlex.split(probe.split("|")[1]), input=told.stdout, text=True, check=False)
        assert found.returncode == status, process


def test_a_chart_probes_otherwise_than_compose() -> None:
    (main,) = _pod(_manifests("node", _given("node", False)))["spec"]["containers"]
    shell = main["livenessProbe"]["exec"]["command"][2]
    assert shell.replace("/node/home", "/node") == _service("node")["healthcheck"]["test"][1]


@pytest.mark.parametrize("role", ROLES)
def test_the_image_is_run_as_root_or_floats(role: str) -> None:
    text = (DEPLOY[role] / "Dockerfile").read_text(encoding="utf-8")
    lines = text.replace("\\\n", " ").splitlines()
    words = [line.split(None, 1) for line in lines if line and not line.startswith("#")]
    (base,) = (rest for word, rest in words if word == "FROM")
    assert base == "python:3.12-slim"
    assert [rest for word, rest in words if word == "USER"] == ["10001:10001"]
    assert {int(port) for word, rest in words if word == "EXPOSE" for port in rest.split()} == PUBLISHED[role]
    assert ("ARG", 'TORCH_INDEX=""') in [tuple(pair) for pair in words]
    (entry,) = (json.loads(rest) for word, rest in words if word == "ENTRYPOINT")
    (arguments,) = (json.loads(rest) for word, rest in words if word == "CMD")
    assert entry == ["causaldao"]
    assert arguments == _service(role)["command"]
    parses(arguments)
    assert f"causaldao-{role}:{causaldao.__version__} " in text


# systemd

DIRECTIVES = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec", "StartLimitBurst"},
    "Install": {"WantedBy"},
    "Service": {
        "Type", "User", "Group", "UMask", "StateDirectory", "StateDirectoryMode", "ExecStart", "Restart", "RestartSec",
        "RestartPreventExitStatus", "KillSignal", "KillMode", "TimeoutStopSec", "LimitNOFILE", "NoNewPrivileges",
        "ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "ProtectClock", "ProtectControlGroups",
        "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc",
        "CapabilityBoundingSet", "AmbientCapabilities", "LockPersonality", "RestrictAddressFamilies",
        "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID", "RemoveIPC", "SystemCallArchitectures",
        "SystemCallFilter",
    },
}  # fmt: skip


class _Directives(configparser.ConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr  # their names keep their case


def _unit(role: str) -> dict[str, dict[str, str]]:
    parser = _Directives(interpolation=None)
    parser.read_string(UNITS[role].read_text(encoding="utf-8"))
    return {section: dict(parser[section]) for section in parser.sections()}


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_says_what_systemd_does_not_know(role: str) -> None:
    for section, given in _unit(role).items():
        assert set(given) <= DIRECTIVES[section]


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_is_not_confined(role: str) -> None:
    service = _unit(role)["Service"]
    assert service["User"] == "causaldao"
    assert (service["NoNewPrivileges"], service["ProtectSystem"], service["PrivateTmp"]) == ("yes", "strict", "yes")
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert (service["UMask"], service["StateDirectoryMode"]) == ("0077", "0700")


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_starts_what_does_not_exist(role: str) -> None:
    service = _unit(role)["Service"]
    program, *arguments = shlex.split(service["ExecStart"])
    assert program.endswith("/bin/causaldao")
    parses(arguments)
    assert arguments[2] == f"/var/lib/{service['StateDirectory']}"
    assert (service["Restart"], service["KillSignal"]) == ("on-failure", "SIGTERM")
    assert int(service["TimeoutStopSec"].removesuffix("s")) > 20  # two children, 8 s each, and the gateway


@pytest.mark.parametrize("role", ROLES)
def test_systemd_itself_refuses_a_unit(role: str, tmp_path: Path) -> None:
    """Where systemd is; elsewhere the two tests above stand alone."""
    verifier = shutil.which("systemd-analyze")
    unit = tmp_path / UNITS[role].name.replace("@", "@north")
    text = UNITS[role].read_text(encoding="utf-8")
    unit.write_text(text.replace("/opt/causaldao/bin/causaldao", sys.executable), encoding="utf-8")
    if verifier is not None:
        done = subprocess.run([verifier, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


# Helm

_TAG = re.compile(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s|]+|\|')
_SPACE = " \n\t\r"


def _look_up(path: str, scope: Mapping[str, Any]) -> Any:
    """A path such as .Values.image.tag; a name that is not there is a fault, as it would not be with Helm."""
    value: Any = scope["."]
    for name in path.strip(".").split(".") if path != "." else ():
        assert isinstance(value, Mapping), f"{path}: {name} is sought in what has no names"
        assert name in value, f"{path} is not among the values"
        value = value[name]
    return value


def _nindent(width: str, text: str) -> str:
    return "\n" + "\n".join(" " * int(width) + line if line else line for line in text.splitlines())


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "quote": lambda value: json.dumps(value if isinstance(value, str) else json.dumps(value)),
    "default": lambda fallback, value: value or fallback,
    "toYaml": lambda value: yaml.safe_dump(value, default_flow_style=None, sort_keys=True).rstrip("\n"),
    "nindent": _nindent,
    "not": lambda value: not value,
}


class Renderer:
    """A chart's templates, and the values they were given."""

    def __init__(self, chart: Path, values: Mapping[str, Any]) -> None:
        meta = yaml.safe_load((chart / "Chart.yaml").read_text(encoding="utf-8"))
        self.scope = {".": {"Values": values, "Release": {"Name": "fed"}, "Chart": {"AppVersion": meta["appVersion"]}}}
        self.defined: dict[str, list[Any]] = {}
        self._render(self._parse((chart / "templates" / "_helpers.tpl").read_text(encoding="utf-8")), self.scope)

    def render(self, path: Path) -> str:
        return self._render(self._parse(path.read_text(encoding="utf-8")), self.scope)

    def _parse(self, text: str) -> list[Any]:
        """Texts, ("print", expression) and (word, expression, inside, otherwise)."""
        root: list[Any] = []
        stack: list[tuple[str, str, list[Any], list[Any]]] = []
        into, place = root, 0
        for tag in _TAG.finditer(text):
            before, place = text[place : tag.start()], tag.end()
            into.append(before.rstrip(_SPACE) if tag[1] else before)
            if tag[3]:
                place += len(text[place:]) - len(text[place:].lstrip(_SPACE))
            word, _, rest = tag[2].partition(" ")
            if word in ("if", "range", "define"):
                block: tuple[str, str, list[Any], list[Any]] = (word, rest, [], [])
                into.append(block)
                stack.append(block)
                into = block[2]
            elif word == "else":
                assert stack[-1][0] == "if"
                assert not rest
                into = stack[-1][3]
            elif word == "end":
                stack.pop()
                into = (stack[-1][3] or stack[-1][2]) if stack else root
            else:
                into.append(("print", tag[2]))
        assert not stack, "a block is not ended"
        return [*root, text[place:]]

    def _render(self, parts: list[Any], scope: Mapping[str, Any]) -> str:
        return "".join(part if isinstance(part, str) else self._block(part, scope) for part in parts)

    def _block(self, part: tuple[Any, ...], scope: Mapping[str, Any]) -> str:
        if part[0] == "print":
            value = self._value(part[1], scope)
            assert not isinstance(value, bool | list | dict), f"{part[1]} is no text: use quote or toYaml"
            return str(value)
        word, expression, inside, otherwise = part
        if word == "define":
            self.defined[json.loads(expression)] = inside
            return ""
        value = self._value(expression, scope)
        if word == "range":
            return "".join(self._render(inside, {".": one}) for one in value)
        return self._render(inside if value else otherwise, scope)

    def _value(self, expression: str, scope: Mapping[str, Any]) -> Any:
        piped: list[Any] = []
        words = _WORD.findall(expression)
        while words:
            end = words.index("|") if "|" in words else len(words)
            piped = [self._call(words[:end], piped, scope)]
            words = words[end + 1 :]
        return piped[0]

    def _call(self, words: list[str], piped: list[Any], scope: Mapping[str, Any]) -> Any:
        name, *arguments = words
        given = [self._literal(word, scope) for word in arguments]
        if name == "include":
            return self._render(self.defined[given[0]], {".": given[1]})
        if name in FUNCTIONS:
            return FUNCTIONS[name](*given, *piped)
        assert not arguments, f"there is no function {name!r} here"
        return self._literal(name, scope)

    @staticmethod
    def _literal(word: str, scope: Mapping[str, Any]) -> Any:
        if word.startswith('"'):
            return json.loads(word)
        return word if word.isdecimal() else _look_up(word, scope)


def _values(role: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CHARTS[role] / "values.yaml").read_text(encoding="utf-8"))
    return values


def _given(role: str, full: bool) -> dict[str, Any]:
    """The values of a plain installation, or of one that uses everything."""
    values = _values(role)
    if role == "coordinator":
        values |= {"federation": "fed", "host": "fed.example.org"}
    if full:
        peer = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
        values["metrics"] |= {"enabled": True, "serviceMonitor": True}
        values["networkPolicy"] |= {"metricsFrom": [peer], "egress": [{"ports": [{"protocol": "TCP", "port": 5432}]}]}
        values["persistence"] |= {"storageClass": "fast"}
        values |= {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "batch", "operator": "Exists"}]}
        values["image"] |= {"repository": "registry.example.org/causaldao", "tag": "0.1.0-2"}
        if role == "coordinator":
            values |= {"databaseSecret": "database"}
            values["service"] |= {"annotations": {"example.org/lb": "internal"}}
        else:
            values["data"] |= {"existingClaim": "rows", "passwordSecret": "warehouse"}
    return values


def _manifests(role: str, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    renderer = Renderer(CHARTS[role], values)
    rendered = [renderer.render(path) for path in sorted((CHARTS[role] / "templates").glob("*.yaml"))]
    return [manifest for text in rendered for manifest in yaml.safe_load_all(text) if manifest]


@pytest.fixture(params=[(role, full) for role in ROLES for full in (False, True)], ids=str)
def case(request: pytest.FixtureRequest) -> tuple[str, bool, list[dict[str, Any]]]:
    role, full = request.param
    return role, full, _manifests(role, _given(role, full))


Case = tuple[str, bool, list[dict[str, Any]]]


def _of(manifests: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def _pod(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    (found,) = _of(manifests, "StatefulSet")
    pod: dict[str, Any] = found["spec"]["template"]
    return pod


def _containers(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    spec = _pod(manifests)["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def test_the_renderer_reads_what_helm_would_not(tmp_path: Path) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("appVersion: '1'\n")
    (tmp_path / "templates" / "_helpers.tpl").write_text('{{- define "n" -}}\na: {{ .Release.Name }}\n{{- end -}}\n')
    renderer = Renderer(tmp_path, {"on": True, "list": [1, 2], "text": 'a "b"', "empty": "", "map": {"k": {"x": 1}}})
    template = tmp_path / "templates" / "t.yaml"
    for text, expected in (
        ("x: {{- include \"n\" . | nindent 2 }}", "x:\n  a: fed"),
        ("{{- if .Values.on }}\nyes\n{{- else }}\nno\n{{- end }}\nz", "\nyes\nz"),
        ("{{- if .Values.empty }}\nyes\n{{- else }}\nno\n{{- end }}\nz", "\nno\nz"),
        ("{{ if not .Values.on }}yes{{ end }}", ""),
        ("{{ range .Values.list }}[{{ . }}]{{ end }}", "[1][2]"),
        ("{{ .Values.text | quote }}", '"a \\"b\\""'),
        ("{{ .Values.empty | default .Chart.AppVersion }}", "1"),
        ("m: {{- toYaml .Values.map | nindent 2 }}", "m:\n  k: {x: 1}"),
        ("a {{- .Values.text -}} b", 'aa "b"b'),
        ("{{ if .Values.on }}{{ if .Values.empty }}1{{ else }}2{{ end }}3{{ else }}4{{ end }}", "23"),
    ):  # fmt: skip
        template.write_text(text)
        assert renderer.render(template) == expected
    for wrong in ("{{ .Values.absent }}", "{{ upper .Values.text }}", "{{ .Values.map }}", "{{ if .Values.on }}"):
        template.write_text(wrong)
        with pytest.raises(AssertionError):
            renderer.render(template)


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_refuses_a_manifest(case: Case, version: str) -> None:
    _, full, manifests = case
    for manifest in manifests:
        if manifest["kind"] == "ServiceMonitor":  # of an operator: its schema is not among Kubernetes's
            assert full
            assert set(manifest["spec"]) == {"selector", "endpoints"}
            continue
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_validator_takes_anything() -> None:
    (found,) = _of(_manifests("node", _given("node", False)), "StatefulSet")
    found["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, KUBERNETES[-1], strict=True)


def test_two_manifests_share_a_name(case: Case) -> None:
    named = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in case[2]]
    assert len(set(named)) == len(named)
    kinds = {kind for kind, _ in named}
    assert kinds == {"StatefulSet", "Service", "NetworkPolicy"} | ({"ServiceMonitor"} if case[1] else set())


def test_a_pod_may_do_more_than_it_needs(case: Case) -> None:
    spec = _pod(case[2])["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in _containers(case[2]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        repository, _, tag = container["image"].rpartition(":")
        assert repository
        assert tag == ("0.1.0-2" if case[1] else causaldao.__version__)


def test_a_pod_runs_what_does_not_exist(case: Case) -> None:
    role, _, manifests = case
    (main,) = _pod(manifests)["spec"]["containers"]
    assert "command" not in main
    parses(main["args"])
    assert main["args"][:2] == [role, "start"]
    roots = {mount["mountPath"] for mount in main["volumeMounts"]}
    assert str(Path(main["args"][2]).parent) in roots
    for container in _pod(manifests)["spec"].get("initContainers", []):
        parses(container["args"])
        assert container["args"][2] == main["args"][2]
        assert f"test -f {main['args'][2]}/coordinator.toml" in container["command"][2]
    if role == "node":
        shell = main["livenessProbe"]["exec"]["command"][2]
        parses(shlex.split(shell.split("|")[0])[1:])


def test_one_manifest_names_what_another_lacks(case: Case) -> None:
    role, full, manifests = case
    (stateful,) = _of(manifests, "StatefulSet")
    pod = stateful["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert stateful["spec"]["selector"]["matchLabels"] == labels
    assert stateful["spec"]["serviceName"] in {one["metadata"]["name"] for one in _of(manifests, "Service")}
    volumes = {one["name"] for one in pod["spec"]["volumes"]}
    volumes |= {one["metadata"]["name"] for one in stateful["spec"]["volumeClaimTemplates"]}
    mounted = {mount["name"] for one in _containers(manifests) for mount in one["volumeMounts"]}
    assert mounted == volumes
    (main,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in main.get("ports", [])}
    assert set(ports.values()) == PUBLISHED[role] | ({9464} if full else set())
    environment = {one["name"]: one.get("value") for one in main["env"]}
    assert environment[VARIABLE] == ("0.0.0.0:9464" if full else "")
    for service in _of(manifests, "Service"):
        assert service["spec"]["selector"] == labels
        assert {port["targetPort"] for port in service["spec"].get("ports", [])} <= set(ports)
        if service["spec"].get("type"):
            assert {port["port"] for port in service["spec"]["ports"]} == PUBLISHED[role]
    for policy in _of(manifests, "NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"] == labels
    for monitor in _of(manifests, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (found,) = (one for one in _of(manifests, "Service") if wanted <= one["metadata"]["labels"].items())
        assert {port["name"] for port in found["spec"]["ports"]} == {
            one["port"] for one in monitor["spec"]["endpoints"]
        }


def test_a_stranger_reads_the_metrics_or_enters_a_node(case: Case) -> None:
    """A rule without `from` lets in everybody: only the coordinator's three doors have one."""
    role, full, manifests = case
    (policy,) = _of(manifests, "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    opened = [rule for rule in policy["spec"]["ingress"] if not rule.get("from")]
    assert [{port["port"] for port in rule["ports"]} for rule in opened] == (
        [{"fleet", "enrolment", "ledger"}] if role == "coordinator" else []
    )
    limited = [rule for rule in policy["spec"]["ingress"] if rule.get("from")]
    assert [rule["ports"] for rule in limited] == ([[{"protocol": "TCP", "port": "metrics"}]] if full else [])
    assert all(rule["ports"] for rule in policy["spec"]["egress"])


def test_a_node_cannot_be_set_up() -> None:
    manifests = _manifests("node", _given("node", False) | {"setup": True})
    (main,) = _pod(manifests)["spec"]["containers"]
    assert main["command"] == ["sleep", "infinity"]
    assert not {"args", "livenessProbe"} & set(main)


def test_rows_are_mounted_to_be_written() -> None:
    manifests = _manifests("node", _given("node", True))
    (main,) = _pod(manifests)["spec"]["containers"]
    (rows,) = (mount for mount in main["volumeMounts"] if mount["mountPath"] == "/data")
    assert rows["readOnly"] is True


@pytest.mark.parametrize("role", ROLES)
def test_metrics_for_nobody_named_are_for_everybody(role: str) -> None:
    values = _given(role, False)
    values["metrics"]["enabled"] = True
    (policy,) = _of(_manifests(role, values), "NetworkPolicy")
    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
    assert "metrics" not in opened


@pytest.mark.parametrize("role", ROLES)
def test_the_policy_cannot_be_switched_off(role: str) -> None:
    values = _given(role, False)
    values["networkPolicy"]["enabled"] = False
    assert _of(_manifests(role, values), "NetworkPolicy") == []


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}"


@pytest.mark.parametrize("role", ROLES)
def test_a_value_is_read_by_no_template_or_a_template_by_no_value(role: str) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (CHARTS[role] / "templates").iterdir())
    used = set(re.findall(r"\.Values((?:\.\w+)+)", text))
    leaves = set(_leaves(_values(role)))
    assert [leaf for leaf in leaves if not any(f"{leaf}.".startswith(f"{path}.") for path in used)] == []
    assert [path for path in used if not any(f"{leaf}.".startswith(f"{path}.") for leaf in leaves)] == []


def _schema(role: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((CHARTS[role] / "values.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return schema


@pytest.mark.parametrize("role", ROLES)
def test_the_schema_and_the_values_differ(role: str) -> None:
    def same(schema: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        assert set(schema["properties"]) == set(values)
        assert schema["additionalProperties"] is False
        for name, inner in schema["properties"].items():
            if "properties" in inner:
                same(inner, values[name])

    same(_schema(role), _values(role))
    for full in (False, True):
        jsonschema.validate(_given(role, full), _schema(role), jsonschema.Draft7Validator)


@pytest.mark.parametrize(
    ("role", "wrong"),
    [
        ("coordinator", {"federation": ""}), ("coordinator", {"host": ""}), ("coordinator", {"faulty": -1}),
        ("coordinator", {"service": {"type": "Loadbalancer"}}), ("coordinator", {"federation": "A B"}),
        ("node", {"setup": "no"}), ("node", {"networkPolicy": {"coordinatorPorts": []}}),
        ("node", {"image": {"repository": "causaldao", "tag": "latest"}}), ("node", {"persistence": {"size": "2"}}),
        ("coordinator", {"host": 'fed"\n'}), ("coordinator", {"replicas": 2}), ("node", {"replicas": 2}),
    ],
)  # fmt: skip
def test_wrong_values_pass(role: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(_given(role, False) | wrong, _schema(role), jsonschema.Draft7Validator)


@pytest.mark.parametrize("role", ROLES)
def test_a_chart_is_of_another_version(role: str) -> None:
    meta = yaml.safe_load((CHARTS[role] / "Chart.yaml").read_text(encoding="utf-8"))
    assert meta["name"] == CHARTS[role].name
    assert meta["version"] == meta["appVersion"] == causaldao.__version__
