"""Custom resources checked against their definitions, strictly: a misspelt field is an error."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.chart import Document


@functools.cache
def definitions() -> dict[tuple[str, str], dict[str, Any]]:
    """Schemas by apiVersion and kind, from the YAML files of the folder $STEERSMAN_CRDS."""
    folder = os.environ.get("STEERSMAN_CRDS")
    if not folder or not Path(folder).is_dir():
        pytest.skip(
            "STEERSMAN_CRDS names no folder of CustomResourceDefinitions: put the CRD files of KEDA, "
            "prometheus-operator, Gateway API, its inference extension and LeaderWorkerSet in one"
        )
    found = {}
    for path in Path(folder).glob("*.yaml"):
        for each in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader):
            if each and each["kind"] == "CustomResourceDefinition":
                spec = each["spec"]
                for version in spec["versions"]:
                    api = f"{spec['group']}/{version['name']}"
                    found[api, spec["names"]["kind"]] = strict(
                        version["schema"]["openAPIV3Schema"], root=True
                    )
    return found


def strict(node: Any, *, root: bool = False) -> Any:
    """A CRD's schema as JSON Schema in which unknown fields are errors."""
    if isinstance(node, list):
        return [strict(each) for each in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string") or node.get("x-kubernetes-preserve-unknown-fields"):
        return {}
    made = {}
    for key, value in node.items():
        if key == "properties":
            made[key] = {name: strict(each) for name, each in value.items()}
        elif not key.startswith("x-kubernetes-"):
            made[key] = value if key in ("enum", "default", "required") else strict(value)
    if "properties" in made and "additionalProperties" not in made and not root:
        made["additionalProperties"] = False
    return made


def faults(document: Document, schema: dict[str, Any]) -> Iterator[str]:
    body = {key: value for key, value in document.items() if key != "metadata"}
    for error in jsonschema.Draft202012Validator(schema).iter_errors(body):
        yield f"{document['kind']} {error.json_path}: {error.message[:300]}"
