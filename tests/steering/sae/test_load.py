"""Files as other libraries write them, made here by hand; and files that must be refused."""

import io
import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steering.sae import saelens
from steering.sae.encode import Architecture, Normalisation
from steering.sae.errors import CorruptSae, SaeError, UnsafeSae, UnsupportedSae, WrongHook, WrongModel
from steering.sae.load import load
from steering.sae.model import ModelFacts, block_of
from steering.sae.told import Told

MODEL = ModelFacts(layers=6, width=24, name="lab/toy", aliases=("default",))


def write_saelens(folder, sae, config=None, tensors=None, *, old=False):
    """`config` and `tensors` change what is written; a value of None leaves a tensor out."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": "float32",
        "device": "cuda",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": sae.normalisation.value,
    }
    if old:
        facts |= {"model_name": "toy", "hook_point": "blocks.3.hook_resid_post", "hook_point_layer": 3}
        if sae.architecture is Architecture.TOPK:
            facts |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": sae.k}}
        elif sae.architecture is not Architecture.STANDARD:
            facts["architecture"] = sae.architecture.value
    else:
        facts |= {"architecture": sae.architecture.value, "reshape_activations": "none", "k": sae.k}
        facts["rescale_acts_by_decoder_norm"] = sae.rescale_acts_by_decoder_norm
        facts["metadata"] = {
            "sae_lens_version": "6.18.0",
            "model_name": "toy",
            "hook_name": "blocks.3.hook_resid_post",
        }
    (folder / "cfg.json").write_text(json.dumps(facts | (config or {})))
    named = {name: tensor.contiguous() for name, tensor in (sae.tensors | (tensors or {})).items()}
    save_file(named, folder / "sae_weights.safetensors")
    return folder


def same(loaded, sae, states):
    torch.testing.assert_close(loaded.encode(states), sae.encode(states), rtol=1e-5, atol=1e-5)
    again = loaded.decode(loaded.encode(states), states)
    torch.testing.assert_close(again, sae.decode(sae.encode(states), states), rtol=1e-4, atol=1e-3)
    assert (loaded.layer, loaded.model) == (sae.layer, sae.model)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("architecture", [a for a in Architecture if a is not Architecture.BATCHTOPK])
@pytest.mark.parametrize("normalisation", ["none", "constant_norm_rescale", "layer_norm"])
def test_saelens(tmp_path, made, states, architecture, *, normalisation, old):
    """Each architecture as version 6 writes it, and as those before did."""
    sae = made(architecture, normalisation=Normalisation(normalisation))
    loaded = load(write_saelens(tmp_path / "sae", sae, old=old), MODEL)
    assert loaded.digest == sae.digest
    same(loaded, sae, states)


def test_saelens_of_old_defaults(tmp_path, made, states):
    """Without a word about them, b_dec is subtracted and states are taken as they are."""
    sae = made(Architecture.STANDARD, apply_b_dec_to_input=True)
    folder = write_saelens(tmp_path, sae, old=True)
    config = json.loads((folder / "cfg.json").read_text())
    for name in ("apply_b_dec_to_input", "normalize_activations"):
        del config[name]
    (folder / "cfg.json").write_text(json.dumps(config))
    same(load(folder, MODEL), sae, states)


@pytest.mark.parametrize("rescaled", [False, True])
def test_batchtopk_as_training_left_it(tmp_path, made, states, rescaled):
    """One threshold for all latents; where training rescaled, it is in units of unit decoder rows."""
    plain = made(Architecture.TOPK, rescale_acts_by_decoder_norm=rescaled)
    folder = write_saelens(
        tmp_path,
        plain,
        {"architecture": "batchtopk", "k": 7.0},
        {"topk_threshold": torch.tensor(0.8, dtype=torch.float64)},
    )
    loaded = load(folder, MODEL)
    assert (loaded.architecture, loaded.saved_as) == (Architecture.BATCHTOPK, Architecture.JUMPRELU)
    norms = plain.W_dec.norm(dim=1) if rescaled else torch.ones(plain.d_sae)
    pre = ((states - plain.b_dec) @ plain.W_enc + plain.b_enc) * norms
    latents = torch.where(pre > 0.8, pre, 0.0)
    torch.testing.assert_close(loaded.encode(states), latents, rtol=1e-4, atol=1e-4)
    expected = latents / norms @ plain.W_dec + plain.b_dec
    torch.testing.assert_close(loaded.decode(loaded.encode(states)), expected, rtol=1e-4, atol=1e-3)


def test_expected_average_is_folded_and_its_factor_never_guessed(tmp_path, made, states):
    """From the caller or the file; without one it is refused, as is an unfit one."""
    sae = made(Architecture.JUMPRELU)
    folder = write_saelens(tmp_path / "a", sae, {"normalize_activations": "expected_average_only_in"})
    with pytest.raises(UnsupportedSae, match="norm_factor"):
        load(folder, MODEL)
    same(load(folder, MODEL, Told(norm_factor=0.25)), sae.folded(0.25), states)
    same(load(folder, MODEL, Told(norm_factor=1.0)), sae, states)
    with pytest.raises(SaeError, match="positive"):
        load(folder, MODEL, Told(norm_factor=-1.0))
    told = {"normalize_activations": True, "norm_scaling_factor": 0.25}
    same(load(write_saelens(tmp_path / "b", sae, told, old=True)), sae.folded(0.25), states)


def test_finetuning_scales_what_is_decoded(tmp_path, made, states):
    """Before version 6; a factor that the configuration denies is refused, one of ones is none."""
    sae, scale = made(Architecture.STANDARD), torch.linspace(0.5, 2, 60)
    flag = {"finetuning_scaling_factor": True}
    loaded = load(write_saelens(tmp_path / "a", sae, flag, {"scaling_factor": scale}, old=True))
    torch.testing.assert_close(loaded.encode(states), sae.encode(states))
    expected = (sae.encode(states) * scale) @ sae.W_dec + sae.b_dec
    torch.testing.assert_close(loaded.decode(loaded.encode(states)), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(CorruptSae, match="not finetuned"):
        load(write_saelens(tmp_path / "b", sae, {}, {"scaling_factor": scale}, old=True))
    ones = {"scaling_factor": torch.ones(60)}
    assert load(write_saelens(tmp_path / "c", sae, {}, ones, old=True)).digest == sae.digest


def test_half_precision_files_are_served_in_float32(tmp_path, made):
    """Weights keep the values that the file has."""
    sae = made(Architecture.STANDARD)
    halves = {name: tensor.to(torch.bfloat16) for name, tensor in sae.tensors.items()}
    loaded = load(write_saelens(tmp_path, sae, {"dtype": "bfloat16"}, halves))
    assert torch.equal(loaded.W_enc, halves["W_enc"].float())


@pytest.mark.parametrize("architecture", Architecture)
def test_what_is_written_is_read_back(tmp_path, made, states, architecture):
    """In SAELens' layout: to the bit, batchtopk as the jumprelu that it is."""
    sae = made(architecture, normalisation=Normalisation.LAYER_NORM)
    saelens.write(sae, tmp_path / "sae")
    loaded = load(tmp_path / "sae", MODEL)
    assert loaded.digest == sae.digest
    assert loaded.architecture is sae.saved_as
    assert torch.equal(loaded.encode(states), sae.encode(states))
    assert sorted(file.name for file in (tmp_path / "sae").iterdir()) == [
        "cfg.json",
        "sae_weights.safetensors",
    ]


