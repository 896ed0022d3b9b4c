"""Steersman on vLLM's own app: an endpoint plugin, which vLLM loads where VLLM_PLUGINS names it.

vLLM builds its FastAPI app and serving objects; `attach_router` adds our routes, of which those with a core
route's path and method replace it; `init_state` makes what they share. Everything else vLLM serves stays
as it is, behind our authentication and error shapes.
"""

import asyncio
import logging
import time
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.launcher import terminate_if_errored
from vllm.exceptions import VLLMError
from vllm.v1.engine.exceptions import EngineDeadError

from policies.sampling import EngineFacts
from server.access_log import AccessLog
from server.accounts import Accounts
from server.addressing import Directory
from server.aliases import Aliases
from server.auth import Authentication, KeyRing
from server.behaviors import Behaviors
from server.calls import Calls
from server.campaign_scores import CampaignScores
from server.campaign_settling import Settling
from server.campaigns import Campaigns
from server.comparisons import Comparisons
from server.completions import Completions
from server.constraints import ConstraintChecker
from server.drain import Drain, Draining
from server.edge import Edge
from server.embedding_server import EmbeddingServer
from server.errors import HttpError, InvalidBody, InvalidRequest, NoRoute, SteersmanError
from server.feedback import FeedbackStore
from server.interaction_log import InteractionLog, Keep
from server.interactions import Interactions
from server.jobs import Jobs
from server.judge import Judge
from server.limiter import Limiter
from server.limiting import Limiting
from server.media_hosts import MediaHosts
from server.media_ids import own_media
from server.metrics import AUTH_ATTEMPTS, record_build, record_config
from server.monitor import Mode, Monitor, WatchList
from server.observed import ObservedRequests
from server.outcomes import Outcomes
from server.policies import Policies
from server.policy_runs import PolicyRuns
from server.probe import Probe
from server.project_metrics import ProjectMetrics
from server.projects import Projects
from server.quotas import Quotas
from server.recorder import Observing, Recorder
from server.redaction import Redaction
from server.refusal import refusal
from server.router_fields import BehindVllmRouter
from server.routes import (
    accounts,
    adaptive,
    adaptive_interactions,
    capabilities,
    console,
    constraints,
    embeddings,
    feedback,
    graphql,
    health,
    keys,
    native,
    observability,
    openai,
    oxen,
    policies,
    projects,
    saes,
    saved_policies,
    steering,
    steering_trials,
    steering_vectors,
    stored_completions,
    watched,
)
from server.routes import behaviors as behavior_routes
from server.sandbox import Sandbox, SandboxOff
from server.served_models import ServedModels
from server.sessions import Sessions
from server.settings import Settings
from server.state import ServerState
from server.store import Store
from server.studio import Records, Studio, Unsteerable, open_studio
from server.tenants import Tallied, Tenants
from server.uploads import Uploads
from server.usage import UsageMeter
from server.vectors import Vectors
from server.vllm_admission import Queue, Queueing
from server.vllm_beam import BeamSearch
from server.vllm_errors import as_steersman
from server.vllm_first_token import beginning
from server.vllm_media import modalities
from server.vllm_meter import metered, metered_beam
from server.vllm_pruning import pruning
from server.vllm_serving import Serving
from server.vllm_spans import quiet, traced
from server.vllm_steering import prompt_logprobs_kill, steered
from server.vllm_tool_parser import rules_of

logger = logging.getLogger("vllm.steersman")

_FLUSH_SECONDS = 5.0
_JUDGE_SECONDS = 2.0


