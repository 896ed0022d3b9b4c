"""Spans of a request: one tree from the client's own span down, of names, counts and ids alone."""

import asyncio
import json
import logging
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.responses import StreamingResponse

from policies.policy import RuntimePolicy
from server import tracing
from server.edge import Edge
from server.json_log import Lines
from server.otel import OtelSpan, Traced
from server.tracing import begun, current_span, ending_with, spanned, trace_id
from server.vllm_meter import within_beam
from server.vllm_spans import quiet, traced
from server.vllm_wire import ChatRequest
from tests.server.vllm_policy_world import Engine, always, chat, policy_runs, raw_request, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def kept():
    """Ended spans, and who makes them."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return SimpleNamespace(
        tracer=provider.get_tracer("tests"), spans=lambda: {s.name: s for s in exporter.get_finished_spans()}
    )


@pytest.fixture
def root(kept):
    """A span that is open here."""
    span = OtelSpan(kept.tracer.start_span("root"), kept.tracer)
    token = current_span.set(span)
    yield span
    current_span.reset(token)


def application(kept):
    app = FastAPI()
    app.add_middleware(Edge, max_body_bytes=100)

    @app.get("/stream/{name}")
    async def stream(name: str) -> StreamingResponse:
        async def pieces():
            assert trace_id() == TRACE
            await asyncio.sleep(0.05)
            with spanned("late", {}):
                yield b"x"

        return StreamingResponse(pieces())

    @app.get("/broken")
    async def broken() -> None:
        raise LookupError("secret")

    @app.get("/health")
    async def health() -> None:
        assert trace_id() is None

    return Traced(app, kept.tracer)


async def call(kept, method, path, **options):
    transport = httpx.ASGITransport(application(kept), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.request(method, path, **options)


def parent_of(span):
    return span.parent and format_span_id(span.parent.span_id)


async def test_a_request_continues_its_client_s_trace(kept):
    """The span is the SERVER's, child of the incoming one, named and labelled by HTTP's conventions, and ends
    with the stream."""
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=b", "x-request-id": "mine"}
    await call(kept, "GET", "/stream/pear?prompt=secret", headers=headers)
    span, late = kept.spans()["GET /stream/{name}"], kept.spans()["late"]
    assert span.kind is SpanKind.SERVER
    assert (format_trace_id(span.context.trace_id), parent_of(span)) == (TRACE, PARENT)
    assert late.parent.span_id == span.context.span_id
    assert span.end_time >= late.end_time
    expected = {
        "http.request.method": "GET",
        "http.route": "/stream/{name}",
        "http.response.status_code": 200,
        "url.path": "/stream/pear",
        "steersman.request.id": "mine",
    }
    assert expected.items() <= dict(span.attributes).items()
    assert "secret" not in span.to_json()


@pytest.mark.parametrize("sent", ["", "00-zz", f"00-{'0' * 32}-{PARENT}-01", "x" * 5000])
async def test_a_bad_traceparent_begins_a_new_trace(kept, sent):
    """What cannot be continued is no error."""
    assert (await call(kept, "GET", "/nowhere", headers={"traceparent": sent})).status_code == 404
    (span,) = kept.spans().values()
    assert span.parent is None
    assert span.name == "GET", "unknown paths would be names without end"
    assert span.status.status_code is StatusCode.UNSET


async def test_failures_are_told_without_their_words(kept):
    """5xx are errors by their status, a client's faults are not; no message stands in a span."""
    await call(kept, "GET", "/broken")
    await call(kept, "BREW", "/broken", content=b"x" * 200)
    failed, large = kept.spans()["GET /broken"], kept.spans()["_OTHER"]
    assert (failed.status.status_code, failed.attributes["error.type"]) == (StatusCode.ERROR, "500")
    assert (large.status.status_code, large.attributes["http.response.status_code"]) == (
        StatusCode.UNSET,
        413,
    )
    assert "secret" not in failed.to_json()


async def test_probes_are_not_traced(kept):
    """What is asked every few seconds would bury the rest."""
    assert (await call(kept, "GET", "/health")).status_code == 200
    assert kept.spans() == {}


async def test_a_policy_s_rounds_and_verifiers_are_its_children(kept, root):
    """policy → round and verify, and for a rejected answer a repair; none quotes a text."""
    policy = RuntimePolicy.model_validate(
        {
            "constraints": {"forbidden_terms": ["pear"]},
            "verifiers": {"enabled": ["factuality"], "repair_on_failure": True, "max_retries": 1},
        }
    )
    template = ChatRequest.model_validate(chat())
    with pytest.warns(DeprecationWarning, match="max_tokens"):
        await policy_runs(serving(Engine(always("a pear")))).run(policy, template, raw_request())
    spans = kept.spans()
    told = {name: span.parent.span_id for name, span in spans.items()}
    assert told == {
        "policy": root.span.get_span_context().span_id,
        "policy round": spans["policy"].context.span_id,
        "verify text": spans["policy"].context.span_id,
        "verify factuality": spans["policy"].context.span_id,
        "policy repair": spans["policy"].context.span_id,
    }
    attributes = dict(spans["policy"].attributes)
    assert attributes["steersman.policy.outcome"] == "rejected"
    assert attributes["steersman.policy.candidates"] == 3
    assert all("pear" not in span.to_json() for span in spans.values())