def test_files_of_two_autoencoders_are_refused(tmp_path, made):
    """As an interruption between the two files would leave them."""
    for seed, name in enumerate("ab"):
        saelens.write(made(Architecture.STANDARD, seed), tmp_path / name)
    (tmp_path / "a" / "cfg.json").replace(tmp_path / "b" / "cfg.json")
    with pytest.raises(CorruptSae, match="digest"):
        load(tmp_path / "b")


def write_gemma(folder, sae, *, lower=False, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: tensor.numpy() for name, tensor in sae.tensors.items()} | changed
    np.savez(
        folder / "params.npz",
        **{name.replace("W_", "w_") if lower else name: array for name, array in arrays.items()},
    )
    return folder


GEMMA = "models--google--gemma-scope-2b-pt-res/snapshots/abc/layer_3/width_16k/average_l0_71"


@pytest.mark.parametrize("lower", [False, True])
def test_gemma_scope(tmp_path, made, states, lower):
    """JumpReLU, nothing subtracted; layer and model from the path."""
    sae = made(Architecture.JUMPRELU, apply_b_dec_to_input=False, model="google/gemma-2-2b")
    folder = write_gemma(tmp_path / GEMMA, sae, lower=lower)
    facts = ModelFacts(26, 24, "google/gemma-2-2b")
    for path in (folder, folder / "params.npz"):
        loaded = load(path, facts)
        assert loaded.digest == sae.digest
        same(loaded, sae, states)
    instructed = write_gemma(tmp_path / GEMMA.replace("-pt-", "-it-"), sae)
    assert load(instructed).model == "google/gemma-2-2b-it"