class SteersmanPlugin:
    name = "steersman"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._app: FastAPI | None = None
        self._doors: _Doors | None = None

    def attach_router(self, app: FastAPI) -> None:
        settings = Settings.read(app.state.args)
        store = Store(settings.database_url)
        keyring = KeyRing(store.find_key, settings.key_cache_seconds)
        drain = Drain()
        observed = ObservedRequests(store.database)
        recorder = Recorder(
            observed,
            most=settings.observe_requests,
            days=settings.observe_days,
            redaction=Redaction(settings.redact),
        )
        people = Accounts(store, Sessions(store.database, settings.key_cache_seconds))
        shared = Projects(store.database, settings.key_cache_seconds)
        tenants = Tenants(store.database, settings.metric_tenants)
        # What vLLM imports for model hosting raises the root's level to ERROR, and would silence ours.
        logging.getLogger("server").setLevel(logging.WARNING)
        self._app = app
        limiter = Limiter(Quotas(store.database, uuid4().hex), settings.rates)
        queue = Queue(settings.max_queue_seconds)
        self._doors = _Doors(
            settings, store, keyring, drain, observed, recorder, people, shared, tenants, limiter, queue
        )
        app.title, app.description = "Steersman", "Serve language models that people can steer."
        activations = (steering, steering_vectors, steering_trials, saes, behavior_routes, watched)
        axionic = (native, constraints, policies, saved_policies, *activations, keys, accounts)
        dialects = (openai, embeddings, oxen, adaptive, adaptive_interactions, graphql)
        seen = (observability, capabilities, console, health)
        for routes in (*dialects, projects, feedback, stored_completions, *axionic, *seen):
            app.include_router(routes.router)
        # The last one added is the first one met; vLLM's CORS follows and so covers our 401s too.
        app.add_middleware(Limiting, limiter=limiter)
        app.add_middleware(Queueing, queue=queue)
        app.add_middleware(Calls)
        if settings.behind_vllm_router:
            app.add_middleware(BehindVllmRouter)
        app.add_middleware(Draining, drain=drain)
        app.add_middleware(Tallied, tenants=tenants)
        app.add_middleware(Observing, recorder=recorder)
        session = people.sessions.principal if settings.has_accounts else None
        app.add_middleware(
            Authentication, keyring=keyring, count=_count_attempt, session=session, enter=shared.enter
        )
        access_log = AccessLog.of(settings, app.state.args)
        app.add_middleware(Edge, max_body_bytes=settings.max_body_bytes, access_log=access_log)
        if app.state.args.otlp_traces_endpoint:
            from server.otel import Traced, tracer  # noqa: PLC0415  # as its module says

            app.add_middleware(Traced, tracer=tracer())

    async def init_state(self, engine_client: EngineClient, state: State, args: Namespace) -> None:
        app, doors = self._app, self._doors
        assert app is not None, "vLLM attaches routes before it initializes state"
        assert doors is not None
        meter = UsageMeter()
        checker = ConstraintChecker(engine_client.vllm_config, doors.settings.constraint_seconds)
        models = ServedModels(state.openai_serving_models, int(time.time()), modalities(engine_client))
        vectors, jobs = Vectors(doors.store.database), Jobs(doors.store.database)
        behaviors = Behaviors(doors.store.database)
        metrics = ProjectMetrics(doors.store.database)
        directory = Directory(models, doors.projects, Aliases(doors.store.database))
        campaigns = Campaigns(
            doors.store.database,
            CampaignScores(doors.store.database, metrics),
            doors.projects,
            directory.served,
        )
        settling = Settling(campaigns)
        if args.otlp_traces_endpoint:
            engine_client.generate = quiet(engine_client.generate)
        studio = await open_studio(
            engine_client,
            models.default,
            doors.settings,
            Records(vectors, jobs, behaviors),
            processes=args.api_server_count or 1,
        )
        _meter_engine(engine_client, state, meter, doors.tenants)
        own_media(engine_client.renderer)
        engine_client.generate = beginning(pruning(steered(engine_client.generate)))
        doors.queue.guard(engine_client)
        if args.otlp_traces_endpoint:
            engine_client.generate = traced(engine_client.generate)
        _drain_engine(engine_client, doors.drain)
        sandbox = await Sandbox.open(hidden=[doors.settings.home])
        judge = Judge(_JUDGE_SECONDS)
        serving = Serving(
            chat=state.openai_serving_chat,
            completion=state.openai_serving_completion,
            models=models,
            checker=checker,
            facts=_facts(engine_client),
            has_chat_template=bool(getattr(engine_client.renderer.tokenizer, "chat_template", None)),
            keep_alive=float(getattr(args, "sse_keep_alive_interval", 0)),
            steering=studio.steering if isinstance(studio, Studio) else None,
            unsteerable=studio.problem if isinstance(studio, Unsteerable) else None,
            monitor=_monitor(studio, behaviors, doors.settings),
            unwatchable=studio.problem if isinstance(studio, Unsteerable) else studio.unwatchable,
            prompt_logprobs_kill=prompt_logprobs_kill(engine_client.vllm_config),
            ranks=_ranks(engine_client),
            tools=rules_of(state.openai_serving_chat, args),
        )
        state.steersman = ServerState(
            doors.settings,
            doors.store,
            doors.keyring,
            meter,
            models,
            checker,
            serving,
            judge,
            vectors,
            jobs,
            behaviors,
            Policies(doors.store.database),
            PolicyRuns(serving, checker, judge, sandbox),
            studio,
            doors.observed,
            MediaHosts.of(engine_client.vllm_config.model_config.allowed_media_domains),
            interactions := Interactions(doors.store.database),
            _interaction_log(interactions, doors.settings),
            FeedbackStore(doors.store.database, settling.scores_came),
            metrics,
            Completions(doors.store.database),
            Comparisons(doors.store.database, settling.scores_came),
            Outcomes(doors.store.database, settling.scores_came),
            Uploads(doors.store.database, settling.scores_came),
            campaigns,
            settling,
            doors.accounts,
            replace(directory, campaigns=campaigns),
            EmbeddingServer.of(doors.settings),
            Probe(doors.drain, engine_client, models),
            doors.tenants,
        )
        if isinstance(studio, Unsteerable):
            logger.warning("Requests that ask for steering get 501: %s", studio.problem)
        if isinstance(sandbox, SandboxOff):
            logger.warning("Policies that ask for unit_tests get 501: %s", sandbox.problem)
        record_build()
        record_config(
            accounts=doors.settings.accounts,
            interactions=doors.settings.interactions,
            behavior_mode=doors.settings.behavior_mode if doors.settings.behaviors else "off",
            steering=isinstance(studio, Studio),
            tracing=bool(args.otlp_traces_endpoint),
        )
        _handle_errors(app)
        _run_beside(app, state.steersman, doors.recorder, doors.limiter)
        # vLLM built the stack already, with its own error handlers; the first request builds it anew.
        app.middleware_stack = None