def output(*ids, finish_reason=None):
    part = SimpleNamespace(index=0, token_ids=ids, finish_reason=finish_reason, text="secret")
    return SimpleNamespace(prompt_token_ids=[1, 2, 3], outputs=[part])


def engine(seen, outputs):
    async def generate(prompt, params, request_id, **options):
        seen.append(options.get("trace_headers"))
        for each in outputs:
            if isinstance(each, Exception):
                raise each
            yield each

    return generate


PARAMS = SimpleNamespace(n=1, output_kind=None)


async def test_a_candidate_is_the_engine_s_parent(kept, root):
    """vLLM is told of the candidate in place of what the client sent, from where it was asked, whoever
    iterates; tokens and reasons are counted."""
    seen = []
    with spanned("policy round", {}):
        outputs = traced(engine(seen, [output(7), output(7, 8, finish_reason="length")]))(
            "secret", PARAMS, "id", trace_headers={"traceparent": "the client's"}
        )
    assert [each async for each in outputs]
    span, above = kept.spans()["candidate"], kept.spans()["policy round"]
    assert span.parent.span_id == above.context.span_id
    (headers,) = seen
    trace, parent = headers["traceparent"].split("-")[1:3]
    assert (trace, parent) == (root.trace_id, format_span_id(span.context.span_id))
    assert dict(span.attributes) == {
        "gen_ai.request.id": "id",
        "gen_ai.request.choice.count": 1,
        "steersman.candidate.index": 0,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("length",),
    }


async def test_an_engine_s_error_ends_the_candidate(kept, root):
    """By its class; one that is abandoned ends without an error."""
    with pytest.raises(LookupError):
        async for _ in traced(engine([], [output(7), LookupError("secret")]))("", PARAMS, "id"):
            pass
    span = kept.spans()["candidate"]
    assert (span.status.status_code, span.attributes["error.type"]) == (StatusCode.ERROR, "LookupError")
    assert "secret" not in span.to_json()
    left = traced(engine([], [output(7), output(7, 8)]))("", PARAMS, "id")
    await anext(left)
    await left.aclose()
    assert kept.spans()["candidate"].status.status_code is StatusCode.UNSET


async def test_a_beam_s_steps_have_no_spans(kept, root):
    """The engine's stand under the request's own."""
    seen = []
    token = within_beam.set(True)
    try:
        assert [each async for each in traced(engine(seen, [output(7)]))("", PARAMS, "id")]
    finally:
        within_beam.reset(token)
    assert kept.spans() == {}
    assert format_span_id(root.span.get_span_context().span_id) in seen[0]["traceparent"]


async def test_the_server_s_own_requests_are_left_out(kept):
    """vLLM takes them for parts of a trace that is not recorded; a client's keep their parent."""
    seen = []
    assert [each async for each in quiet(engine(seen, [output(7)]))("", PARAMS, "id")]
    own = {"traceparent": "x"}
    assert [each async for each in quiet(engine(seen, [output(7)]))("", PARAMS, "id", trace_headers=own)]
    parent = TraceContextTextMapPropagator().extract(seen[0])  # as vLLM reads it
    kept.tracer.start_span("llm_request", parent).end()
    assert kept.spans() == {}
    assert seen[1] == own


async def test_untraced_requests_reach_the_engine_as_they_are():
    """Without an open span nothing is made, said or changed."""
    seen = []
    assert [each async for each in traced(engine(seen, [output(7)]))("", PARAMS, "id")]
    assert seen == [None]
    with spanned("a", {}), begun("b", {}) as span:
        tracing.note({"x": 1})
        assert span is None
        assert trace_id() is None


async def test_a_stream_s_span_lasts_as_long(kept, root):
    """`begun` leaves it open for the stream, or ends it where there is none."""

    async def stream():
        yield "x"

    with begun("policy", {}) as span:
        made = ending_with(stream(), span)
    assert kept.spans() == {}
    assert [each async for each in made] == ["x"]
    assert kept.spans()["policy"].status.status_code is StatusCode.UNSET
    with pytest.raises(LookupError), begun("failed", {}):
        raise LookupError
    assert kept.spans()["failed"].attributes["error.type"] == "LookupError"


def test_log_lines_name_the_trace(root):
    record = logging.LogRecord("server", logging.INFO, __file__, 1, "said", (), None)
    assert json.loads(Lines().format(record))["trace_id"] == root.trace_id


def test_whoever_does_not_trace_does_not_import_it():
    """OpenTelemetry is vLLM's to import; our request path without vLLM does not need it."""
    program = (
        "import sys, server.tracing, server.edge, server.policies, server.verification, server.candidates;"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
