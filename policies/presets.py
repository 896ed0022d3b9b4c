"""Policies to begin with, as data: every account finds them among its presets and may clone them.

What only its user knows, such as a schema or other models, is for the clone to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Preset:
    """`policy` is JSON, as a client would send it."""

    name: str
    description: str
    tags: tuple[str, ...]
    policy: Mapping[str, Any]


PRESETS: Final[Mapping[str, Preset]] = MappingProxyType(
    {
        "steersman:json-extraction": Preset(
            "JSON extraction",
            "One JSON object, held to while decoding and checked again. Add constraints.json_schema or"
            " required_fields.",
            ("json", "extraction"),
            {
                "name": "json-extraction",
                "sampling": {"method": "guided-generation", "temperature": 0.2, "top_p": 0.9},
                "constraints": {"json_mode": True},
                "verifiers": {"enabled": ["syntax"], "repair_on_failure": True},
                "optimization": {"best_of_n": 2, "retry_on_failure": 2},
            },
        ),
        "steersman:tool-router": Preset(
            "Tool router",
            "The call of one tool as JSON, within 1.2 s, with drafts where the engine has a draft model. Add"
            " constraints.tool_schema.",
            ("json", "tools", "latency"),
            {
                "name": "tool-router",
                "objective": {"latency_budget_ms": 1200},
                "sampling": {"method": "speculative-decoding", "temperature": 0.1, "top_k": 30},
                "constraints": {"json_mode": True, "required_fields": ["tool_name", "arguments"]},
                "verifiers": {"enabled": ["syntax", "tool_args"], "repair_on_failure": True},
                "optimization": {"retry_on_failure": 1, "fallback_methods": ["top-k"]},
            },
        ),
        "steersman:diverse-chat": Preset(
            "Diverse chat",
            "Three candidates by adaptive determinantal sampling, each warmer than the one before.",
            ("chat", "diversity"),
            {
                "name": "diverse-chat",
                "sampling": {
                    "method": "ads",
                    "temperature": 0.9,
                    "top_p": 0.95,
                    "num_candidates": 3,
                    "diversity_strength": 0.7,
                },
                "optimization": {"retry_on_failure": 0},
            },
        ),
        "steersman:self-consistency": Preset(
            "Self-consistency",
            "The answer that most of the samples agree on. Name other models in sampling.ensemble_models.",
            ("reasoning", "vote"),
            {
                "name": "self-consistency",
                "sampling": {"method": "ensemble-sampling", "temperature": 0.7, "top_p": 0.9},
                "optimization": {"retry_on_failure": 0},
            },
        ),
        "steersman:careful-answer": Preset(
            "Careful answer",
            "The model judges its own facts, revises once, and tries again where it is unsure.",
            ("chat", "factuality"),
            {
                "name": "careful-answer",
                "sampling": {"method": "top-p", "temperature": 0.4, "top_p": 0.9},
                "verifiers": {"enabled": ["factuality"], "repair_on_failure": False},
                "optimization": {
                    "best_of_n": 2,
                    "retry_on_failure": 1,
                    "self_revision_loops": 1,
                    "confidence_triggered_regeneration": True,
                    "confidence_threshold": 0.5,
                },
            },
        ),
        "steersman:brief": Preset(
            "Brief",
            "Steered towards short answers by the preset brevity.",
            ("chat", "steering"),
            {
                "name": "brief",
                "sampling": {"method": "top-p", "temperature": 0.7, "top_p": 0.9},
                "steering": {"enabled": True, "preset": "brevity", "strength": 0.5},
                "optimization": {"retry_on_failure": 0},
            },
        ),
    }
)
