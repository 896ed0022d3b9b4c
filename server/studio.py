"""All of steering of one API process, put together when its engine is up."""

import logging
from dataclasses import dataclass
from typing import Any

from server.behavior_maker import BehaviorMaker
from server.behaviors import Behaviors
from server.calibration import Encode, SelfTestFailed, neutral_texts, self_test, state_norms
from server.errors import SteersmanError
from server.jobs import Jobs
from server.presets import Presets
from server.residency import Residency
from server.saes import Saes
from server.settings import Settings
from server.steering import SteeredModel, Steering
from server.training import Tokenizer, Trainer
from server.vectors import Vectors
from server.vllm_steering import SteeringEngine
from server.workshop import Workshop

logger = logging.getLogger("vllm.steersman")


@dataclass(frozen=True, slots=True)
class Studio:
    model: SteeredModel
    engine: SteeringEngine
    steering: Steering
    trainer: Trainer
    presets: Presets
    workshop: Workshop
    saes: Saes
    behavior_maker: BehaviorMaker
    unwatchable: str | None  # why behaviours cannot be watched, if they cannot


@dataclass(frozen=True, slots=True)
class Unsteerable:
    """Why this server cannot steer, for its log and for whoever asks it to."""

    problem: str


@dataclass(frozen=True, slots=True)
class Records:
    """What steering keeps in the database."""

    vectors: Vectors
    jobs: Jobs
    behaviors: Behaviors


async def open_studio(
    client: Any,
    name: str,
    settings: Settings,
    records: Records,
    *,
    processes: int,
) -> Studio | Unsteerable:
    """Steer a dummy request and measure the model first; `processes` API servers share the engine."""
    config = client.vllm_config
    if not config.parallel_config.worker_cls.startswith("steering."):
        return Unsteerable(f"the engine runs the worker {config.parallel_config.worker_cls}")
    if client.renderer.tokenizer is None:
        return Unsteerable("the engine runs without a tokenizer, which the test at start needs")
    engine = SteeringEngine(client, client.generate)
    tokenizer = _tokenizer(client.renderer.tokenizer)
    longest = int(config.model_config.max_model_len) - 1
    try:
        found = await _tried(engine, name, lambda text: tokenizer.encode(text)[:longest], processes)
    except Exception as error:  # vLLM's, a worker's or the model's own: the server serves without steering
        if client.errored:
            raise
        logger.exception("The steering self-test broke off")
        return Unsteerable(f"the self-test at start broke off: {error!r}")
    if isinstance(found, Unsteerable):
        return found
    model, rows = found
    vectors = records.vectors
    residency = Residency(engine, rows, settings.steering_wait_seconds)
    weights = config.model_config.model
    trainer = Trainer(engine, tokenizer, model, weights, neutral_texts(), longest, processes)
    presets = Presets(vectors, trainer, engine, residency)
    saes = Saes(settings.home / "saes", model)
    steering = Steering(
        engine,
        vectors,
        presets,
        residency,
        model,
        safe_dose=settings.steering_safe_dose,
        max_dose=settings.steering_max_dose,
        saes=saes,
    )
    logger.info("Steering works at all %d layers", model.layers)
    workshop = Workshop(records.jobs, vectors, trainer)
    drafts = config.speculative_config is not None
    unwatchable = "drafts that are rejected would be scored" if drafts else None
    maker = BehaviorMaker(
        records.behaviors, vectors, saes, trainer, stored=steering, engine=engine, residency=residency
    )
    return Studio(model, engine, steering, trainer, presets, workshop, saes, maker, unwatchable)


async def _tried(
    engine: SteeringEngine, name: str, encode: Encode, processes: int
) -> tuple[SteeredModel, int] | Unsteerable:
    """The model measured and steered once, and the lines of its table that are this process's."""
    facts = await engine.facts()
    if facts["problem"]:
        return Unsteerable(facts["problem"])
    rows = facts["rows"] // processes
    if rows < facts["layers"]:
        shared = f", {rows} for each of {processes} API servers" if processes > 1 else ""
        return Unsteerable(
            f"the engine's vector table has {facts['rows']} lines{shared}; a vector at all"
            f" {facts['layers']} layers takes as many (--steering-rows)"
        )
    try:
        norms = await state_norms(engine, encode, facts["layers"])
        await self_test(engine, encode, norms, facts["width"])
    except (SelfTestFailed, SteersmanError) as error:
        # A block that returns no state may be known only now that one was asked for.
        return Unsteerable((await engine.facts())["problem"] or str(error))
    model = SteeredModel(name, facts["fingerprint"], facts["layers"], facts["width"], norms)
    return model, rows


def _tokenizer(tokenizer: Any) -> Tokenizer:
    def raw(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    def render(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    has_template = bool(getattr(tokenizer, "chat_template", None))
    return Tokenizer(
        lambda text: list(tokenizer.encode(text)),
        raw,
        render if has_template else None,
        lambda tokens: str(tokenizer.decode(list(tokens))),
    )