@dataclass(frozen=True, slots=True)
class _Doors:
    """What the middlewares need before there is an engine."""

    settings: Settings
    store: Store
    keyring: KeyRing
    drain: Drain
    observed: ObservedRequests
    recorder: Recorder
    accounts: Accounts
    projects: Projects
    tenants: Tenants
    limiter: Limiter
    queue: Queue


def _interaction_log(interactions: Interactions, settings: Settings) -> InteractionLog:
    return InteractionLog(
        interactions,
        which=Keep(settings.interactions),
        most=settings.interaction_rows,
        days=settings.interaction_days,
        redaction=Redaction(settings.redact),
    )


def _monitor(studio: Studio | Unsteerable, behaviors: Behaviors, settings: Settings) -> Monitor | None:
    """Raises SteersmanError where requests that are to be watched could not be."""
    problem = studio.problem if isinstance(studio, Unsteerable) else studio.unwatchable
    if isinstance(studio, Unsteerable) or problem:
        if settings.behaviors:
            raise SteersmanError(f"--behaviors: behaviors are not watched here: {problem}")
        return None
    everywhere = WatchList(settings.behaviors, mode=Mode(settings.behavior_mode))
    return Monitor(behaviors, studio.model.fingerprint, everywhere)


def _facts(engine_client: EngineClient) -> EngineFacts:
    config = engine_client.vllm_config
    defaults = config.model_config.get_diff_sampling_param()
    return EngineFacts(
        speculative=config.speculative_config is not None,
        processors=bool(config.model_config.logits_processors),
        temperature=float(defaults.get("temperature", 1.0)),
    )


