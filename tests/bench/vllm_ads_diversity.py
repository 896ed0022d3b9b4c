"""Diversity against quality on a small model: ADS and its rivals over 50 open prompts with 8 samples each.

    PYTHONPATH=. python tests/bench/vllm_ads_diversity.py --model DIRECTORY --out results.json
    PYTHONPATH=. python tests/bench/vllm_ads_diversity.py --model DIRECTORY --out results.json --report

The first generates, resuming where a file exists; the second prints the tables. Quality is the mean negative
log-likelihood under the untruncated model at temperature 1. Samples share seeds over the settings.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from diversity import METRICS, Sample, Scores, at_equal_nll, nll_cost, score

from processors.args import AdsArgs, ProcessorArgs, TypicalArgs
from processors.embedding_table import build_table, cached_table, read_embeddings

SIBLINGS = 8
TOKENS = 40
BASE = {"subset_size": 32, "top_p": 0.9}  # what ADS truncates to, here
BASE_TEMPERATURE = 0.8
ENOUGH = 0.95  # share of resamples in which a rival's grid must reach the setting's NLL


@dataclass(frozen=True)
class Setting:
    family: str
    temperature: float
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    beta: float | None = None
    kernel: bool = False

    @property
    def name(self) -> str:
        label = f"{self.family}, T {self.temperature:g}"
        return label + (f", β {self.beta:g}" if self.beta else "") + (", α .5" if self.kernel else "")


def settings() -> list[Setting]:
    """Most telling first, so that an interrupted run is still of use."""
    grid = [Setting("top-32 + top-p .9 + ADS", BASE_TEMPERATURE, beta=beta) for beta in (0.35, 0.5)]
    grid += [Setting("top-32 + top-p .9", t, beta=0.0) for t in (0.8, 0.9, 1.0)]
    grid += [Setting("temperature", t) for t in (0.55, 0.65, 0.75)]
    grid += [Setting("top-p .9", t, top_p=0.9) for t in (0.7, 0.85)]
    grid += [Setting("top-p .95", t, top_p=0.95) for t in (0.65, 0.8)]
    grid += [Setting("min-p .1", t, min_p=0.1) for t in (1.0, 1.3)]
    grid += [Setting("min-p .05", t, min_p=0.05) for t in (0.8, 1.05)]
    grid += [Setting("top-32 + top-p .9 + ADS", BASE_TEMPERATURE, beta=beta) for beta in (0.2, 0.67)]
    grid += [Setting("typical .95", t, typical=0.95) for t in (0.65, 0.8)]
    grid += [
        Setting("top-32 + top-p .9 + ADS", BASE_TEMPERATURE, beta=beta, kernel=True) for beta in (0.35, 0.5)
    ]
    return grid


def generate(model: Path, out: Path, only: int | None) -> None:
    """Run the settings that `out` lacks, one engine without and one with the embedding table."""
    results = json.loads(out.read_text()) if out.exists() else {}
    missing = [setting for setting in settings()[:only] if setting.name not in results]
    for kernel in (False, True):
        todo = [setting for setting in missing if setting.kernel == kernel]
        if not todo:
            continue
        engine = start_engine(model, out.parent if kernel else None)
        prompts = chats(engine)
        for setting in todo:
            began = time.perf_counter()
            groups = run(engine, prompts, setting)
            results[setting.name] = [[asdict(sample) for sample in group] for group in groups]
            out.write_text(json.dumps(results))
            print(f"{setting.name}: {time.perf_counter() - began:.1f} s", flush=True)
        del engine


def start_engine(model: Path, cache: Path | None):
    os.environ |= {
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "2",
    }
    from vllm import LLM

    table = {"ads_embedding_table": str(cached_table(model, cache))} if cache else {}
    return LLM(
        model=str(model),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=128,
        # Every prompt in one piece: on a CPU, vLLM 0.32 dies of a seeded request whose prefill is cut.
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.3,
        seed=0,
        logits_processors=["processors.vllm_logits:SteersmanLogits"],
        additional_config=table,
    )


def chats(engine) -> list[list[int]]:
    lines = Path(__file__).with_name("open_prompts.txt").read_text().splitlines()
    tokenizer = engine.get_tokenizer()
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": line}], add_generation_prompt=True, tokenize=False
        )
        for line in lines
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def run(engine, prompts: list[list[int]], setting: Setting) -> list[list[Sample]]:
    """All samples in one call, siblings next to each other so that they advance together."""
    from vllm import SamplingParams, TokensPrompt

    asked, params = [], []
    for number, prompt in enumerate(prompts):
        for slot in range(SIBLINGS):
            ads = None
            if setting.beta is not None:
                ads = AdsArgs(beta=setting.beta, group=number, slot=slot, siblings=SIBLINGS, **BASE)
            typical = TypicalArgs(setting.typical) if setting.typical < 1 else None
            asked.append(TokensPrompt(prompt_token_ids=prompt))
            params.append(
                SamplingParams(
                    temperature=setting.temperature,
                    top_p=setting.top_p,
                    min_p=setting.min_p,
                    max_tokens=TOKENS,
                    seed=number * SIBLINGS + slot,
                    logprobs=0,
                    extra_args=ProcessorArgs(typical, ads).to_extra_args(),
                )
            )
    samples = []
    for answer in engine.generate(asked, params, use_tqdm=False):
        (one,) = answer.outputs
        tokens = list(one.token_ids)
        logprobs = [step[token].logprob for step, token in zip(one.logprobs, tokens, strict=True)]
        samples.append(Sample(one.text, tokens, logprobs))
    return [samples[i : i + SIBLINGS] for i in range(0, len(samples), SIBLINGS)]


def report(model: Path, out: Path) -> None:
    table = build_table(read_embeddings(model)).numpy()
    results = json.loads(out.read_text())
    scores = {
        setting: score([[Sample(**s) for s in group] for group in results[setting.name]], table)
        for setting in settings()
        if setting.name in results
    }
    everyone = np.arange(len(next(iter(scores.values())).nll))
    print("| setting | NLL | perplexity | " + " | ".join(METRICS) + " |")
    print("|---|" + "---|" * (len(METRICS) + 2))
    for setting, scored in sorted(scores.items(), key=lambda item: (item[0].family, item[0].name)):
        nll, metrics = scored.means(everyone)
        cells = " | ".join(f"{value:.3f}" for value in metrics)
        print(f"| {setting.name} | {nll:.3f} | {np.exp(nll):.2f} | {cells} |")
    print_differences(scores)
    print_cost(scores)


def print_differences(scores: dict[Setting, Scores]) -> None:
    families = list(dict.fromkeys(s.family for s in scores if not s.beta))
    print(
        "\nADS minus rival at equal NLL [95 % interval]; a dash: the rival's grid does not reach that NLL\n"
    )
    print("| ADS | rival | distinct2 | self_bleu | dispersion | bracketed | wins both |")
    print("|---|---|---|---|---|---|---|")
    for setting in [s for s in scores if s.beta]:
        for family in families:
            rivals = [scores[s] for s in scores if s.family == family and not s.beta]
            gap = at_equal_nll(scores[setting], rivals)
            reached = gap.bracketed >= ENOUGH
            cells = [
                f"{gap.estimate[m]:+.3f} [{gap.low[m]:+.3f}, {gap.high[m]:+.3f}]" if reached else "–"
                for m in range(3)
            ]
            wins = bool(reached and gap.low[0] > 0 and gap.high[1] < 0)
            print(
                f"| β {setting.beta:g}{', α .5' if setting.kernel else ''} | {family} | {' | '.join(cells)} "
                f"| {gap.bracketed:.0%} | {'yes' if wins else 'no' if reached else '–'} |"
            )


def print_cost(scores: dict[Setting, Scores]) -> None:
    base = next(s for s in scores if s.beta == 0 and s.temperature == BASE_TEMPERATURE)
    print("\n| ADS | extra nats per token over the same truncation [95 % interval] |\n|---|---|")
    for setting in [s for s in scores if s.beta]:
        cost, low, high = nll_cost(scores[setting], scores[base])
        label = f"β {setting.beta:g}{', α .5' if setting.kernel else ''}"
        print(f"| {label} | {cost:+.3f} [{low:+.3f}, {high:+.3f}] |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--only", type=int, help="number of settings to run")
    chosen = parser.parse_args()
    if chosen.report:
        report(chosen.model, chosen.out)
    else:
        generate(chosen.model, chosen.out, chosen.only)
