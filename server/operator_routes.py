"""vLLM's own routes that act on the whole server, whoever asks: the operator's alone.

Most of them are off unless the operator switches them on (`VLLM_SERVER_DEV_MODE`,
`VLLM_ALLOW_RUNTIME_LORA_UPDATING`, `--enable-scale-out`).
"""

import re
from typing import Final

_PATHS: Final = (
    "scale_elastic_ep",
    "is_scaling_elastic_ep",
    "inference/v1/abort_requests",
    "v1/(?:un)?load_lora_adapter",
    "adapters(?:/.*)?",
    "reset_(?:prefix|mm|encoder)_cache",
    "collective_rpc",
    "server_info",
    "(?:is_)?sleep(?:ing)?|wake_up|release_kv_cache_memory",
    "(?:is_)?paused?|resume|abort_requests",
    "(?:init|shutdown)_weight_transfer_engine",
    "(?:start|start_draft|finish)_weight_update",
    "update_weights|update_weight_version|weight_info|weight_checker|get_world_size",
)
_OPERATORS = re.compile(f"/(?:{'|'.join(_PATHS)})/?", re.DOTALL)


def is_operators(path: str) -> bool:
    return _OPERATORS.fullmatch(path) is not None
