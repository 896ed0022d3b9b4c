"""What `steersman sae` does: with the folder of autoencoders alone, or with a running server beside it."""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from server import saes
from server.columns import columns
from server.corpus import Corpus, corpus
from server.own_server import answers, own_server
from server.remote import Server
from server.remote_states import RemoteStates, facts, served_model
from server.sae_hub import fetch
from server.sae_measures import Measures, measures, servable
from server.sae_training import Meter, Plan, Timed, Training, planned_tokens, say
from server.sae_wire import ServedModel
from server.saes import SaeCard, StoredSae
from server.settings import Settings
from steering.sae.load import load
from steering.sae.sae import SparseAutoencoder
from steering.sae.told import Told

_CALIBRATED: Final = 8192  # states on which a threshold is chosen, and as many that are held out
_CHARACTERS: Final = 5  # of a token, at most, in most English texts


def _list(args: Namespace) -> None:
    cards, broken = saes.shelved(_folder(args))
    if args.json:
        found = {"saes": [asdict(card) for card in cards], "broken": [asdict(each) for each in broken]}
        sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(_table(cards) if cards else f"No autoencoders yet: {saes.MAKES_ONE}.\n")
    for each in broken:
        say(f"{each.name}: {each.problem}")


def _table(cards: list[SaeCard]) -> str:
    rows = [
        ("NAME", "MODEL", "LAYER", "LATENTS", "KIND", "EXPLAINED", "L0", "DEAD", "CE RECOVERED", "CREATED")
    ]
    rows += [
        (
            card.name,
            card.model_name,
            str(card.layer),
            str(card.d_sae),
            card.architecture + (" (threshold)" if card.approximated else ""),
            _share(card, "explained"),
            f"{card.quality['l0']:.1f}" if "l0" in card.quality else "-",
            _share(card, "dead"),
            _share(card, "cross_entropy_recovered"),
            card.created_at[:16].replace("T", " ") + "Z",
        )
        for card in cards
    ]
    return columns(rows)


def _share(card: SaeCard, figure: str) -> str:
    return f"{card.quality[figure]:.1%}" if figure in card.quality else "-"


def _remove(args: Namespace) -> None:
    for name in args.names:
        saes.remove(_folder(args), name)
        say(f"Removed {name}.")


def _add(args: Namespace) -> None:
    texts = corpus(args.corpus)
    path, source = Path(args.source).expanduser(), args.source
    if path.exists():
        for flag in ("revision", "subfolder"):
            if getattr(args, flag):
                raise ValueError(f"--{flag} is of a repository of the Hub, and {source} is a local path")
        source = str(path.absolute())
    else:
        path = fetch(source, revision=args.revision, subfolder=args.subfolder)
        source = "/".join(filter(None, ("hf:" + source, args.subfolder)))
    hook = f"blocks.{args.layer}.hook_resid_post" if args.layer is not None else args.hook
    told = Told(hook=hook, model=args.model_name, norm_factor=args.norm_factor)
    with _serving(args) as server:
        model, timed = served_model(server), Timed()
        original = load(path, facts(model), told, any_name=args.any_name)
        name = args.name or _slug(f"{source.rpartition('/')[2]}-l{original.layer}")
        shelf = _Shelf(_folder(args), name, source, replace=args.replace)
        shelf.check()
        states = RemoteStates(server, original.layer)
        shelf.keep(original, model, states, texts, timed)
        _seen(server, name)


def _train(args: Namespace) -> None:
    texts = corpus(args.corpus)
    with _serving(args) as server:
        model, timed = served_model(server), Timed()
        layer = saes.default_layer(model.layers) if args.layer is None else args.layer
        if layer >= model.layers:
            raise ValueError(f"--layer: {model.name} has layers 0 to {model.layers - 1}, not {layer}")
        name = args.name or _slug(f"{model.name.rstrip('/').rpartition('/')[2]}-l{layer}")
        shelf = _Shelf(_folder(args), name, f"trained on {texts.name}", replace=args.replace)
        shelf.check()
        states = RemoteStates(server, layer)
        folder = shelf.folder / f".training-{name}"
        if args.restart:
            saes.clear(folder)
        tokens = _affordable(args.tokens, texts)
        if args.minutes is not None:
            tokens = planned_tokens(folder) or min(tokens, states.within(60 * args.minutes, texts.learnt))
        plan = Plan(
            model_fingerprint=model.fingerprint,
            model_name=model.name,
            layer=layer,
            corpus=texts.digest,
            tokens=tokens,
            latents=args.latents,
            active=args.active,
            passes=args.passes,
            max_tokens=states.max_tokens,
        )
        original = _trained(folder, plan, texts, states)
        timed.done("Training")
        shelf.keep(original, model, states, texts, timed)
        saes.clear(folder)
        _seen(server, name)


