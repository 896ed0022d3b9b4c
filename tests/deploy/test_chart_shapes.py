"""Every supported shape of the chart, by the real tools."""

import json

import kubernetes_validate
import pytest
import yaml

from tests.deploy import crds
from tests.deploy.chart import CHART, SHAPES, documents, pods, rendered
from tests.deploy.tools import run

KUBERNETES = ("1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37")
CUSTOM = {
    "HTTPRoute",
    "InferencePool",
    "LeaderWorkerSet",
    "PodMonitor",
    "PrometheusRule",
    "ScaledObject",
    "ServiceMonitor",
}
WAIVERS = yaml.safe_load((CHART / ".checkov.yaml").read_text())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_a_shape_passes_the_linter(shape, helm):
    """`helm lint --strict` of Helm 3 and 4 finds nothing in a supported shape."""
    run(helm, "lint", "--strict", CHART, "--values", CHART / "ci" / f"{shape}-values.yaml")


@pytest.mark.parametrize("shape", SHAPES)
def test_both_helms_render_the_same(shape):
    """Helm 3 makes of a shape the objects that Helm 4 makes of it."""
    old, new = (list(yaml.safe_load_all(rendered(shape, helm=helm))) for helm in ("helm3", "helm"))
    assert sorted(map(json.dumps, old)) == sorted(map(json.dumps, new))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_what_kubernetes_takes(shape):
    """Every object of Kubernetes' own kinds is valid, with no unknown field, from 1.30 to 1.37; the rest are
    kinds that the next test knows."""
    own = [each for each in documents(shape) if each["kind"] not in CUSTOM]
    assert own
    for version in KUBERNETES:
        for each in own:
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_custom_resources_match_their_definitions(shape):
    """Every custom resource is valid, with no unknown field, against its CustomResourceDefinition."""
    known = crds.definitions()
    custom = [each for each in documents(shape) if each["kind"] in CUSTOM]
    assert [
        fault for each in custom for fault in crds.faults(each, known[each["apiVersion"], each["kind"]])
    ] == []


def test_the_check_of_custom_resources_can_fail():
    """A misspelt field, a wrong type and a value out of range are found."""
    schema = crds.strict(
        {
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "properties": {
                        "size": {"type": "integer", "minimum": 1},
                        "any": {"x-kubernetes-int-or-string": True},
                    },
                }
            },
        },
        root=True,
    )
    assert not list(crds.faults({"kind": "K", "spec": {"size": 1, "any": "x"}}, schema))
    for wrong in ({"sise": 1}, {"size": "1"}, {"size": 0}):
        assert list(crds.faults({"kind": "K", "spec": wrong}, schema))


def test_every_custom_kind_is_rendered_by_some_shape():
    """No custom resource of the chart escapes these tests."""
    assert {each["kind"] for shape in SHAPES for each in documents(shape)} >= CUSTOM


def test_a_policy_scanner_finds_nothing_but_what_is_waived(tmp_path):
    """checkov passes every shape; each waived check has its reason, and still would fail without."""
    for shape in SHAPES:
        (tmp_path / f"{shape}.yaml").write_text(rendered(shape))
    args = ("--directory", tmp_path, "--framework", "kubernetes", "--compact", "--quiet", "--output", "json")
    found = json.loads(run("checkov", *args, check=False).stdout)
    failed = found["results"]["failed_checks"]
    assert {each["check_id"] for each in failed} == set(WAIVERS), "not waived, or waived in vain"
    assert all(reason and len(reason) > 20 for reason in WAIVERS.values())


def test_the_hardened_shape_needs_fewer_waivers(tmp_path):
    """With digests and pull policy Always, what the defaults are waived for is met."""
    (tmp_path / "hardened.yaml").write_text(rendered("hardened"))
    args = ("--directory", tmp_path, "--framework", "kubernetes", "--compact", "--quiet", "--output", "json")
    found = json.loads(run("checkov", *args, check=False).stdout)
    failed = {each["check_id"] for each in found["results"]["failed_checks"]}
    assert failed <= set(WAIVERS) - {"CKV_K8S_15", "CKV_K8S_40", "CKV_K8S_43"}


def test_every_shape_has_a_pod():
    """The helper that finds pods finds those of every workload kind of the chart."""
    kinds = {name.split("/")[0] for shape in SHAPES for name, _ in pods(shape)}
    assert kinds == {"Deployment", "Job", "LeaderWorkerSet", "Pod"}
