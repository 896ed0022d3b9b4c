"""What matters of the chart's pods: security, probes, drain, who is selected, what rolls them."""

import pytest
import yaml

from server.auth import _OPEN_PATHS
from tests.deploy.chart import (
    SHAPES,
    container,
    containers,
    documents,
    engine,
    only,
    pods,
    refused,
    rendered,
)

ALL = [(shape, name) for shape in SHAPES for name, _ in pods(shape)]


def pod(shape, name):
    return dict(pods(shape))[name]


@pytest.mark.parametrize(("shape", "name"), ALL)
def test_a_pod_is_restricted(shape, name):
    """Every field of Pod Security's `restricted`, and beyond it a read-only root and no token."""
    spec = pod(shape, name)["spec"]
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["enableServiceLinks"] is False
    allowed = {"configMap", "emptyDir", "ephemeral", "persistentVolumeClaim", "secret"}
    assert all(volume.keys() - {"name"} <= allowed for volume in spec.get("volumes", ()))
    for each in containers(pod(shape, name)):
        security = each["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["runAsNonRoot"] is True
        assert security["privileged"] is False
        assert "hostPort" not in str(each.get("ports"))


@pytest.mark.parametrize(("shape", "name"), ALL)
def test_only_the_router_that_asks_the_api_server_has_a_token(shape, name):
    """A token is mounted in vllm-router's pods and in no other."""
    spec = pod(shape, name)["spec"]
    asks = shape == "vllm-router" and name.endswith("-router")
    assert spec["automountServiceAccountToken"] is asks


@pytest.mark.parametrize(("shape", "name"), ALL)
def test_a_container_has_bounds_and_a_fixed_image(shape, name):
    """Requests and a limit of memory for each container; no image is `latest` or without a tag."""
    for each in containers(pod(shape, name)):
        assert {"cpu", "memory"} <= each["resources"]["requests"].keys()
        assert "memory" in each["resources"]["limits"]
        image = each["image"].rpartition("/")[2]
        assert "@sha256:" in image or (":" in image and not image.endswith(":latest"))


@pytest.mark.parametrize(("shape", "name"), ALL)
def test_what_is_mounted_is_there(shape, name):
    """Every mount has its volume, and every volume a mount."""
    spec = pod(shape, name)["spec"]
    mounted = {mount["name"] for each in containers(pod(shape, name)) for mount in each["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_engine_writes_only_where_it_may(shape):
    """Home, temporary files, caches and shared memory are volumes, since the root is read-only."""
    server = container(engine(shape))
    environ = {each["name"]: each.get("value") for each in server["env"]}
    mounts = {mount["mountPath"] for mount in server["volumeMounts"] if not mount.get("readOnly")}
    assert {environ["HOME"], environ["TMPDIR"], environ["STEERSMAN_HOME"], "/dev/shm"} <= mounts
    assert environ["HF_HOME"].startswith("/models/")
    assert environ["VLLM_CACHE_ROOT"].startswith("/models/")
    (shm,) = (each for each in engine(shape)["spec"]["volumes"] if each["name"] == "shm")
    assert shm["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("shape", SHAPES)
def test_an_engine_has_three_probes_without_a_key(shape):
    """A drain is seen by readiness alone, which is lost within seconds; the start has time."""
    server = container(engine(shape))
    for kind, path in {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/health",
    }.items():
        assert server[kind]["httpGet"] == {"path": path, "port": "http"}
        assert path in _OPEN_PATHS
    start = server["startupProbe"]
    assert start["failureThreshold"] * start["periodSeconds"] >= 600
    readiness = server["readinessProbe"]
    assert readiness["failureThreshold"] * readiness["periodSeconds"] <= 15
    assert server["livenessProbe"]["failureThreshold"] >= 3


@pytest.mark.parametrize("shape", SHAPES)
def test_a_pod_has_time_to_drain(shape):
    """The grace period covers the preStop sleep, the server's own limit and its teardown."""
    spec = engine(shape)["spec"]
    server = container(engine(shape))
    sleeps = server["lifecycle"]["preStop"]["sleep"]["seconds"]
    limit = int(server["args"][server["args"].index("--shutdown-timeout") + 1])
    assert spec["terminationGracePeriodSeconds"] == sleeps + limit + 10
    assert (sleeps, limit) == (15, 60)


def test_a_longer_drain_moves_the_grace_period():
    """What is set is what the server and Kubernetes are told; a longer grace period stays as asked."""
    settings = ("drain.timeoutSeconds=600", "drain.preStopSeconds=20")
    spec = engine("cpu", *settings)["spec"]
    assert spec["terminationGracePeriodSeconds"] == 630
    assert "600" in container(engine("cpu", *settings))["args"]
    longer = engine("cpu", "terminationGracePeriodSeconds=900")["spec"]
    assert longer["terminationGracePeriodSeconds"] == 900


@pytest.mark.parametrize("shape", ["envoy", "vllm-router"])
def test_a_router_outlives_the_streams_through_it(shape):
    """It sleeps as long as an engine drains, since on SIGTERM it cuts what is open."""
    router = pod(shape, "Deployment/t-steersman-router")
    sleeps = router["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleeps == 15 + 60
    assert router["spec"]["terminationGracePeriodSeconds"] > sleeps


def selected(shape, selector):
    """Names of the pods that have all labels of the selector."""
    return {
        name
        for name, each in pods(shape)
        if selector.items() <= (each["metadata"]["labels"] | worker_index(name)).items()
    }


def worker_index(name):
    """What the LeaderWorkerSet controller adds."""
    label = "leaderworkerset.sigs.k8s.io/worker-index"
    return (
        {label: "0"}
        if name.endswith("leaderTemplate")
        else {label: "1"}
        if name.endswith("workerTemplate")
        else {}
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_services_select_what_they_should(shape):
    """The API's Service leads to routers where they run, else to serving pods."""
    serving = {
        "LeaderWorkerSet/t-steersman/leaderTemplate" if shape == "multinode" else "Deployment/t-steersman"
    }
    routed = {"Deployment/t-steersman-router"} & {name for name, _ in pods(shape)}
    assert selected(shape, only(shape, "Service", "t-steersman")["spec"]["selector"]) == (routed or serving)
    headless = only(shape, "Service", "t-steersman-engine")["spec"]
    assert selected(shape, headless["selector"]) == serving
    assert headless["clusterIP"] == "None"
    for service in ("t-steersman", "t-steersman-engine"):
        for port in only(shape, "Service", service)["spec"]["ports"]:
            (target,) = selected(shape, only(shape, "Service", service)["spec"]["selector"])
            names = {each["name"] for each in pod(shape, target)["spec"]["containers"][0]["ports"]}
            assert port["targetPort"] in names


@pytest.mark.parametrize("shape", SHAPES)
def test_workloads_select_their_own_pods(shape):
    """A Deployment's selector matches its template alone, and has nothing that an upgrade changes."""
    for each in documents(shape):
        if each["kind"] == "Deployment":
            labels = each["spec"]["selector"]["matchLabels"]
            assert selected(shape, labels) == {f"Deployment/{each['metadata']['name']}"}
            assert not any("version" in label or "chart" in label for label in labels)
        if each["kind"] == "PodDisruptionBudget":
            assert len(selected(shape, each["spec"]["selector"]["matchLabels"])) == 1


def test_a_changed_configuration_rolls_the_pods():
    """New patterns or another database URL change the template, the same ones do not."""

    def checksums(*settings):
        annotations = engine("multinode", *settings)["metadata"]["annotations"]
        return annotations["checksum/config"], annotations["checksum/secret"]

    before = checksums()
    assert checksums("service.port=81") == before
    assert checksums("server.redact={x}")[0] != before[0]
    assert checksums("database.url=postgresql://other/db")[1] != before[1]
    envoys = [
        pod_template["metadata"]["annotations"]["checksum/config"]
        for settings in ((), ("router.sessionHeader=x-chat",))
        for name, pod_template in pods("envoy", *settings)
        if name.endswith("-router")
    ]
    assert envoys[0] != envoys[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_secret_is_in_plain_sight(shape):
    """The database URL and tokens stand in Secrets alone."""
    if shape == "multinode":
        without = [each for each in documents(shape) if each["kind"] != "Secret"]
        assert "secret@postgres" in rendered(shape)
        assert "secret@postgres" not in yaml.safe_dump(without)
    for name, each in pods(shape):
        for entry in (entry for box in containers(each) for entry in box.get("env", ())):
            if entry["name"] in {"STEERSMAN_DATABASE_URL", "HF_TOKEN", "STEERSMAN_KEY"}:
                assert "secretKeyRef" in entry["valueFrom"], name


def test_one_sqlite_file_has_one_writer():
    """With SQLite the old pod ends before the new one starts; with PostgreSQL pods roll."""
    assert only("cpu", "Deployment", "t-steersman")["spec"]["strategy"] == {"type": "Recreate"}
    rolling = only("envoy", "Deployment", "t-steersman")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 0, "maxUnavailable": 1}
    surging = only("hpa", "Deployment", "t-steersman")["spec"]["strategy"]["rollingUpdate"]
    assert surging == {"maxSurge": 1, "maxUnavailable": 0}


def test_the_schema_is_migrated_once_or_before_each_start():
    """An init container by default; with `job` a hook before installs and upgrades."""
    assert [each["name"] for each in engine("envoy")["spec"]["initContainers"]] == ["migrate"]
    assert "initContainers" not in engine("hardened")["spec"]
    job = only("hardened", "Job", "t-steersman-migrate")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    environ = {each["name"]: each for each in container(job["spec"]["template"], "migrate")["env"]}
    reference = environ["STEERSMAN_DATABASE_URL"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "steersman-database", "key": "url"}
    # what a hook needs must be there before the chart's own objects are
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == "default"


def test_workers_know_no_database():
    """They have no route; their leader alone opens it."""
    for name, each in pods("multinode"):
        named = {entry["name"] for box in containers(each) for entry in box.get("env", ())}
        assert ("STEERSMAN_DATABASE_URL" in named) == (not name.endswith("workerTemplate")), name


@pytest.mark.parametrize("shape", SHAPES)
def test_fields_of_a_router_are_dropped_behind_it_alone(shape):
    """Elsewhere nobody adds them, and a client that sends one is told."""
    assert ("--behind-vllm-router" in container(engine(shape))["args"]) == (shape == "vllm-router")


def test_logs_are_json_unless_asked_otherwise():
    """The server's, the workers' and the migration's."""
    for settings, wanted in (((), "json"), (("server.logFormat=text",), "text")):
        for _, each in pods("multinode", *settings):
            for box in containers(each):
                if box["name"] in {"steersman", "migrate"}:
                    assert {"name": "STEERSMAN_LOG_FORMAT", "value": wanted} in box["env"]


def test_a_group_of_nodes_is_one_engine():
    """Both roles get the same parallel sizes, only workers are headless, and only the leader answers HTTP."""
    roles = {
        name.rpartition("/")[2]: container(each) for name, each in pods("multinode") if "Template" in name
    }
    leader, worker = roles["leaderTemplate"], roles["workerTemplate"]
    shared = [
        argument for argument in worker["args"] if argument not in {"--headless", "$(LWS_WORKER_INDEX)"}
    ]
    rank = leader["args"].index("--node-rank") + 1
    assert [argument for at, argument in enumerate(leader["args"]) if at != rank] == shared
    assert leader["args"][rank] == "0"
    assert "--headless" in worker["args"]
    assert "--headless" not in leader["args"]
    for flag, value in {
        "--tensor-parallel-size": "8",
        "--pipeline-parallel-size": "2",
        "--nnodes": "$(LWS_GROUP_SIZE)",
        "--master-addr": "$(LWS_LEADER_ADDRESS)",
    }.items():
        assert leader["args"][leader["args"].index(flag) + 1] == value
    assert not worker.keys() & {"startupProbe", "readinessProbe", "livenessProbe", "ports"}
    assert leader["resources"]["limits"]["nvidia.com/gpu"] == "8"
    workload = only("multinode", "LeaderWorkerSet", "t-steersman")["spec"]
    assert workload["leaderWorkerTemplate"]["restartPolicy"] == "RecreateGroupOnPodRestart"
    assert workload["startupPolicy"] == "LeaderCreated"


def test_every_argument_is_one_that_the_server_has():
    """`steersman serve` parses what the chart passes."""
    from server.vllm_launch import _parse

    for shape in SHAPES:
        for name, each in pods(shape):
            if any(box["name"] == "steersman" for box in each["spec"]["containers"]):
                numbers = {
                    "$(LWS_GROUP_SIZE)": "2",
                    "$(LWS_WORKER_INDEX)": "1",
                    "$(LWS_LEADER_ADDRESS)": "10.0.0.1",
                }
                command, *flags = (numbers.get(each, each) for each in container(each)["args"])
                assert command == "serve", name
                parsed = _parse(list(flags))
                assert parsed.shutdown_timeout == 60
                assert parsed.port == 8000


def test_replicas_are_left_to_the_autoscaler():
    """Where one decides, the workload names no number; the target is the workload."""
    for shape, kind in (("hpa", "HorizontalPodAutoscaler"), ("keda", "ScaledObject")):
        assert "replicas" not in only(shape, "Deployment", "t-steersman")["spec"]
        scaler = only(shape, kind, "t-steersman")["spec"]
        assert scaler["scaleTargetRef"] == {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": "t-steersman",
        }
    assert only("envoy", "Deployment", "t-steersman")["spec"]["replicas"] == 2


def test_keda_asks_for_one_number():
    """Waiting and running requests, summed over the model's replicas, zero where there is none."""
    triggers = only("keda", "ScaledObject", "t-steersman")["spec"]["triggers"]
    queries = {each["metadata"]["query"]: each["metadata"]["threshold"] for each in triggers}
    labels = 'namespace="serving",model_name="qwen3-8b"'
    assert queries == {
        f"sum(vllm:num_requests_waiting{{{labels}}}) or vector(0)": "5",
        f"sum(vllm:num_requests_running{{{labels}}}) or vector(0)": "32",
    }


def test_disruptions_are_bounded_where_there_are_replicas():
    """One replica has no budget, which would hold up every drain of its node; several have."""
    kinds = {shape: {each["kind"] for each in documents(shape)} for shape in SHAPES}
    assert "PodDisruptionBudget" not in kinds["cpu"]
    assert {"PodDisruptionBudget"} <= kinds["envoy"] & kinds["keda"] & kinds["no-router"]


def test_the_network_is_closed_but_for_what_is_needed():
    """Engines hear the router and Prometheus, and reach DNS, the database and the model hub."""
    policy = only("hardened", "NetworkPolicy", "t-steersman")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert all("from" in rule for rule in policy["ingress"])
    ports = [sorted({port["port"] for port in rule["ports"]}) for rule in policy["egress"]]
    assert ports == [[53], [5432], [443]]
    router = only("hardened", "NetworkPolicy", "t-steersman-router")["spec"]
    assert [[port["port"] for port in rule["ports"]] for rule in router["ingress"]] == [[8080], [9902]]
    assert all("from" in rule for rule in router["ingress"])


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.tracing:4317", 4317),
        ("http://10.0.0.5:4318/v1/traces", 4318),
        ("https://[fd00::1]:443/", 443),
    ],
)
def test_traces_reach_their_collector_and_nothing_else(endpoint, port):
    """The engine may go to the collector's port, where it is said where that is, and speaks its protocol."""
    settings = (
        f"monitoring.otlpEndpoint={endpoint}",
        "monitoring.otlpProtocol=http/protobuf",
        "networkPolicy.collector[0].namespaceSelector.matchLabels.name=tracing",
    )
    *_, rule = only("hardened", "NetworkPolicy", "t-steersman", *settings)["spec"]["egress"]
    assert rule["ports"] == [{"port": port}]
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": {"name": "tracing"}}}]
    box = container(engine("hardened", *settings))
    assert box["args"][box["args"].index("--otlp-traces-endpoint") + 1] == endpoint
    told = {each["name"]: each.get("value") for each in box["env"]}
    assert told["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"


def test_pods_of_a_group_reach_one_another_and_nobody_else():
    """Every port is open between pods of the release's groups, in both directions."""
    policy = only("multinode", "NetworkPolicy", "t-steersman")["spec"]
    inside = [rule for rule in policy["ingress"] if "ports" not in rule]
    outside = [rule for rule in policy["egress"] if "ports" not in rule]
    assert len(inside) == len(outside) == 1
    assert inside[0]["from"] == outside[0]["to"]
    assert "instance" in str(inside[0]["from"])


def test_the_embedded_model_is_linked_where_the_server_looks():
    """Only the CPU image has one; a claim would hide it."""
    assert [each["name"] for each in engine("cpu")["spec"]["initContainers"]] == ["model", "migrate"]
    assert "model" not in [each["name"] for each in engine("gpu")["spec"].get("initContainers", ())]


def test_a_grace_period_that_cuts_requests_is_refused():
    """The message has the sum."""
    assert "= 85" in refused("cpu", "terminationGracePeriodSeconds=84")
