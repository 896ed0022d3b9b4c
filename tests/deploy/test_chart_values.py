"""The chart's values: documented, typed, and refused where they cannot work."""

import json
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.chart import CHART, SHAPES, refused
from tests.deploy.tools import script

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
README = script("helm/readme.py")


def test_the_readme_has_every_value():
    """The table is what readme.py makes of values.yaml: run it after a change."""
    text = (CHART / "README.md").read_text()
    assert README.written(text) == text
    assert text.count("\n| `") > 100


def test_the_schema_knows_the_values_and_no_others():
    """Every value has a type in the schema, and the schema names none that the chart has not."""

    def compare(values: Any, schema: Any, path: str) -> None:
        if "properties" in schema:
            known = schema["properties"].keys() - ({"global"} if path == "" else set())
            assert values.keys() == known, path
            assert schema["additionalProperties"] is False, path
            for name in known:
                compare(values[name], schema["properties"][name], f"{path}.{name}")
        else:
            assert schema.keys() & {"type", "enum"}, path

    compare(VALUES, SCHEMA, "")


def test_the_defaults_keep_to_the_schema():
    """values.yaml itself passes."""
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)


REFUSED = [
    # shape, settings, what the message says
    (
        "cpu",
        ["replicaCount=2"],
        ["replicaCount", "is for one replica: set database.type to postgresql"],
    ),
    ("cpu", ["autoscaling.enabled=true"], ["autoscaling", "SQLite is for one replica"]),
    ("cpu", ["replicaCount=0"], ["replicaCount"]),
    ("cpu", ['server.logFormat="xml"'], ["logFormat"]),
    ("cpu", ["replicas=2"], ["replicas"]),
    ("cpu", ['accelerator.type="gpu"'], ["model", "the GPU image has no embedded model: set model.id"]),
    ("cpu", ['accelerator.type="tpu"'], ["accelerator"]),
    ("cpu", ['database.type="postgresql"'], ["set database.url, or database.existingSecret"]),
    ("cpu", ['database.url="postgresql://h/d"'], ["set database.type to postgresql"]),
    ("cpu", ['database.migrations="job"'], ["a migration job needs PostgreSQL"]),
    ("cpu", ['image.tag="latest"'], ["image"]),
    ("cpu", ['image.digest="sha256:1"'], ["digest"]),
    ("cpu", ["multinode.enabled=true"], ["multinode needs GPUs: set accelerator.type to gpu"]),
    ("cpu", ['router.type="envoy"'], ["router.type: envoy needs replicas", "set replicaCount above 1"]),
    ("cpu", ["gateway.enabled=true"], ["name the Gateway: set gateway.parentRefs"]),
    ("cpu", ["ingress.enabled=true"], ["set ingress.host"]),
    ("cpu", ['server.extraArgs=["--database-url","x"]'], ["extraArgs"]),
    (
        "cpu",
        ["terminationGracePeriodSeconds=30"],
        ["terminationGracePeriodSeconds: 30", "15 + drain.timeoutSeconds 60 + 10 = 85"],
    ),
    (
        "cpu",
        ["monitoring.serviceMonitor.enabled=true", "monitoring.podMonitor.enabled=true"],
        ["podMonitor", "each pod is scraped twice"],
    ),
    ("cpu", ['monitoring.otlpEndpoint="http://collector"'], ["otlpEndpoint"]),
    ("cpu", ['monitoring.otlpProtocol="udp"'], ["otlpProtocol"]),
    ("multinode", ["multinode.size=1"], ["size"]),
    ("multinode", ['modelCache.accessMode="ReadWriteOnce"'], ["several pods share the claim: ReadWriteMany"]),
    ("no-router", ['persistence.accessMode="ReadWriteOnce"'], ["several replicas share the claim"]),
    ("envoy", ['database.url="postgresql://h/d"'], ["leave database.url empty"]),
    (
        "envoy",
        ['database.existingSecret=""', 'database.url="postgresql://h/d"', 'database.migrations="job"'],
        ["set database.existingSecret, or database.migrations init"],
    ),
    ("inferencepool", ["gateway.enabled=false"], ["set gateway.enabled and gateway.parentRefs"]),
    (
        "inferencepool",
        ['router.inferencePool.endpointPicker=""'],
        ["name the Service of the endpoint picker"],
    ),
    (
        "inferencepool",
        ["ingress.enabled=true", 'ingress.host="h"'],
        ["an Ingress would pass the endpoint picker by"],
    ),
    ("vllm-router", ['router.image.repository="envoyproxy/envoy"'], ["name an image that holds vllm-router"]),
    ("keda", ["monitoring.serviceMonitor.enabled=false"], ["autoscaling needs metrics"]),
    (
        "keda",
        ['autoscaling.prometheusAddress=""'],
        ["set autoscaling.prometheusAddress"],
    ),
    ("keda", ["replicaCount=3"], ["autoscaling decides: leave replicaCount at 1"]),
    (
        "hpa",
        ["autoscaling.minReplicas=9"],
        ["maxReplicas: 6 is less than autoscaling.minReplicas: 9"],
    ),
]


@pytest.mark.parametrize("helm", ["helm", "helm3"])
@pytest.mark.parametrize(("shape", "settings", "said"), REFUSED, ids=lambda each: str(each)[:60])
def test_what_cannot_work_is_refused_with_what_would(helm, shape, settings, said):
    """Helm 3 and 4 render nothing, and name the value and, where values clash, what to do."""
    message = refused(shape, *settings, helm=helm)
    for each in said:
        assert each in message


def test_every_rule_of_the_schema_is_tried():
    """Each sentence in the schema's rules is one that the cases above provoke."""
    sentences = set()

    def collect(node: Any) -> None:
        if isinstance(node, dict):
            last = node.get("enum", [None])[-1]
            if isinstance(last, str) and " " in last:
                sentences.add(last)
            for each in node.values():
                collect(each)
        elif isinstance(node, list):
            for each in node:
                collect(each)

    collect(SCHEMA["allOf"])
    said = [each for _, _, words in REFUSED for each in words]
    assert len(sentences) > 15
    untried = {each for each in sentences if not any(part in each for part in said)}
    assert untried == set()


def test_shapes_are_documented():
    """The chart's README leads to every file of values in ci/."""
    text = (CHART / "README.md").read_text()
    assert all(f"(ci/{shape}-values.yaml)" in text for shape in SHAPES)