def _trained(folder: Path, plan: Plan, texts: Corpus, states: RemoteStates) -> SparseAutoencoder:
    say(
        f"Training {plan.latents} latents, {plan.active} active, on {plan.tokens} states that leave block "
        f"{plan.layer} of {plan.model_name}; texts: {texts.name}"
    )
    try:
        with closing(Training(folder, plan)) as training, closing(Meter(plan.tokens)) as meter:
            return training.fit(texts, states, meter)
    except KeyboardInterrupt:
        say("\nWhat was learned is kept up to the last block: the same command goes on, --restart does not.")
        raise


def _affordable(asked: int, texts: Corpus) -> int:
    """The learning rate falls to 0 over the states planned, so no more are planned than there are."""
    there = max(texts.characters // _CHARACTERS, 1)
    if there < asked:
        say(f"{texts.name} has some {there} tokens to learn from: training on those")
    return min(asked, there)


def _evaluate(args: Namespace) -> None:
    texts = corpus(args.corpus)
    folder = _folder(args) / saes.checked_name(args.name, "NAME")
    if not folder.is_dir():
        raise ValueError(f"there is no autoencoder {args.name!r} in {folder.parent}")
    stored = saes.read(folder)
    with _serving(args) as server:
        model = served_model(server)
        if not stored.card.fits(model):
            raise ValueError(f"{args.name} is of {stored.card.model_name}, and {model.name} is served")
        timed = Timed()
        held_out = RemoteStates(server, stored.card.layer).some(texts.held_out, _CALIBRATED)
        found = measures(stored.sae, held_out, model.weights)
        timed.done("Measuring")
    sys.stdout.write(_titled(stored.card, texts, found))


@dataclass(frozen=True, slots=True)
class _Shelf:
    """Where an autoencoder will lie, and what it will be called."""

    folder: Path
    name: str
    source: str
    replace: bool

    def check(self) -> None:
        """Before the minutes of work. Raises SteersmanError where it cannot lie there."""
        saes.checked_name(self.name, "--name")
        if (self.folder / self.name).exists() and not self.replace:
            raise saes.already_there(self.name)

    def keep(
        self,
        original: SparseAutoencoder,
        model: ServedModel,
        states: RemoteStates,
        texts: Corpus,
        timed: Timed,
    ) -> None:
        """Make it servable, measure it, store it and print what was measured."""
        approximated = not original.subset_is_exact
        sae = original
        if approximated:
            sae = servable(original, states.some(texts.learnt, _CALIBRATED).states)
            timed.done("Calibrating a threshold in place of the ranking")
        sae = replace(sae, model=sae.model or model.name)
        found = measures(sae, states.some(texts.held_out, _CALIBRATED), model.weights)
        timed.done("Measuring")
        card = SaeCard(
            name=self.name,
            source=self.source,
            architecture=original.architecture.value,
            layer=sae.layer,
            hook=sae.hook or f"blocks.{sae.layer}.hook_resid_post",
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            digest=sae.digest,
            model_name=model.name,
            model_fingerprint=model.fingerprint,
            quality=found.figures,
            approximated=approximated,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        stored = StoredSae(card, sae, found.quality.density)
        path = saes.write(self.folder, stored, replace=self.replace)
        sys.stdout.write(_titled(card, texts, found))
        say(f"Stored in {path}")


def _titled(card: SaeCard, texts: Corpus, found: Measures) -> str:
    head = f"{card.name}: {card.d_sae} latents of block {card.layer} of {card.model_name}, on {texts.name}"
    return f"{head}\n\n{found.table()}"


def _seen(server: Server, name: str) -> None:
    if name not in [each["name"] for each in server.get("/saes")["saes"]]:
        say(f"{server.url} does not see it: copy the folder to saes/ in that server's STEERSMAN_HOME")


@contextmanager
def _serving(args: Namespace) -> Iterator[Server]:
    """The server at --url, or one of our own where --serve asks for it."""
    if args.serve is None or (args.serve == "" and answers(args.url)):
        yield Server(args.url, args.key)
        return
    flags = [args.serve] if args.serve else []
    with own_server(Settings.read(args).home, flags, say) as server:
        yield server


def _folder(args: Namespace) -> Path:
    return Settings.read(args).home / "saes"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-.")[:64] or "sae"


COMMANDS: Final[dict[str, Callable[[Namespace], None]]] = {
    "list": _list,
    "remove": _remove,
    "add": _add,
    "train": _train,
    "evaluate": _evaluate,
}