def test_gemma_scope_of_another_place_is_refused(tmp_path, made):
    """MLP, attention, embedding; and a path that does not tell, unless the caller does."""
    sae = made(Architecture.JUMPRELU, apply_b_dec_to_input=False)
    for part in ("-mlp", "-att", "-transcoders"):
        with pytest.raises(WrongHook, match=r"-res"):
            load(write_gemma(tmp_path / GEMMA.replace("-res", part), sae))
    with pytest.raises(WrongHook, match="the embedding"):
        load(write_gemma(tmp_path / GEMMA.replace("layer_3", "embedding"), sae))
    bare = write_gemma(tmp_path / "mine", sae)
    with pytest.raises(WrongHook, match="layer_L"):
        load(bare)
    assert load(bare, told=Told(hook="blocks.4.hook_resid_pre", model="toy"), model=MODEL).layer == 3


def write_sparsify(folder, sae, config=None, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"d_in": sae.d_in, "num_latents": sae.d_sae, "k": sae.k, "normalize_decoder": True}
    (folder / "cfg.json").write_text(json.dumps(facts | (config or {})))
    (folder.parent / "config.json").write_text(json.dumps({"model": "lab/toy"}))
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    save_file(
        {name: tensor.contiguous() for name, tensor in (tensors | changed).items()},
        folder / "sae.safetensors",
    )
    return folder


def test_sparsify(tmp_path, made, states):
    """b_dec is subtracted whatever normalize_decoder says; either orientation is found by its shape."""
    sae = made(Architecture.TOPK, model="lab/toy")
    folder = write_sparsify(tmp_path / "run" / "layers.3", sae)
    same(load(folder, MODEL), sae, states)
    turned = {"encoder.weight": sae.W_enc, "W_dec": sae.W_dec.T}
    same(load(write_sparsify(folder, sae, **turned), MODEL), sae, states)
    sizes = {"num_latents": 0, "expansion_factor": 3, "normalize_decoder": False}
    cut = made(
        Architecture.TOPK,
        W_enc=sae.W_enc[:, :48],
        W_dec=sae.W_dec[:48],
        b_enc=sae.b_enc[:48],
        model="lab/toy",
    )
    with pytest.raises(CorruptSae, match=r"matrix \[48, 24\]"):
        load(write_sparsify(folder, cut, sizes))
    sizes["expansion_factor"] = 2
    same(load(write_sparsify(folder, cut, sizes), MODEL), cut, states)


def test_sparsify_of_square_matrices(tmp_path, made, states):
    """As many latents as the state is wide: one row per latent, as sparsify writes."""
    sae = made(Architecture.TOPK)
    square = made(Architecture.TOPK, W_enc=sae.W_enc[:, :24], W_dec=sae.W_dec[:24], b_enc=sae.b_enc[:24])
    same(load(write_sparsify(tmp_path / "layers.3", square), told=Told(model="toy")), square, states)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transcode": True}, "transcoder"),
        ({"signed": True}, "signed"),
        ({"activation": "groupmax"}, "groupmax"),
        ({"skip_connection": True}, "skip"),
    ],
)
def test_sparsify_that_computes_something_else_is_refused(tmp_path, made, config, message):
    with pytest.raises(UnsupportedSae, match=message):
        load(write_sparsify(tmp_path / "layers.3", made(Architecture.TOPK), config))


