"""Count the tokens that each API key uses, at the one place every route passes: the engine's `generate`."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from server.auth import Principal, current_principal
from server.calls import Call, current_call
from server.candidates import counts_prompt
from server.observation import NOTED, Observation, observed
from server.tenants import Tenants
from server.usage import UsageMeter

Generate = Callable[..., AsyncGenerator[RequestOutput, None]]


within_beam: ContextVar[bool] = ContextVar("within_beam", default=False)


def metered(generate: Generate, meter: UsageMeter, tenants: Tenants) -> Generate:
    """`generate`, adding prompt and completion tokens of each request to its caller, aborted ones too."""

    async def counting(
        prompt: Any, params: Any, request_id: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        tally = _Tally.start(delta=params.output_kind == RequestOutputKind.DELTA)
        try:
            async with aclosing(generate(prompt, params, request_id, *args, **kwargs)) as outputs:
                async for output in outputs:
                    tally.see(output)
                    yield output
        finally:
            tally.add_to(meter, tenants)

    return counting


def metered_beam(beam_search: Generate, meter: UsageMeter, tenants: Tenants) -> Generate:
    """`beam_search`, counted by its answer: its steps send the prompt again and again."""

    async def counting(*args: Any, **kwargs: Any) -> AsyncGenerator[RequestOutput, None]:
        tally = _Tally.start(delta=False)
        within_beam.set(True)
        try:
            async with aclosing(beam_search(*args, **kwargs)) as outputs:
                async for output in outputs:
                    tally.see(output)
                    yield output
        finally:
            within_beam.set(False)
            tally.add_to(meter, tenants)

    return counting


@dataclass(slots=True)
class _Tally:
    caller: Principal | None
    call: Call
    counts_prompt: bool
    delta: bool
    observation: Observation
    prompt_tokens: int = 0
    completion_tokens: dict[int, int] = field(default_factory=dict)
    text: str = ""

    @classmethod
    def start(cls, *, delta: bool) -> "_Tally":
        """For the request of this context. Taken now: an abandoned generator may be closed in another."""
        principal = current_principal.get(None)
        counted = principal is not None and not within_beam.get()
        return cls(
            caller=principal if counted else None,
            call=current_call.get() or Call(),
            counts_prompt=counts_prompt.get(),
            delta=delta,
            observation=observed(),
        )

    def see(self, output: RequestOutput) -> None:
        self.prompt_tokens = len(output.prompt_token_ids or ())
        for part in output.outputs:
            before = self.completion_tokens.get(part.index, 0) if self.delta else 0
            self.completion_tokens[part.index] = before + len(part.token_ids)
            if part.index == 0 and not (self.delta and len(self.text) >= NOTED):
                self.text = self.text + part.text if self.delta else part.text

    def add_to(self, meter: UsageMeter, tenants: Tenants) -> None:
        if self.caller is None or not self.prompt_tokens:
            return
        prompt_tokens = self.prompt_tokens if self.counts_prompt else 0
        completion_tokens = sum(self.completion_tokens.values())
        meter.add(
            self.caller.usage_id,
            requests=0 if self.call.counted else 1,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
        )
        tenants.spent(self.caller.account_id, prompt_tokens, completion_tokens)
        self.call.spend(prompt_tokens + completion_tokens)
        self.observation.counts(prompt_tokens, completion_tokens, self.text)
        self.call.counted = True
