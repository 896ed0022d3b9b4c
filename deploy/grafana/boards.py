"""Every panel of every dashboard."""

from panel import ENGINE, OURS, Dashboard, Panel, quantiles, rate, share

HTTP = "steersman_http_request_duration_seconds"
OVERVIEW = Dashboard(
    "Steersman: overview",
    {
        "Now": [
            Panel(
                "Replicas",
                {
                    "": f"count(steersman_build_info{{{OURS}}})",
                    "draining": f"sum(steersman_draining{{{OURS}}})",
                },
                kind="stat",
                width=4,
                height=4,
            ),
            Panel(
                "Requests", {"": rate(f"{HTTP}_count", OURS)}, unit="reqps", kind="stat", width=4, height=4
            ),
            Panel(
                "Answers that are 5xx",
                {"": share(f"{HTTP}_count", OURS, 'status=~"5.."')},
                unit="percentunit",
                kind="stat",
                width=4,
                height=4,
            ),
            Panel(
                "Tokens generated",
                {"": rate("vllm:generation_tokens_total", ENGINE)},
                unit="short",
                kind="stat",
                width=4,
                height=4,
                description="Per second.",
            ),
            Panel(
                "Waiting", {"": f"sum(vllm:num_requests_waiting{{{ENGINE}}})"}, kind="stat", width=4, height=4
            ),
            Panel(
                "KV cache",
                {"": f"max(vllm:kv_cache_usage_perc{{{ENGINE}}})"},
                unit="percentunit",
                kind="stat",
                width=4,
                height=4,
                description="Of the fullest engine.",
            ),
        ],
        "Traffic": [
            Panel("Requests by route", {"{{route}}": rate(f"{HTTP}_count", OURS, "route")}, unit="reqps"),
            Panel(
                "Answers by status",
                {"{{status}}": rate(f"{HTTP}_count", OURS, "status")},
                unit="reqps",
                stacked=True,
            ),
            Panel(
                "Ends of generations",
                {"{{finished_reason}}": rate("vllm:request_success_total", ENGINE, "finished_reason")},
                unit="reqps",
                stacked=True,
            ),
        ],
        "Latency": [
            Panel("Time to first token", quantiles("vllm:time_to_first_token_seconds", ENGINE), unit="s"),
            Panel("Time between tokens", quantiles("vllm:inter_token_latency_seconds", ENGINE), unit="s"),
            Panel("Whole request", quantiles("vllm:e2e_request_latency_seconds", ENGINE), unit="s"),
            Panel("Queue time", quantiles("vllm:request_queue_time_seconds", ENGINE), unit="s"),
            Panel("Prefill time", quantiles("vllm:request_prefill_time_seconds", ENGINE), unit="s"),
            Panel(
                "Answer by route, p95",
                {
                    "{{route}}": "histogram_quantile(0.95, sum by (route, le) "
                    f"(rate({HTTP}_bucket{{{OURS}}}[$__rate_interval])))"
                },
                unit="s",
            ),
        ],
        "Tokens": [
            Panel(
                "Tokens per second",
                {
                    "prompt": rate("vllm:prompt_tokens_total", ENGINE),
                    "generated": rate("vllm:generation_tokens_total", ENGINE),
                },
            ),
            Panel("Prompt length", quantiles("vllm:request_prompt_tokens", ENGINE)),
            Panel("Answer length", quantiles("vllm:request_generation_tokens", ENGINE)),
        ],
        "Queue and KV cache": [
            Panel(
                "Requests in the engine",
                {
                    "running": f"sum(vllm:num_requests_running{{{ENGINE}}})",
                    "waiting": f"sum(vllm:num_requests_waiting{{{ENGINE}}})",
                },
            ),
            Panel(
                "KV cache in use",
                {"{{instance}}": f"max by (instance) (vllm:kv_cache_usage_perc{{{ENGINE}}})"},
                unit="percentunit",
            ),
            Panel(
                "Prefix cache hits",
                {
                    "hits": f"{rate('vllm:prefix_cache_hits_total', ENGINE)} / "
                    f"{rate('vllm:prefix_cache_queries_total', ENGINE)}"
                },
                unit="percentunit",
            ),
            Panel("Interrupted requests", {"": rate("vllm:num_preemptions_total", ENGINE)}, unit="reqps"),
            Panel(
                "Turned away",
                {"{{reason}}": rate("vllm:admission_rejections_total", ENGINE, "reason")},
                unit="reqps",
                description="Where --max-queue or --max-num-queued-tokens is set.",
            ),
            Panel(
                "Memory of the API servers",
                {"{{instance}}": f'process_resident_memory_bytes{{job="steersman",{OURS}}}'},
                unit="bytes",
                description="Not told where one server has several API processes.",
            ),
            Panel(
                "Transactions without a database",
                {"{{instance}}": rate("steersman_database_failures_total", OURS, "instance")},
                unit="ops",
                description="The database did not answer; what was in use goes on for ten minutes.",
            ),
        ],
        "Replicas": [
            Panel(
                "Versions",
                {"{{version}}, vLLM {{vllm}}": f"count by (version, vllm) (steersman_build_info{{{OURS}}})"},
            ),
            Panel(
                "Configurations",
                {
                    "accounts {{accounts}}, interactions {{interactions}}, behaviours {{behavior_mode}}, "
                    "steering {{steering}}, traces {{tracing}}": "count by (accounts, interactions, "
                    f"behavior_mode, steering, tracing) (steersman_config_info{{{OURS}}})"
                },
                description="Replicas of one deployment have one.",
            ),
            Panel("Stopping", {"": f"sum(steersman_draining{{{OURS}}})"}),
        ],
    },
)
DRIFT = "steersman_sae_drift_score"
BELOW_TWO = f'{OURS},le="2.0"'
STEERING = Dashboard(
    "Steersman: steering and behaviours",
    {
        "Steering": [
            Panel(
                "Vectors applied",
                {"{{operation}}": rate("steersman_steering_requests_total", OURS, "operation")},
                unit="ops",
            ),
            Panel(
                "Steered tokens per second",
                {"{{phase}}": rate("steersman_steered_tokens_total", OURS, "phase")},
            ),
            Panel(
                "Lines of the vector table in use",
                {
                    "{{instance}}": f"steersman_steering_rows_used{{{OURS}}}",
                    "{{instance}}: all": f"steersman_steering_rows{{{OURS}}}",
                },
                description="Of --steering-rows; requests wait while there is no room.",
            ),
            Panel("Vectors loaded", {"{{instance}}": f"steersman_steering_vectors_loaded{{{OURS}}}"}),
            Panel(
                "Relative dose",
                quantiles("steersman_steering_dose_ratio", OURS),
                description="Above 1 an answer carries a warning, above 2 the request is refused.",
            ),
            Panel(
                "Refused",
                {"{{reason}}": rate("steersman_steering_errors_total", OURS, "reason")},
                unit="ops",
            ),
        ],
        "Behaviours": [
            Panel(
                "Drift, median and p95",
                quantiles("steersman_sae_drift_score", OURS, "behavior"),
                width=12,
                description="The highest of each answer, in standard deviations of texts without it.",
            ),
            Panel(
                "Answers over 2 standard deviations",
                {
                    "{{behavior}}": f"1 - {rate(f'{DRIFT}_bucket', BELOW_TWO, 'behavior')} / "
                    f"{rate(f'{DRIFT}_count', OURS, 'behavior')}"
                },
                unit="percentunit",
                width=12,
            ),
            Panel(
                "Watched answers",
                {"{{behavior}}": rate("steersman_sae_drift_score_count", OURS, "behavior")},
                unit="ops",
                width=12,
            ),
            Panel(
                "Corrections",
                {
                    "{{behavior}} {{mode}}": rate(
                        "steersman_behavior_corrections_total", OURS, "behavior, mode"
                    )
                },
                unit="ops",
                width=12,
            ),
        ],
    },
)
HITS = rate("steersman_constraint_cache_hits_total", OURS)
POLICIES = Dashboard(
    "Steersman: policies, verifiers and constraints",
    {
        "Policies": [
            Panel(
                "Policies run",
                {"{{outcome}}": rate("steersman_policy_decisions_total", OURS, "outcome")},
                unit="ops",
                stacked=True,
            ),
            Panel(
                "Without an accepted answer",
                {"": share("steersman_policy_decisions_total", OURS, 'outcome="rejected"')},
                unit="percentunit",
            ),
            Panel("Duration", quantiles("steersman_policy_duration_seconds", OURS), unit="s"),
            Panel(
                "Calls that failed",
                {"{{stage}}": rate("steersman_policy_errors_total", OURS, "stage")},
                unit="ops",
                width=12,
                description="`run`: the policy ended without an answer.",
            ),
            Panel("Score", quantiles("steersman_verifier_score_ratio", OURS), width=12),
        ],
        "Verifiers": [
            Panel(
                "Answers looked at",
                {
                    "{{verifier}} {{outcome}}": rate(
                        "steersman_verifier_runs_total", OURS, "verifier, outcome"
                    )
                },
                unit="ops",
                width=12,
            ),
            Panel(
                "Refused",
                {
                    "{{verifier}}": share(
                        "steersman_verifier_runs_total", OURS, 'outcome="failed"', "verifier"
                    )
                },
                unit="percentunit",
                width=12,
            ),
            Panel(
                "Duration",
                quantiles("steersman_verifier_duration_seconds", OURS, "verifier"),
                unit="s",
                width=24,
                description="Of a round's answers: by their text, in the sandbox, by the served model.",
            ),
        ],
        "Sandbox": [
            Panel(
                "Runs of code",
                {"{{outcome}}": rate("steersman_sandbox_runs_total", OURS, "outcome")},
                unit="ops",
            ),
            Panel("Duration", quantiles("steersman_sandbox_seconds", OURS), unit="s"),
            Panel("Sandboxes that wait", {"{{instance}}": f"steersman_sandbox_idle{{{OURS}}}"}),
        ],
        "Decoding": [
            Panel(
                "Sampling methods",
                {"{{method}}": rate("steersman_sampling_requests_total", OURS, "method")},
                unit="reqps",
            ),
            Panel(
                "Constraints",
                {"{{type}} {{outcome}}": rate("steersman_constraint_requests_total", OURS, "type, outcome")},
                unit="reqps",
            ),
            Panel(
                "Constraints that do not compile",
                {"{{type}}": share("steersman_constraint_requests_total", OURS, 'outcome="refused"', "type")},
                unit="percentunit",
            ),
            Panel(
                "Compiling a constraint",
                quantiles("steersman_constraint_compile_duration_seconds", OURS, "type"),
                unit="s",
                width=12,
            ),
            Panel(
                "Constraints known already",
                {
                    "": f"{HITS} / ({HITS} + {rate('steersman_constraint_cache_misses_total', OURS)})",
                },
                unit="percentunit",
                width=12,
            ),
        ],
    },
)
TENANT = "coalesce(p.key, a.email) AS tenant"
TENANTS_OF = "accounts a LEFT JOIN projects p ON p.id = a.id"
USED = """(SELECT account_id, requests, prompt_tokens, completion_tokens, last_used FROM api_keys
  UNION ALL SELECT account_id, requests, prompt_tokens, completion_tokens, last_used FROM logins)"""
