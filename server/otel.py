"""Spans as OpenTelemetry's: imported only where --otlp-traces-endpoint is given.

vLLM makes the provider that exports, one in each API process (`vllm.tracing`); what is made here goes the
same way, by the environment's `OTEL_*` too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.edge import METHODS
from server.metrics import package_version
from server.refusal import route_path
from server.tracing import Attributes, current_span

_W3C = TraceContextTextMapPropagator()
_UNTRACED = frozenset({"/health", "/ping", "/metrics", "/readyz"})  # asked every few seconds, by probes
_FLUSH_MILLISECONDS = 2000


def tracer() -> Tracer:
    return trace.get_tracer("steersman", package_version("steersman"))


def flush() -> None:
    """Send what has ended; of a collector that does not answer, no more than the limit is waited for."""
    provider = trace.get_tracer_provider()
    if hasattr(provider, "force_flush"):
        provider.force_flush(_FLUSH_MILLISECONDS)


@dataclass(frozen=True, slots=True)
class OtelSpan:
    """A `server.tracing.Span`."""

    span: trace.Span
    tracer: Tracer

    @property
    def trace_id(self) -> str:
        return trace.format_trace_id(self.span.get_span_context().trace_id)

    def child(self, name: str, attributes: Attributes) -> "OtelSpan":
        made = self.tracer.start_span(name, self._context(), SpanKind.INTERNAL, attributes)
        return OtelSpan(made, self.tracer)

    def note(self, attributes: Attributes) -> None:
        self.span.set_attributes(attributes)

    def fail(self, error: BaseException) -> None:
        self.span.set_attribute("error.type", type(error).__name__)
        self.span.set_status(Status(StatusCode.ERROR))

    def headers(self) -> Mapping[str, str]:
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, self._context())
        return carrier

    def end(self) -> None:
        self.span.end()

    def _context(self) -> Context:
        return trace.set_span_in_context(self.span, Context())


@dataclass(frozen=True, slots=True)
class Traced:
    """ASGI middleware, outside all others: one SERVER span for each request, until its stream ends.

    Attributes are those of OpenTelemetry's HTTP conventions, without the query. An incoming `traceparent` is
    continued.
    """

    app: ASGIApp
    tracer: Tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in _UNTRACED:
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        parent = _W3C.extract(_sent(scope), Context())
        started = self.tracer.start_span(method, parent, SpanKind.SERVER, _asked(scope, method))
        span = OtelSpan(started, self.tracer)
        token = current_span.set(span)
        status = 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = dict(message.get("headers", ()))
                span.note({"steersman.request.id": headers.get(b"x-request-id", b"").decode("latin-1")})
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            current_span.reset(token)
            route = getattr(scope.get("route"), "path", None)
            if route is not None:
                span.note({"http.route": route})
                started.update_name(f"{method} {route}")
            principal = scope.get("state", {}).get("principal")
            if principal is not None:
                span.note({"steersman.account.id": principal.account_id})
            span.note({"http.response.status_code": status})
            if status >= 500:
                span.note({"error.type": str(status)})
                started.set_status(Status(StatusCode.ERROR))
            span.end()


def _sent(scope: Scope) -> dict[str, str]:
    """The headers of W3C's trace context; a list in several headers is one list."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        if key in ("traceparent", "tracestate"):
            found[key] = f"{found[key]},{text}" if key in found else text
    return found


def _asked(scope: Scope, method: str) -> Attributes:
    asked: dict[str, str | int] = {
        "http.request.method": method,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if scope.get("client"):
        asked["client.address"] = scope["client"][0]
    if scope.get("server"):
        asked["server.address"], port = scope["server"]
        if port is not None:
            asked["server.port"] = port
    agent = dict(scope["headers"]).get(b"user-agent")
    if agent:
        asked["user_agent.original"] = agent.decode("latin-1")
    return asked
