"""Parity with the sae-lens library: the same files, the same states, the same latents."""

import json

import numpy as np
import pytest
import torch

from steering.sae import saelens
from steering.sae.encode import Architecture, Normalisation
from steering.sae.load import load
from steering.sae.sae import SparseAutoencoder
from steering.sae.told import Told

sae_lens = pytest.importorskip(
    "sae_lens", reason="the reference is not here; to run: pip install sae-lens (in a venv of its own)"
)

# transformer-lens and what it draws in warn of each other.
pytestmark = pytest.mark.filterwarnings("default")

MOST = 1e-4
ARCHITECTURES = [kind for kind in Architecture if kind is not Architecture.BATCHTOPK]
NORMALISATIONS = [Normalisation.NONE, Normalisation.CONSTANT_NORM, Normalisation.LAYER_NORM]


def reference(folder, **options):
    return sae_lens.SAE.load_from_disk(folder, device="cpu", **options)


def compare(ours, theirs, states, record_property):
    """Largest differences of latents and reconstructions, noted with the test."""
    with torch.no_grad():
        latents = theirs.encode(states)
        again = theirs.decode(latents)
    encoded = float((ours.encode(states) - latents).abs().max())
    decoded = float((ours.decode(latents, states) - again).abs().max())
    record_property("encode", encoded)
    record_property("decode", decoded)
    print(f"max abs diff: encode {encoded:.2e}, decode {decoded:.2e}")
    assert latents.count_nonzero() > 0
    assert encoded <= MOST
    assert decoded <= MOST
    some = [1, 20, 44]
    assert float((ours.encode_some(states, some) - latents[..., some]).abs().max()) <= MOST
    assert float((ours.reads_only(some).encode(states) - latents[..., some]).abs().max()) <= MOST


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("subtracts", [True, False])
def test_what_we_write_is_the_same_to_sae_lens(
    tmp_path, made, states, record_property, *, architecture, normalisation, subtracts
):
    """Each architecture under each normalisation, b_dec subtracted or not."""
    sae = made(architecture, normalisation=normalisation, apply_b_dec_to_input=subtracts)
    saelens.write(sae, tmp_path)
    compare(load(tmp_path), reference(tmp_path), states, record_property)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_sae_lens_writes_is_the_same_to_us(tmp_path, made, states, record_property, architecture):
    """Saved by its own class; the place and the model come through."""
    saelens.write(made(architecture), tmp_path / "a")
    theirs = reference(tmp_path / "a")
    theirs.save_model(tmp_path / "b")
    config = json.loads((tmp_path / "b" / "cfg.json").read_text())
    ours = load(tmp_path / "b")
    assert (ours.layer, ours.model) == (3, "toy")
    assert config["architecture"] == architecture
    compare(ours, theirs, states, record_property)


def test_topk_rescaled_by_decoder_norms(tmp_path, made, states, record_property):
    saelens.write(made(Architecture.TOPK, rescale_acts_by_decoder_norm=True), tmp_path)
    compare(load(tmp_path), reference(tmp_path), states, record_property)


@pytest.mark.parametrize("rescaled", [True, False])
def test_batchtopk_from_its_training_class(tmp_path, made, states, record_property, rescaled):
    """Saved for use, and as training left it: the same to us, both as sae-lens serves it."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    weights = made(Architecture.TOPK)
    config = BatchTopKTrainingSAEConfig(d_in=24, d_sae=60, k=7, rescale_acts_by_decoder_norm=rescaled)
    training = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        for name, tensor in weights.tensors.items():
            getattr(training, name).copy_(tensor)
        training.topk_threshold += 0.7
    training.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    training.save_model(tmp_path / "trained")
    training.save_inference_model(tmp_path / "served")  # which folds norms into `training` itself
    theirs = reference(tmp_path / "served")
    for name in ("served", "trained"):
        compare(load(tmp_path / name), theirs, states, record_property)


def test_expected_average(tmp_path, made, states, record_property):
    """Folded as sae-lens folds it."""
    saelens.write(made(Architecture.JUMPRELU), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    config["normalize_activations"] = "expected_average_only_in"
    del config["metadata"]["steersman_digest"]
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    theirs = reference(tmp_path)
    theirs.fold_activation_norm_scaling_factor(0.31)
    compare(load(tmp_path, told=Told(norm_factor=0.31)), theirs, states, record_property)


def test_a_width_as_in_use(tmp_path, record_property):
    """576 wide, 4096 latents, the activations of a real block in size."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(4096, 576, generator=generator), dim=1)
    sae = SparseAutoencoder(
        Architecture.TOPK,
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_enc=0.1 * torch.randn(4096, generator=generator),
        b_dec=torch.randn(576, generator=generator),
        layer=3,
        k=32,
        apply_b_dec_to_input=True,
    )
    saelens.write(sae, tmp_path)
    states = 2 * torch.randn(64, 576, generator=generator)
    compare(load(tmp_path), reference(tmp_path), states, record_property)


def test_sparsify(tmp_path, made, states, record_property):
    """Through the disk loader of sae-lens, where it takes the same orientation: it transposes W_dec."""
    from sae_lens.loading.pretrained_sae_loaders import sparsify_disk_loader
    from safetensors.torch import save_file

    sae = made(Architecture.TOPK)
    folder = tmp_path / "run" / "layers.3"
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps({"d_in": 24, "num_latents": 60, "k": 7}))
    tensors = {"encoder.weight": sae.W_enc.T, "W_dec": sae.W_dec.T, "b_dec": sae.b_dec}
    tensors["encoder.bias"] = sae.b_enc
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "sae.safetensors")
    theirs = reference(folder, dtype="float32", converter=sparsify_disk_loader)
    compare(load(folder), theirs, states, record_property)


def test_gemma_scope(tmp_path, monkeypatch, made, states, record_property):
    """Through the loader of sae-lens for the hub, with the file given to it from here."""
    from sae_lens.loading import pretrained_sae_loaders as loaders

    sae = made(Architecture.JUMPRELU, apply_b_dec_to_input=False)
    place = "layer_3/width_16k/average_l0_71"
    folder = tmp_path / "gemma-scope-2b-pt-res" / place
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{name: tensor.numpy() for name, tensor in sae.tensors.items()})
    monkeypatch.setattr(loaders, "hf_hub_download", lambda *_, filename, **__: folder / filename)

    def converted(*_, **__):
        sizes = {"d_in": 24, "d_sae": 60}
        return loaders.gemma_2_sae_huggingface_loader(
            "google/gemma-scope-2b-pt-res", place, "cpu", False, sizes
        )[:2]

    ours = load(folder)
    theirs = reference(folder, converter=converted)
    assert theirs.cfg.metadata.hook_name == ours.hook
    assert ours.model.endswith(theirs.cfg.metadata.model_name)
    compare(ours, theirs, states, record_property)