def _ranks(engine_client: EngineClient) -> int:
    """Engines among which this process itself balances; behind another balancer it sees its own alone."""
    parallel = engine_client.vllm_config.parallel_config
    own = not (parallel.data_parallel_external_lb or parallel.data_parallel_hybrid_lb)
    return int(parallel.data_parallel_size) if own else 1


def _meter_engine(engine_client: Any, state: State, meter: UsageMeter, tenants: Tenants) -> None:
    """Count tokens where every route passes, and give both serving objects a beam search that obeys
    constraints in place of vLLM's, which drops them."""
    beam = BeamSearch(engine_client, engine_client.renderer)
    engine_client.generate = metered(engine_client.generate, meter, tenants)
    for serving in (state.openai_serving_chat, state.openai_serving_completion):
        serving.beam_search = metered_beam(beam, meter, tenants)


def _drain_engine(engine_client: Any, drain: Drain) -> None:
    """Have vLLM's launcher, which calls the engine's `shutdown` on SIGTERM, wait for open requests first."""
    loop = asyncio.get_running_loop()

    def cut() -> None:
        with suppress(RuntimeError):  # the loop is closed already
            loop.call_soon_threadsafe(engine_client.output_processor.propagate_error, EngineDeadError())

    engine_client.shutdown = drain.before(engine_client.shutdown, cut)


def _count_attempt(method: str, outcome: str) -> None:
    AUTH_ATTEMPTS.labels(method, outcome).inc()


def _run_beside(app: FastAPI, server: ServerState, recorder: Recorder, limiter: Limiter) -> None:
    """Run our background work within the app's own lifespan."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as shared:
            flushing = asyncio.create_task(server.meter.run(server.store, _FLUSH_SECONDS))
            server.checker.start()
            beside = [flushing, asyncio.create_task(recorder.run())]
            beside.append(asyncio.create_task(limiter.run()))
            beside.append(asyncio.create_task(server.interaction_log.run()))
            beside.append(asyncio.create_task(server.settling.run()))
            beside.append(asyncio.create_task(server.tenants.run()))
            if isinstance(server.studio, Studio):
                beside.append(asyncio.create_task(server.studio.workshop.run()))
            try:
                yield shared
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.gather(*beside, return_exceptions=True)
                await server.checker.close()
                await server.judge.close()
                await server.policy_runs.close()
                if server.embeddings is not None:
                    await server.embeddings.close()
                await server.store.close()
                if app.state.args.otlp_traces_endpoint:
                    from server.otel import flush  # noqa: PLC0415

                    await asyncio.to_thread(flush)

    app.router.lifespan_context = lifespan


def _handle_errors(app: FastAPI) -> None:
    """One seam for every exception: ours, FastAPI's, vLLM's. The shape depends on the path alone."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, SteersmanError)
        return refusal(request.scope, error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return refusal(request.scope, InvalidBody.of(error.errors()))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return refusal(request.scope, _from_http(request, error))

    async def vllm(request: Request, error: Exception) -> JSONResponse:
        terminate_if_errored(server=request.app.state.server, engine=request.app.state.engine_client)
        return refusal(request.scope, as_steersman(error))

    app.add_exception_handler(SteersmanError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (VLLMError, ValueError, TypeError, OverflowError, NotImplementedError, Exception):
        app.add_exception_handler(kind, vllm)


def _from_http(request: Request, error: HTTPException) -> SteersmanError:
    if error.status_code == 404:
        return NoRoute(f"no route {request.method} {request.url.path}")
    if error.status_code == 400:
        return InvalidRequest(str(error.detail))
    return HttpError(error.status_code, str(error.detail))