BUSIEST = "topk(10, {})".format
TENANTS = Dashboard(
    "Steersman: tenants",
    {
        "Now": [
            Panel(
                "Requests",
                {"{{tenant}}": BUSIEST(rate("steersman_tenant_requests_total", OURS, "tenant"))},
                unit="reqps",
                description="Of the ten busiest; beyond the fifty that have names, all are `other`.",
            ),
            Panel(
                "Tokens per second",
                {"{{tenant}} {{type}}": BUSIEST(rate("steersman_tenant_tokens_total", OURS, "tenant, type"))},
            ),
            Panel(
                "Not answered",
                {
                    "{{tenant}} {{outcome}}": BUSIEST(
                        rate("steersman_tenant_requests_total", f'{OURS},outcome!="ok"', "tenant, outcome")
                    )
                },
                unit="reqps",
                description="refused: the request's own fault; limited: too many; failed: ours; left: the "
                "client did not wait.",
            ),
        ],
        "Usage": [
            Panel(
                "By account or project",
                {
                    "": f"""SELECT {TENANT}, sum(u.requests) AS requests,
  sum(u.prompt_tokens) AS "prompt tokens", sum(u.completion_tokens) AS "generated tokens",
  max(u.last_used) AS "last used"
FROM {TENANTS_OF} JOIN {USED} u ON u.account_id = a.id
GROUP BY a.id, p.key, a.email ORDER BY sum(u.prompt_tokens + u.completion_tokens) DESC LIMIT 50"""
                },
                kind="table",
                width=12,
                height=10,
                description="Of the keys and sessions it owns, since it was made; from the database.",
            ),
            Panel(
                "By key",
                {
                    "": f"""SELECT {TENANT}, k.name AS key, k.requests,
  k.prompt_tokens AS "prompt tokens", k.completion_tokens AS "generated tokens", k.last_used AS "last used"
FROM {TENANTS_OF} JOIN api_keys k ON k.account_id = a.id WHERE k.revoked_at IS NULL
ORDER BY k.prompt_tokens + k.completion_tokens DESC LIMIT 50"""
                },
                kind="table",
                width=12,
                height=10,
            ),
            Panel(
                "Keys not used for 90 days",
                {
                    "": f"""SELECT {TENANT}, k.name AS key, k.created_at AS made, k.last_used AS "last used"
FROM {TENANTS_OF} JOIN api_keys k ON k.account_id = a.id
WHERE k.revoked_at IS NULL AND coalesce(k.last_used, k.created_at) < now() - interval '90 days'
ORDER BY 4 NULLS FIRST LIMIT 50"""
                },
                kind="table",
                width=12,
            ),
            Panel(
                "Projects",
                {
                    "": """SELECT p.key AS project, p.name,
  (SELECT count(*) FROM memberships m WHERE m.project_id = p.id) AS members,
  (SELECT count(*) FROM aliases s WHERE s.project_id = p.id) AS aliases
FROM projects p ORDER BY p.key LIMIT 50"""
                },
                kind="table",
                width=12,
            ),
        ],
        "Access": [
            Panel(
                "Attempts by what was shown",
                {"{{method}} {{outcome}}": rate("steersman_auth_attempts_total", OURS, "method, outcome")},
                unit="reqps",
            ),
            Panel(
                "Refused: unknown, forbidden, too many",
                {
                    "{{status}} {{route}}": rate(
                        f"{HTTP}_count", OURS + ',status=~"401|403|429"', "status, route"
                    )
                },
                unit="reqps",
            ),
            Panel(
                "Refused for a limit",
                {"{{limit}}": rate("steersman_rate_limited_total", OURS, "limit")},
                unit="reqps",
                description="Of keys: requests, tokens, concurrency (429). Of the engine: queue (503).",
            ),
            Panel(
                "Chat completions not stored",
                {"{{reason}}": rate("steersman_interactions_dropped_total", OURS, "reason")},
                unit="ops",
            ),
        ],
    },
    postgres=True,
)
DASHBOARDS = {"overview": OVERVIEW, "steering": STEERING, "policies": POLICIES, "tenants": TENANTS}
