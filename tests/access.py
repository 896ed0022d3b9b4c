"""Whose is what on every route: one entry for each method and path of the running app.

A route is `OPEN` (no key), `SHARED` (the same for all, nothing of anyone's), `CALLER` (about whoever calls:
it names nothing), `OPERATOR` (off unless the operator has it on, and the operator's alone where
`operator_routes` has it), or it has the `Ask`s by which a stranger would get at what is another's. Words in
braces in their paths and bodies stand for what the owner has in a project, see `tests/live/belongings.py`.

A new route needs a line here: `tests/server/test_vllm_routes.py` fails without.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from server.roles import Role
from tests.live.steered import noise, pairs_body


class Access(Enum):
    OPEN = "no key"
    SHARED = "the same for all"
    CALLER = "the caller's own"
    OPERATOR = "off by default"


OPEN, SHARED, CALLER, OPERATOR = Access


@dataclass(frozen=True)
class Ask:
    """One request about what the owner has. `stranger` and `owner` are the statuses that each gets.

    `path` differs from the route's where there is a query, or another name for the thing. An `owner` of 0
    makes no such request. `shows` is what the owner's answer has in it, the stranger's not. What `ends` the
    thing is asked last. `role` is the least that may ask, unless it is the method's own.
    """

    route: str = ""
    path: str = ""
    body: Any = None
    stranger: int = 404
    owner: int = 200
    shows: str = ""
    ends: bool = False
    role: Role | None = None

    @property
    def needs(self) -> Role:
        return self.role or (Role.READER if self.method == "GET" else Role.MEMBER)

    @property
    def method(self) -> str:
        return self.route.partition(" ")[0]

    @property
    def lists(self) -> bool:
        return self.method == "GET" and self.stranger == 200

    def filled(self, things: Mapping[str, str]) -> tuple[str, Any]:
        """Path and body with `things` in place of their names."""
        body = None if self.body is None else json.loads(_filled(json.dumps(self.body), things))
        return _filled(self.path or plain_path(self.route), things), body

    def __str__(self) -> str:
        places = ",".join(_places(self.body))
        return f"{self.method} {self.path or plain_path(self.route)}{places and f' ({places})'}"


def plain_path(route: str) -> str:
    """The path of a method and path, without convertors."""
    return route.partition(" ")[2].replace(":path}", "}")


def _filled(text: str, things: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: things[found[1]], text)


def _places(value: Any, path: str = "") -> Iterator[str]:
    """Where a body names what the owner has."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(each, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and ("{" in value or value == OWN_PRESET):
        yield path


def listing(shows: str, query: str = "") -> Ask:
    """A list that has the owner's thing for the owner alone."""
    return Ask(path=query, stranger=200, shows=shows)


def naming(base: Mapping[str, Any], *references: Mapping[str, Any], bad: int = 400) -> tuple[Ask, ...]:
    """Bodies that name the owner's things in the fields of each of `references`; `bad` is the dialect's own
    status of a bad request."""
    return tuple(Ask(body={**base, **each}, stranger=bad if each is PRESET else 404) for each in references)


def asking(document: str, shows: str, **variables: str) -> Ask:
    """A GraphQL query, which a reader may send too."""
    body = {"query": document, "variables": variables}
    return Ask(body=body, stranger=200, shows=shows, role=Role.READER)


# How a body names what is another's.
OWN_PRESET = "domain_specific"  # made of an account's own examples; without them it is a bad request
VECTOR = {"steering_vector_id": "{vector_id}"}
PRESET = {"steering_preset": OWN_PRESET}
STEERING: tuple[Mapping[str, Any], ...] = (
    VECTOR,
    {"steering_vector_id": ["{vector_id}"], "steering_strength": [0.5]},
    {"steering_vector": "{vector_id}"},
    {"steering": {"vector_id": "{vector_id}"}},
    {"steering": [{"vector": noise(2), "gate": {"vector_id": "{vector_id}"}}]},
    PRESET,
)
WATCHING: tuple[Mapping[str, Any], ...] = (
    {"behavior_names": ["{behavior_id}"]},
    {"behavior_names": ["{behavior_name}"], "behavior_mode": "monitor"},
    {"force_steering": ["{behavior_id}"]},
)
# Of another's project, by an alias of its own and by the project's default.
MODELS: tuple[Mapping[str, Any], ...] = (
    {"model": "{project_key}/{alias_key}"},
    {"model": "{project_id}/{alias_id}"},
    {"model": "{project_key}"},
)
POLICY = {"policy_id": "{policy_id}"}
STEERED = {"steering": {"enabled": True, "vector_id": "{vector_id}"}}
INLINE = {"policy": STEERED}

CHAT = {"messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 1}
PROMPT = {"prompt": "Name a river.", "max_tokens": 1}
NATIVE = {"prompt": "Name a river.", "max_new_tokens": 1}
PROMPTS = {"prompts": ["Name a river."], "max_new_tokens": 1}
PREVIOUS = {"previous_response_id": "{response_id}"}
RESPONSE = {"input": "Name a river.", "max_output_tokens": 2}
TOLD = {"messages": [{"role": "user", "content": "Name a river."}]}
SCORED = {"completion_id": "{choice_id}", "metric": "{metric_key}", "value": 1}
TEXTS = {"positive_texts": ["Good day to you."], "negative_texts": ["hey you there"]}
PAIR = {"prompt": "Hello.", "positive_answer": "Good day.", "negative_answer": "hey"}

_ONLY = (Ask(),)
_GONE = (Ask(ends=True),)

_TABLE: dict[str, Access | tuple[Ask, ...]] = {
    # vLLM's own
    "GET /health": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": OPEN,
    "* /metrics": OPEN,
    "GET /version": OPEN,
    "GET /openapi.json": OPEN,
    "GET /docs": OPEN,
    "GET /docs/oauth2-redirect": OPEN,
    "GET /console": OPEN,
    "GET /console/{file:path}": OPEN,
    "GET /redoc": SHARED,
    "GET /load": SHARED,
    "GET /ping": SHARED,
    "POST /ping": SHARED,
    "GET /kv_event_sources": SHARED,
    "POST /tokenize": SHARED,
    "POST /detokenize": SHARED,
    "POST /v1/systemone": SHARED,
    "POST /invocations": SHARED,
    "POST /v1/chat/completions/batch": SHARED,
    "POST /v1/messages": SHARED,
    "POST /v1/messages/count_tokens": SHARED,
    "POST /generative_scoring": SHARED,
    "GET /v1/models": (listing("alias_key"),),
    "POST /scale_elastic_ep": OPERATOR,
    "POST /is_scaling_elastic_ep": SHARED,
    "POST /v1/chat/completions/render": OPERATOR,
    "POST /v1/messages/render": OPERATOR,
    "POST /v1/completions/render": OPERATOR,
    "POST /v1/responses/render": OPERATOR,
    "POST /v1/chat/completions/derender": OPERATOR,
    "POST /v1/completions/derender": OPERATOR,
    "POST /inference/v1/generate": OPERATOR,
    "POST /inference/v1/abort_requests": OPERATOR,
    # OpenAI's
    "POST /v1/chat/completions": naming(CHAT, *STEERING, *WATCHING, POLICY, INLINE, *MODELS),
    "POST /v1/completions": naming(PROMPT, *STEERING, *WATCHING, POLICY, INLINE, *MODELS),
    "POST /v1/responses": (
        *naming(RESPONSE, *STEERING, *MODELS),
        Ask(body={**RESPONSE, **PREVIOUS}, owner=404),  # nothing is kept here
    ),
    # Responses are kept by an environment variable alone: see tests/server/test_vllm_responses.py.
    "GET /v1/responses/{response_id}": (Ask(owner=404),),
    "POST /v1/responses/{response_id}/cancel": (Ask(owner=404),),
    "GET /v1/models/{model_id:path}": (
        Ask(path="/v1/models/{alias_key}"),
        Ask(path="/v1/models/{project_key}/{alias_key}", role=Role.MEMBER),
    ),
    "POST /v1/chat/completions/{completion_id:path}/feedback": (
        Ask(body={"metric": "{mark}", "value": 1}, owner=201),
    ),
    "GET /v1/chat/completions/{completion_id:path}/feedback": (Ask(shows="feedback_id"),),
    "DELETE /v1/chat/completions/{completion_id:path}/feedback/{feedback_id}": _GONE,
    "GET /v1/chat/completions": (
        listing("completion_id", "/v1/chat/completions?limit=100"),
        listing("completion_id", "/v1/chat/completions?metadata[project]={mark}"),
        Ask(path="/v1/chat/completions?after={completion_id}"),
    ),
    "GET /v1/chat/completions/{completion_id:path}/messages": (Ask(shows="mark"),),
    "GET /v1/chat/completions/{completion_id:path}": (Ask(shows="mark"),),
    "POST /v1/chat/completions/{completion_id:path}": (Ask(body={"metadata": {"project": "{mark}"}}),),
    "DELETE /v1/chat/completions/{completion_id:path}": _GONE,
    # Oxen.ai's
    "POST /api/ai/chat/completions": naming(
        {**CHAT, "model": "{model}"}, *STEERING, *WATCHING, POLICY, INLINE
    ),
    "GET /api/ai/models": SHARED,
    "GET /api/ai/models/search": SHARED,
    "GET /api/ai/models/featured": SHARED,
    "GET /api/ai/models/favorites": SHARED,
    "POST /api/ai/models/{model_id:path}/activate": SHARED,
    "POST /api/ai/models/{model_id:path}/deactivate": SHARED,
    "POST /api/ai/models/{model_id:path}/favorite": SHARED,
    "DELETE /api/ai/models/{model_id:path}/favorite": SHARED,
    "DELETE /api/ai/models/{model_id:path}": SHARED,
    "PUT /api/ai/models/{model_id:path}": SHARED,
    "GET /api/ai/models/{model_id:path}": SHARED,
    # Adaptive's
    "POST /api/v1/chat/completions": naming(CHAT, *STEERING[:-1], *WATCHING, POLICY, INLINE, *MODELS),
    "POST /api/v1/completions": naming({"prompt": "Name a river."}, *MODELS),
    # Another server embeds, which the tests' server has not: it tells so before all else.
    "POST /v1/embeddings": CALLER,
    "POST /api/v1/embeddings": CALLER,
    "POST /api/v1/interactions": (
        Ask(
            body={"project": "{project_key}", **TOLD, "completion": "Po", "model_service": "{model}"},
            owner=201,
        ),
    ),
    "POST /api/v1/feedback": (
        Ask(body={"project": "{project_key}", **SCORED}, owner=201),
        Ask(body=SCORED, owner=201),
    ),
    "POST /api/v1/comparison": (
        Ask(
            body={
                "project": "{project_key}",
                "metric": "{metric_key}",
                "preferred_completion": "{choice_id}",
                "other_completion": {"text": "Po", "model": "{model}"},
                **TOLD,
            },
            owner=201,
        ),
    ),
    "POST /api/v1/outcome": (
        Ask(
            body={
                "project_id": "{project_key}",
                "metric": "{metric_key}",
                "value": 1,
                "session_id": "{session_id}",
            },
            owner=201,
        ),
    ),
    # What is wrong within a document is told with status 200; mutations: tests/server/graphql/test_access.py.
    "POST /api/graphql": (
        asking("{ projects { id } }", "project_id"),
        asking("query($p: IdOrKey!) { project(idOrKey: $p) { id } }", "project_id", p="{project_key}"),
        asking("{ metrics { id } }", "metric_id"),
        asking(
            "query($p: IdOrKey!, $i: UUID!) { completion(project: $p, id: $i) { id completion } }",
            "choice_id",
            p="{project_id}",
            i="{choice_id}",
        ),
    ),
    # Axionic's
    "POST /generate": naming(PROMPT, *STEERING, *MODELS, bad=422),
    "POST /sampling/generate": naming(NATIVE, *STEERING, POLICY, INLINE, *MODELS, bad=422),
    "GET /models": SHARED,
    "GET /capabilities": CALLER,
    "POST /constraints/check": SHARED,
    "GET /graph": SHARED,
    "POST /policies/run": naming(NATIVE, POLICY, INLINE, *({"policy": {}, **each} for each in MODELS)),
    "POST /policies/compare": naming({**NATIVE, "model": "{model}"}, {"policies": [STEERED]}),
    "POST /policies/evaluate": naming(PROMPTS, POLICY, INLINE),
    "POST /policies/autotune": naming(
        {**PROMPTS, "max_trials": 1}, {"base_policy_id": "{policy_id}"}, {"base_policy": STEERED}
    ),
    "POST /policies/{policy_id}/run": (Ask(body=NATIVE),),
    "POST /policies/save": CALLER,  # an id is its account's own: see tests/live/test_access.py
    "GET /policies": (listing("policy_id"),),
    "GET /policies/presets": (listing("preset_id"),),
    "POST /policies/presets/publish": CALLER,
    "POST /policies/presets/{preset_id}/clone": (Ask(body={}),),
    "DELETE /policies/presets/{preset_id}": _GONE,
    "GET /policies/{policy_id}": (Ask(shows="mark"), Ask(path="/policies/{policy_id}?version=1")),
    "GET /policies/{policy_id}/versions": _ONLY,
    "DELETE /policies/{policy_id}": _GONE,
    "POST /steering/generate": CALLER,
    "POST /steering/run": naming(PROMPT, *STEERING, bad=422),
    "POST /steering/dose": naming({}, *STEERING, bad=422),
    "GET /steering/presets": (listing("preset_vector_id"),),
    "POST /steering/presets/{preset}": CALLER,
    "GET /steering/vectors": (
        listing("vector_id"),
        listing("vector_id", "/steering/vectors?shared=true&limit=1000"),
        listing("vector_id", "/steering/vectors?category={mark}"),
    ),
    "GET /steering/vectors/{vector_id}": (
        Ask(shows="mark"),
        Ask(path="/steering/vectors/{preset_vector_id}"),
    ),
    "GET /steering/vectors/{vector_id}/download": _ONLY,
    "POST /steering/vectors": CALLER,
    "PATCH /steering/vectors/{vector_id}": (Ask(body={"label": "{mark}"}),),
    "DELETE /steering/vectors/{vector_id}": (Ask(path="/steering/vectors/{second_vector_id}", ends=True),),
    "GET /auth/steering-vectors": (listing("vector_id"),),
    "PATCH /auth/steering-vectors/{vector_id}": (Ask(body={"label": "{mark}"}),),
    "DELETE /auth/steering-vectors/{vector_id}": (
        Ask(path="/auth/steering-vectors/{third_vector_id}", ends=True),
    ),
    "POST /auth/steering-vectors/bulk-delete": (
        Ask(body={"vector_ids": ["{fourth_vector_id}"]}, stranger=200, shows="fourth_vector_id", ends=True),
    ),
    "GET /steering/jobs": (listing("job_id"),),
    "GET /steering/jobs/{job_id}": (Ask(shows="job_id"),),
    "DELETE /steering/jobs/{job_id}": (Ask(owner=409),),  # it has ended
    "POST /steering/evaluate": naming(TEXTS, VECTOR),
    "POST /steering/generate-pairs": SHARED,
    "POST /steering/evaluate/margins": naming(
        {"pairs": [PAIR], "strengths": [0.5], "neutral": False}, VECTOR
    ),
    "GET /saes": SHARED,
    "POST /sae/states": SHARED,
    "GET /sae/features": SHARED,
    "POST /behaviors/create": (
        Ask(body={"behavior_name": "{behavior_name}", **pairs_body(), **VECTOR}, owner=409),  # it is there
    ),
    "GET /behaviors": (listing("behavior_id"),),
    "GET /observability/behaviors": (listing("behavior_id"),),
    "POST /behaviors/recompute-baselines": (
        # The owner's own takes half a minute: see tests/live/test_behaviors.py.
        Ask(body={"model_id": "default", "behavior_ids": ["{behavior_id}"]}, owner=0),
    ),
    "GET /behaviors/{behavior_id}": (Ask(shows="mark"),),
    "GET /behaviors/{behavior_id}/readiness": (Ask(shows="mark"),),
    "GET /behaviors/{behavior_id}/examples": _ONLY,
    "PATCH /behaviors/{behavior_id}/rename": (Ask(body={"behavior_name": "{behavior_name}"}),),
    "DELETE /behaviors/{behavior_id}": _GONE,
    "POST /sae/generate": naming(NATIVE, *WATCHING),
    # Projects
    "GET /projects": (listing("project_id"),),
    "POST /projects": CALLER,
    "GET /projects/{project}": (
        Ask(path="/projects/{project_id}", shows="mark"),
        Ask(path="/projects/{project_key}", shows="mark"),
    ),
    "PATCH /projects/{project}": (
        Ask(path="/projects/{project_key}", body={"description": "{mark}"}, role=Role.OWNER),
        Ask(path="/projects/{project_id}", body={"default_model": "{alias_key}"}, role=Role.OWNER),
        Ask(path="/projects/{project_id}", body={"default_model": None}, role=Role.OWNER),
    ),
    "DELETE /projects/{project}": (Ask(path="/projects/{project_id}", ends=True, role=Role.OWNER),),
    "GET /projects/{project}/members": (Ask(path="/projects/{project_id}/members", shows="member_id"),),
    "PUT /projects/{project}/members": (
        Ask(
            path="/projects/{project_id}/members",
            body={"email": "{member_email}", "role": "member"},
            role=Role.OWNER,
        ),
    ),
    "DELETE /projects/{project}/members/{account_id}": (
        Ask(path="/projects/{project_id}/members/{member_id}", ends=True, role=Role.OWNER),
    ),
    "GET /projects/{project}/models": (Ask(path="/projects/{project_id}/models", shows="alias_id"),),
    "PUT /projects/{project}/models/{key}": (
        Ask(path="/projects/{project_key}/models/{alias_key}", body={"model": "{model}"}),
    ),
    "DELETE /projects/{project}/models/{key}": (
        Ask(path="/projects/{project_id}/models/{alias_key}", ends=True),
    ),
    # Keys and accounts
    "GET /auth/verify-key": CALLER,
    "GET /auth/whoami": CALLER,
    "GET /auth/api-keys/balance": CALLER,
    "POST /auth/api-keys/set-model": CALLER,
    "GET /auth/api-keys": (replace(listing("key_id"), role=Role.OWNER),),
    "POST /auth/api-keys": CALLER,
    "PATCH /auth/api-keys/{key_id}": (Ask(body={"requests_per_minute": 1000}, role=Role.OWNER),),
    "DELETE /auth/api-keys/{key_id}": (Ask(ends=True, role=Role.OWNER),),
    "POST /auth/signup": OPEN,
    "POST /auth/login": OPEN,
    "POST /auth/refresh": OPEN,
    "POST /auth/change-password": CALLER,
    "POST /auth/change-email": CALLER,
    "DELETE /auth/delete-account": CALLER,
    "GET /observability/requests": (
        listing("request_id", "/observability/requests?limit=200"),
        listing("request_id", "/observability/requests?search={mark}&limit=200"),
    ),
    "GET /observability/requests/{request_id:path}": (Ask(shows="mark"),),
    "GET /observability/usage": CALLER,
}

ROUTES: Mapping[str, Access | tuple[Ask, ...]] = {
    route: tuple(replace(ask, route=route) for ask in access) if isinstance(access, tuple) else access
    for route, access in _TABLE.items()
}
# What a read-only member may send though it is no GET.
READING = ("POST /tokenize", "POST /detokenize", "POST /api/graphql")
ASKS = [ask for access in ROUTES.values() if isinstance(access, tuple) for ask in access]


def guarded() -> list[str]:
    """The routes that need a key."""
    return [route for route, access in ROUTES.items() if access is not Access.OPEN]


def spellings(path: str) -> list[str]:
    """Other ways to write a path, of which some lead to the same route and none may lead past a key."""
    first = path[1]
    return [
        f"{path}/",
        f"/{path}",
        f"/.{path}",
        f"/x/..{path}",
        f"/health/..{path}",
        f"/health/%2e%2e{path}",
        f"/metrics/..{path}",
        f"/metrics{path}",
        f"/docs/..%2f{path[1:]}",
        f"/console/..{path}",
        f"/console/%2e%2e{path}",
        f"/%{ord(first):02x}{path[2:]}",
        f"/%25{ord(first):02x}{path[2:]}",
        f"/{path[1:].replace('/', '%2f')}",
        path.upper(),
        f"{path};health",
        f"{path}%3f/health",
        f"{path}%00",
        f"{path}%0a",
        f"{path}%20",
        f"{path}?/health",
        f"{path}#/health",
    ]
