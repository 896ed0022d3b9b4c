"""What ran, as headers: the only place a stream has for it before its first token."""

from policies.run import Outcome
from server.candidates import text_of
from server.observation import observed
from server.vllm_serving import Decoded


def evidence(decoded: Decoded) -> dict[str, str]:
    if decoded.response is not None:
        observed().chooses(text_of(decoded.response.choices[0]))
    headers = {"x-steersman-method": decoded.plan.method_used.value}
    if decoded.plan.warning:
        headers["x-steersman-warning"] = decoded.plan.warning
    for name, value in decoded.steered.headers().items() if decoded.steered else ():
        headers[name] = f"{headers[name]}; {value}" if name in headers else value
    return headers


def outcome_evidence(outcome: Outcome) -> dict[str, str]:
    """Of a policy's winner."""
    answer = outcome.winner.answer
    steering = answer.steering or {}
    headers = {"x-steersman-method": str(answer.method_used)}
    if steering:
        headers["x-steersman-steering"] = steering["fingerprint"]
    warnings = [warning for warning in (answer.warning, steering.get("warning")) if warning]
    return headers | ({"x-steersman-warning": "; ".join(warnings)} if warnings else {})
