"""Where requests enter the engine: each in a span of its own, under which vLLM puts the engine's."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from server.candidates import sibling
from server.tracing import Span, current_span
from server.vllm_meter import within_beam

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


# A parent that was not sampled, whose children are not recorded either.
_UNSAMPLED = {"traceparent": f"00-{1:032x}-{1:016x}-00"}


def quiet(generate: Generate) -> Generate:
    """`generate` that has vLLM make no span of what no client asked for: measuring and training send hundreds
    of requests."""

    def unsampled(*args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        kwargs["trace_headers"] = kwargs.get("trace_headers") or _UNSAMPLED
        return generate(*args, **kwargs)

    return unsampled


def traced(generate: Generate) -> Generate:
    """`generate` within a span `candidate`, where the request of this context is traced. A beam's steps have
    none of their own: there are hundreds.

    Not a generator itself: the context is the one that calls, whoever iterates.
    """

    def spanning(
        prompt: Any, params: SamplingParams, request_id: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        parent = current_span.get()
        if parent is None:
            return generate(prompt, params, request_id, *args, **kwargs)
        if within_beam.get():
            kwargs["trace_headers"] = parent.headers()
            return generate(prompt, params, request_id, *args, **kwargs)
        span = parent.child(
            "candidate",
            {
                "gen_ai.request.id": request_id,
                "gen_ai.request.choice.count": params.n,
                "steersman.candidate.index": sibling.get(),
            },
        )
        kwargs["trace_headers"] = span.headers()
        delta = params.output_kind == RequestOutputKind.DELTA
        return _until_its_end(generate(prompt, params, request_id, *args, **kwargs), span, delta=delta)

    return spanning


async def _until_its_end(
    outputs: AsyncGenerator[RequestOutput, None], span: Span, *, delta: bool
) -> AsyncGenerator[RequestOutput, None]:
    prompt_tokens, generated, reasons = 0, dict[int, int](), dict[int, str]()
    try:
        async with aclosing(outputs):
            async for output in outputs:
                prompt_tokens = len(output.prompt_token_ids or ())
                for part in output.outputs:
                    before = generated.get(part.index, 0) if delta else 0
                    generated[part.index] = before + len(part.token_ids)
                    if part.finish_reason:
                        reasons[part.index] = part.finish_reason
                yield output
    except Exception as error:  # told of the span, and raised again
        span.fail(error)
        raise
    finally:
        span.note(
            {
                "gen_ai.usage.input_tokens": prompt_tokens,
                "gen_ai.usage.output_tokens": sum(generated.values()),
                "gen_ai.response.finish_reasons": [reasons[index] for index in sorted(reasons)],
            }
        )
        span.end()