@pytest.mark.parametrize("name", ["layers.3.mlp", "embed_tokens", "layers.3.attention", "notes"])
def test_sparsify_of_another_place_is_refused(tmp_path, made, name):
    with pytest.raises(WrongHook, match="hook_resid_post"):
        load(write_sparsify(tmp_path / name, made(Architecture.TOPK)))


@pytest.mark.parametrize(
    ("hook", "block"),
    [
        ("blocks.7.hook_resid_post", 7),
        ("blocks.7.hook_resid_pre", 6),
        ("model.layers.7", 7),
        ("model.layers.7.output", 7),
        ("layers.7", 7),
        ("transformer.h.7", 7),
    ],
)
def test_hooks_of_the_residual_stream(hook, block):
    """What enters a block is what leaves the one before."""
    assert block_of(hook) == block


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("blocks.7.hook_mlp_out", "an MLP"),
        ("blocks.7.attn.hook_z", "attention"),
        ("blocks.7.hook_attn_out", "attention"),
        ("blocks.7.ln2.hook_normalized", "a norm"),
        ("blocks.7.hook_resid_mid", "the middle"),
        ("hook_embed", "the embedding"),
        ("blocks.0.hook_resid_pre", "before the first block"),
        ("somewhere", "does not name a place"),
    ],
)
def test_other_hooks_are_refused(hook, place):
    """The message says what is there, and what to take instead."""
    with pytest.raises(WrongHook, match=rf"{place}.*blocks\.L\.hook_resid_post"):
        block_of(hook)


def test_another_model_is_refused(tmp_path, made):
    """Another width, a layer that is not there, another name; that one only unless it is meant."""
    sae = made(Architecture.STANDARD)
    folder = write_saelens(tmp_path, sae)
    with pytest.raises(WrongModel, match="24 wide, those of lab/toy are 32"):
        load(folder, ModelFacts(6, 32, "lab/toy"))
    with pytest.raises(WrongModel, match="block 3, lab/toy has blocks 0 to 2"):
        load(folder, ModelFacts(3, 24, "lab/toy"))
    other = ModelFacts(6, 24, "lab/toy-instruct")
    with pytest.raises(WrongModel, match="trained on 'toy', served is 'lab/toy-instruct'"):
        load(folder, other)
    assert load(folder, other, any_name=True).digest == sae.digest
    assert load(folder, ModelFacts(6, 24, "models/local", aliases=("Lab/Toy",))).digest == sae.digest


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["ae.pt", "sae.pth", "pytorch_model.bin", "sae.pkl"])
def test_pickles_are_refused_unread(tmp_path, name):
    """By folder and by file; the message says what to convert them to."""
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UnsafeSae, match=r"pickle.*sae_weights\.safetensors"):
            load(path)


def test_a_pickle_in_disguise_is_refused_unread(tmp_path, made):
    """Under a safe name, or within an npz."""
    folder = write_saelens(tmp_path / "a", made(Architecture.STANDARD))
    (folder / "sae_weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CorruptSae, match="safetensors"):
        load(folder)
    sae = made(Architecture.JUMPRELU, apply_b_dec_to_input=False)
    objects = np.array([Bomb()], dtype=object)
    with pytest.raises(UnsafeSae, match="pickled"):
        load(write_gemma(tmp_path / "layer_3", sae, threshold=objects))


def damaged(data):
    yield b""
    yield data[:4]
    yield data[: len(data) // 2]
    yield data[:-3]
    yield b"\xff" * 64
    yield b"\xff\xff\xff\xff\xff\xff\xff\x7f" + data[8:]


@pytest.mark.parametrize("case", range(6))
def test_damaged_weights_are_refused(tmp_path, made, case):
    """Cut short, empty, or with lengths that lie."""
    sae = made(Architecture.JUMPRELU, apply_b_dec_to_input=False)
    folders = {
        "sae_weights.safetensors": write_saelens(tmp_path / "a", sae),
        "params.npz": write_gemma(tmp_path / "layer_3", sae),
    }
    for name, folder in folders.items():
        file = folder / name
        file.write_bytes(list(damaged(file.read_bytes()))[case])
        with pytest.raises(CorruptSae, match=name.partition(".")[2]):
            load(folder)


def test_an_npz_that_promises_more_than_it_has_is_refused(tmp_path, made):
    """Before room is made for it: 8 TB here."""
    folder = write_gemma(tmp_path / "layer_3", made(Architecture.JUMPRELU))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**21)}
    )
    with zipfile.ZipFile(folder / "params.npz", "w") as archive:
        for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
            archive.writestr(f"{name}.npy", header.getvalue() + b"\0" * 64)
    with pytest.raises(CorruptSae, match="cut short"):
        load(folder)


