"""The chart as Helm renders it."""

import functools
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from tests.deploy.tools import ROOT, run

CHART = ROOT / "helm"
SHAPES = sorted(path.name.removesuffix("-values.yaml") for path in (CHART / "ci").glob("*-values.yaml"))
NAMESPACE = "serving"
# With what the cluster has besides its own kinds.
Document = Mapping[str, Any]


@functools.cache
def rendered(shape: str, *settings: str, helm: str = "helm") -> str:
    """What the values of `ci/` make, with `settings` as `--set` takes them."""
    sets = [part for setting in settings for part in ("--set", setting)]
    values = CHART / "ci" / f"{shape}-values.yaml"
    return run(helm, "template", "t", CHART, "--namespace", NAMESPACE, "--values", values, *sets).stdout


def refused(shape: str, *settings: str, helm: str = "helm") -> str:
    """What Helm says instead of rendering."""
    done: subprocess.CompletedProcess[str] = run(
        helm,
        *("template", "t", CHART, "--values", CHART / "ci" / f"{shape}-values.yaml"),
        *(part for setting in settings for part in ("--set-json", setting)),
        check=False,
    )
    assert done.returncode != 0, "rendered what should be refused"
    return done.stderr


def documents(shape: str, *settings: str) -> Sequence[Document]:
    return [each for each in yaml.safe_load_all(rendered(shape, *settings)) if each]


def only(shape: str, kind: str, name: str, *settings: str) -> Document:
    (found,) = (
        each
        for each in documents(shape, *settings)
        if each["kind"] == kind and each["metadata"]["name"] == name
    )
    return found


def pods(shape: str, *settings: str) -> Iterator[tuple[str, Document]]:
    """Every pod or pod template, whoever makes it: name and `{metadata, spec}`."""
    for each in documents(shape, *settings):
        name = f"{each['kind']}/{each['metadata']['name']}"
        match each["kind"]:
            case "Pod":
                yield name, each
            case "Deployment" | "Job":
                yield name, each["spec"]["template"]
            case "LeaderWorkerSet":
                for role in ("leaderTemplate", "workerTemplate"):
                    yield f"{name}/{role}", each["spec"]["leaderWorkerTemplate"][role]


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def container(pod: Document, name: str = "steersman") -> Document:
    (found,) = (each for each in containers(pod) if each["name"] == name)
    return found


def engine(shape: str, *settings: str) -> Document:
    """The pod that answers HTTP: of the Deployment, or a group's leader."""
    return next(pod for name, pod in pods(shape, *settings) if name.split("/")[1] == "t-steersman")
