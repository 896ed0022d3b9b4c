"""Record what sae-lens makes of the autoencoders and states of these tests, for machines without it.

    python tests/steering/sae/record_sae_lens.py    # in an environment that has sae-lens

`test_sae_lens.py` compares with the library itself, where it is installed; `test_recorded.py` with this file.
"""

import json
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[3]))
from steering.sae import saelens
from steering.sae.encode import Architecture, Normalisation
from steering.sae.sae import SparseAutoencoder
from tests.steering.sae.toys import make, random_states

RECORDED = Path(__file__).with_name("sae_lens.json")
EVERY = 5  # of the states: enough to tell apart what is compared


def cases() -> Iterator[tuple[str, SparseAutoencoder]]:
    """What sae-lens reads from a folder as we write it: all but BatchTopK, which it trains itself."""
    kinds = [kind for kind in Architecture if kind is not Architecture.BATCHTOPK]
    scalings = [Normalisation.NONE, Normalisation.CONSTANT_NORM, Normalisation.LAYER_NORM]
    for kind, scaling, subtracts in product(kinds, scalings, (True, False)):
        name = f"{kind} {scaling} {'minus b_dec' if subtracts else 'as it is'}"
        yield name, make(kind, normalisation=scaling, apply_b_dec_to_input=subtracts)
    yield "topk rescaled", make(Architecture.TOPK, rescale_acts_by_decoder_norm=True)


def recorded_states() -> torch.Tensor:
    """`[states, width]`."""
    return random_states().flatten(0, 1)[::EVERY]


def main() -> None:
    import sae_lens

    found = {}
    for name, sae in cases():
        with TemporaryDirectory() as folder, torch.no_grad():
            saelens.write(sae, Path(folder))
            theirs = sae_lens.SAE.load_from_disk(folder, device="cpu")
            latents = theirs.encode(recorded_states())
            again = theirs.decode(latents)
        found[name] = {
            "latents": [
                [[i, round(float(row[i]), 6)] for i in row.nonzero().flatten().tolist()] for row in latents
            ],
            "reconstructions": [[round(value, 6) for value in row] for row in again.tolist()],
        }
    text = json.dumps({"sae_lens": sae_lens.__version__, "cases": found}, separators=(",", ":"))
    RECORDED.write_text(text.replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
