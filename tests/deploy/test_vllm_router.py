"""vllm-router as the chart starts it."""

import re

from tests.deploy.chart import container, pods
from tests.deploy.tools import run


def test_vllm_router_has_the_flags_it_is_given():
    """Every flag is one of the version that the shape names, and the policy one of its policies."""
    router = container(dict(pods("vllm-router"))["Deployment/t-steersman-router"], "vllm-router")
    known = run("vllm-router", "--help").stdout
    assert router["image"].endswith(":0.1.17")
    flags = [argument for argument in router["args"] if argument.startswith("--")]
    assert "--disable-retries" in flags
    for flag in flags:
        assert re.search(rf"{flag}[ \]\n]", known), flag
    policy = router["args"][router["args"].index("--policy") + 1]
    assert policy in re.search(r"\[--policy \{(.*?)\}\]", known)[1].split(",")


def test_vllm_router_finds_serving_pods_of_this_release_alone():
    """It asks for pods with all labels of the serving pods, in the release's namespace."""
    args = container(dict(pods("vllm-router"))["Deployment/t-steersman-router"], "vllm-router")["args"]
    labels = dict(pods("vllm-router"))["Deployment/t-steersman"]["metadata"]["labels"]
    selector = dict(argument.split("=") for argument in args[args.index("--selector") + 1 :])
    assert selector.items() <= labels.items()
    assert {"app.kubernetes.io/instance", "app.kubernetes.io/component"} <= selector.keys()
    assert args[args.index("--service-discovery-namespace") + 1] == "serving"
