"""The chart as a package, through a real registry, and what Helm tells who installs it."""

import socket
import subprocess
import tarfile
import time
from pathlib import Path

import httpx
import pytest
import yaml

from tests.deploy.chart import CHART
from tests.deploy.tools import ROOT, run, tool


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package")
    run("helm", "package", CHART, "--destination", folder)
    (made,) = folder.glob("steersman-*.tgz")
    return made


@pytest.fixture
def registry(tmp_path):
    """The address of a registry of the test's own."""
    program = tool("docker-registry")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "data")}}
    config = {"version": 0.1, "storage": storage, "http": {"addr": address}}
    (tmp_path / "registry.yml").write_text(yaml.safe_dump(config))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([program, "serve", tmp_path / "registry.yml"], stdout=log, stderr=log)
    try:
        for _ in range(100):
            try:
                assert httpx.get(f"http://{address}/v2/").status_code == 200
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def test_a_package_holds_what_templates_read_and_nothing_of_the_tests(package):
    """Rules, dashboards and the test's script are in it; values for tests and scripts are not."""
    with tarfile.open(package) as archive:
        names = {name.removeprefix("steersman/") for name in archive.getnames()}
    assert {"Chart.yaml", "values.schema.json", "files/rules.yaml", "files/check.py", "README.md"} <= names
    assert "files/dashboards/tenants.json" in names
    assert not any(name.startswith("ci/") or name.endswith(("readme.py", ".checkov.yaml")) for name in names)


@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_a_registry_returns_what_was_pushed(helm, package, registry, tmp_path):
    """Pushed to an OCI registry and pulled, the chart is the same file, and renders by its address."""
    run(helm, "push", package, f"oci://{registry}/charts", "--plain-http")
    chart = f"oci://{registry}/charts/steersman"
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    pulled = tmp_path / "pulled"
    pulled.mkdir()
    run(helm, "pull", chart, "--version", version, "--plain-http", "--destination", pulled)
    assert (pulled / package.name).read_bytes() == package.read_bytes()
    made = run(helm, "template", "t", chart, "--version", version, "--plain-http").stdout
    assert made == run(helm, "template", "t", CHART).stdout


def test_versions_agree():
    """The chart's and the package's version are one, and the default tag is of it."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'\nversion = "{chart["appVersion"]}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"steersman:{chart['appVersion']}-cpu" in run("helm", "template", "t", CHART).stdout


def test_an_install_tells_what_to_do_next():
    """The notes have commands for a key and a first call, and no secret."""
    dry = ("install", "t", CHART, "--dry-run=client", "--namespace", "serving")
    notes = run("helm", *dry).stdout.partition("NOTES:")[2]
    assert (
        "--namespace serving exec deploy/t-steersman --container steersman -- steersman keys create" in notes
    )
    assert "port-forward service/t-steersman 8000:80" in notes
    assert "helm --namespace serving test t" in notes
    secret = run("helm", *dry, "--values", CHART / "ci/multinode-values.yaml").stdout.partition("NOTES:")[2]
    assert "pod/t-steersman-0" in secret
    assert "secret@postgres" not in secret


def test_an_old_cluster_is_refused():
    """Before 1.30 a pod could not sleep before it stops."""
    old = run("helm", "template", "t", CHART, "--kube-version", "1.29.0", check=False)
    assert old.returncode != 0
    assert ">=1.30" in old.stderr
    run("helm", "template", "t", CHART, "--kube-version", "1.30.0")