def test_files_beyond_the_limit_are_refused(tmp_path, made):
    """A compressed npz counts by what it unpacks to."""
    sae = made(Architecture.JUMPRELU, apply_b_dec_to_input=False)
    with pytest.raises(CorruptSae, match="more than the limit of 1000"):
        load(write_saelens(tmp_path / "a", sae), limit=1000)
    folder = tmp_path / "layer_3"
    folder.mkdir()
    np.savez_compressed(folder / "params.npz", **{name: np.zeros_like(t) for name, t in sae.tensors.items()})
    with pytest.raises(CorruptSae, match="unpacks to more"):
        load(folder, limit=10_000)
    big = write_saelens(tmp_path / "b", sae, {"note": "x" * 2**20})
    with pytest.raises(CorruptSae, match=r"cfg\.json has"):
        load(big)


@pytest.mark.parametrize(
    ("config", "tensors", "error", "message"),
    [
        ({"d_in": 25}, {}, CorruptSae, "d_in is 25"),
        ({"d_sae": 61}, {}, CorruptSae, "d_sae is 61"),
        ({}, {"W_dec": torch.zeros(24, 60)}, CorruptSae, "W_dec is"),
        ({}, {"b_enc": torch.full((60,), float("inf"))}, CorruptSae, "finite"),
        ({}, {"b_enc": torch.zeros(60, dtype=torch.int32)}, CorruptSae, "int32"),
        ({"architecture": "jumprelu"}, {}, CorruptSae, "no tensor threshold"),
        ({"architecture": "topk", "k": "many"}, {}, CorruptSae, "not a number"),
        ({"architecture": "topk"}, {}, CorruptSae, "topk keeps"),
        ({"architecture": "transcoder"}, {}, UnsupportedSae, "transcoder.*standard"),
        ({"activation_fn": "tanh-relu"}, {}, UnsupportedSae, "tanh-relu"),
        ({"normalize_activations": "covariance_whitening"}, {}, UnsupportedSae, "layer_norm"),
        ({"reshape_activations": "hook_z"}, {}, WrongHook, "hook_z"),
        ({"hook_name": "blocks.3.hook_mlp_out"}, {}, WrongHook, "an MLP"),
        ({"metadata": {}}, {}, WrongHook, "does not say where"),
        ({"metadata": {"hook_name": 3}}, {}, CorruptSae, "not a text"),
    ],
)
def test_files_that_contradict_themselves_or_ask_for_more_are_refused(
    tmp_path, made, config, tensors, *, error, message
):
    """Each with its kind of error, and a message that names the culprit."""
    folder = write_saelens(tmp_path, made(Architecture.STANDARD), config, tensors)
    with pytest.raises(error, match=message):
        load(folder, MODEL)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\x00"])
def test_unreadable_configurations_are_refused(tmp_path, made, text):
    folder = write_saelens(tmp_path, made(Architecture.STANDARD))
    (folder / "cfg.json").write_text(text)
    with pytest.raises(CorruptSae, match=r"cfg\.json"):
        load(folder)


def test_folders_without_an_autoencoder_are_refused(tmp_path, made):
    """The message says what is looked for."""
    with pytest.raises(CorruptSae, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(CorruptSae, match=r"none of sae_weights\.safetensors, sae\.safetensors, params\.npz"):
        load(tmp_path)
    folder = write_saelens(tmp_path / "a", made(Architecture.STANDARD))
    (folder / "cfg.json").unlink()
    with pytest.raises(CorruptSae, match=r"cfg\.json cannot be read"):
        load(folder)
