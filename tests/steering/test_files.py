"""Vectors as files: three formats, told apart by content, and whatever is wrong with them."""

import json
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from steering import gguf as own_gguf
from steering.files import (
    MAX_VALUE,
    Format,
    Point,
    layer_of,
    omitted,
    read_flat,
    read_vector,
    write_flat,
    write_vector,
)
from steering.vector import Layer, Probe, SteeringVector, Units, VectorError

ROOT = Path(__file__).parents[2]
WIDTH = 5


def vector(*layers, seed=0):
    rows = np.random.default_rng(seed).normal(size=(len(layers), WIDTH)).astype(np.float32)
    return SteeringVector.of(dict(zip(layers, rows, strict=True)))


def gated():
    """A vector with a probe at one layer and latents at another."""
    rng = np.random.default_rng(1)
    row = rng.normal(size=WIDTH).astype(np.float32)
    units = Units(*(rng.normal(size=shape).astype(np.float32) for shape in ((2, WIDTH), (2, WIDTH), 2, 2, 2)))
    return SteeringVector({3: Layer(row, Probe(row, 0.5, 2.0)), 4: Layer(row, units=units)})


def flat(**changes):
    return json.dumps({"11": [1, 2.5], "12": [-1, 0]} | changes).encode()


@pytest.mark.parametrize("format", Format)
def test_what_is_written_is_read(format):
    """Each format returns the same numbers, bit by bit, and is recognised without a name."""
    original = vector(0, 3, 11)
    file = read_vector(write_vector(original, format))
    assert file.format is format
    assert file.vector.digest == original.digest
    assert file.metadata == {}


@pytest.mark.parametrize("format", [Format.SAFETENSORS, Format.GGUF])
def test_metadata_travels_with_the_vector(format):
    """Safetensors and GGUF keep what is said of a vector; JSON has no place for it."""
    metadata = {"name": "Höflich", "doses": {"3": 0.25}, "model_name": "org/model"}
    assert read_vector(write_vector(vector(3), format, metadata)).metadata == metadata
    assert read_vector(write_vector(vector(3), Format.JSON, metadata)).metadata == {}


def test_probes_and_latents_need_safetensors():
    """Safetensors holds a gated vector whole, the others its directions, and they say what is missing."""
    original = gated()
    whole = read_vector(write_vector(original, Format.SAFETENSORS, {"a": 1})).vector
    assert whole.digest == original.digest
    assert omitted(original, Format.SAFETENSORS) == ()
    for kind in (Format.JSON, Format.GGUF):
        assert omitted(original, kind) == ("probe", "units")
        assert omitted(vector(1), kind) == ()
        directions = read_vector(write_vector(original, kind)).vector
        assert {3, 4} == set(directions.layers)
        assert all(layer.probe is None and layer.units is None for layer in directions.layers.values())


def test_the_blob_of_a_vector_is_a_file():
    """What the worker is sent can be read as it is."""
    assert read_vector(gated().blob).vector.digest == gated().digest


def test_json_is_what_the_sdk_reads():
    """Keys are numbers as text, in order, and values lists of numbers, as `save_vectors` expects them."""
    written = json.loads(write_vector(vector(12, 3), Format.JSON))
    assert written == write_flat(vector(12, 3))
    assert list(written) == ["3", "12"]
    assert all(isinstance(number, float) for row in written.values() for number in row)


@pytest.mark.parametrize(
    ("key", "layer"),
    [
        ("11", 11),
        ("0", 0),
        ("layers.11", 11),
        ("model.layers.11", 11),
        ("model.language_model.layers.11", 11),
        ("transformer.h.11", 11),
        ("blocks.11.hook_resid_post", 11),
        ("blocks.11.hook_resid_pre", 10),
    ],
)
def test_keys_of_one_layer(key, layer):
    """A key names a block by number or path; `resid_pre` is the output of the block below."""
    assert layer_of(key) == layer


def test_the_source_is_for_keys_that_name_none():
    """`source` moves plain numbers, and not keys that name their hook."""
    assert layer_of("11", Point.RESID_PRE) == 10
    assert layer_of("blocks.11.hook_resid_post", Point.RESID_PRE) == 11
    assert set(read_vector(flat(), source=Point.RESID_PRE).vector.layers) == {10, 11}


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("blocks.0.hook_resid_pre", "before the first block"),
        ("blocks.3.hook_resid_mid", "inside a block"),
        ("blocks.3.hook_mlp_out", "inside a block"),
        ("model.layers.3.mlp", "names no layer"),
        ("lm_head", "names no layer"),
        ("-1", "names no layer"),
        ("1.5", "names no layer"),
        ("١١", "names no layer"),
        ("", "names no layer"),
        ("99999", "names no layer"),
    ],
)
def test_keys_that_are_no_layer(key, says):
    """A key that means no output of a block is refused, by name and with the reason."""
    with pytest.raises(VectorError, match=says) as caught:
        read_flat({key: [1.0]})
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{}", "at least one layer"),
        (b"[1, 2]", "neither"),
        (b"\x80\x04K\x01.", "neither"),
        (b'{"11": [1, 2', "not valid JSON"),
        (b'{"11": [1], }', "not valid JSON"),
        (b'{"11": [1]} {}', "not valid JSON"),
        (b'{"11": [1, NaN]}', "NaN is not a finite"),
        (b'{"11": [1, -Infinity]}', "-Infinity is not a finite"),
        (b'{"11": [1e999]}', "layer 11.*finite"),
        (b'{"11": [1e39]}', "layer 11.*finite"),
        (b'{"11": [1e30]}', "layer 11.*beyond"),
        (b'{"11": [1' + b"0" * 400 + b"]}", "'11'.*too large"),
        (b'{"11": [1' + b"0" * 5000 + b"]}", "not valid JSON"),
        (b'{"11": []}', "'11' is not a list of numbers"),
        (b'{"11": 1}', "'11' is not a list of numbers"),
        (b'{"11": "1"}', "'11' is not a list of numbers"),
        (b'{"11": [1, true]}', "'11'.*other than a number at index 1"),
        (b'{"11": ["1"]}', "'11'.*other than a number at index 0"),
        (b'{"11": [[1]]}', "'11'.*other than a number at index 0"),
        (b'{"11": [null]}', "'11'.*other than a number at index 0"),
        (b'{"11": [0, 0.0]}', "layer 11.*zero"),
        (b'{"11": [1e-60]}', "layer 11.*zero"),
        (b'{"11": [1, 2], "12": [1]}', "'12' is 1 numbers long, '11' 2"),
        (b'{"11": [1], "11": [2]}', "'11' occurs twice"),
        (b'{"11": [1], "layers.11": [2]}', "'11' and 'layers.11' both mean"),
        (b'{"12": [1], "blocks.13.hook_resid_pre": [2]}', "both mean the output of block 12"),
        (b'{"11": ' + b"[" * 100_000, "nests too deep|not valid JSON"),
        (b'{"\xff": [1]}', "not valid JSON"),
        (b'{"' + b"x" * 10_000 + b'": [1]}', r"xxx\.\.\.' names no layer"),
    ],
)
def test_faulty_json_is_refused(text, says):
    """Each fault of a JSON file is one sentence that names the key or the layer."""
    with pytest.raises(VectorError, match=says) as caught:
        read_vector(text)
    assert len(str(caught.value)) < 300


def test_a_byte_order_mark_does_no_harm():
    """JSON saved by an editor that adds a byte-order mark is read."""
    assert read_vector(b"\xef\xbb\xbf" + flat()).vector.width == 2


def test_a_file_has_a_limit():
    """A file that is larger than the limit is refused before it is looked at."""
    assert read_vector(flat(), limit=len(flat())).vector.width == 2
    with pytest.raises(VectorError, match=f"{len(flat())} bytes, more than the limit of 10"):
        read_vector(flat(), limit=10)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"layers.1.direction": [[1.0]]}, "lists of one length"),
        ({"layers.1.direction": 1.0}, "lists of one length"),
        ({"layers.1.direction": [np.nan]}, "layer 1.*finite"),
        ({"layers.1.direction": [0.0]}, "layer 1.*zero"),
        ({"layers.1.direction": [MAX_VALUE * 10]}, "layer 1.*beyond"),
        ({"layers.1.probe.weight": [1.0]}, "layer 1 has no direction"),
        ({"model.embed": [1.0]}, "unknown tensor 'model.embed'"),
        ({"layers.1.direction": [1.0], "layers.2.direction": [1.0, 2.0]}, "lists of one length"),
        ({"layers.1.direction": [1.0], "layers.1.probe.weight": [1.0]}, "incomplete"),
        (
            {
                "layers.1.direction": [1.0],
                "layers.1.probe.weight": 1.0,
                "layers.1.probe.bias": 1.0,
                "layers.1.probe.slope": 1.0,
            },
            "0 dimensions",
        ),
        (
            {
                "layers.1.direction": [1.0],
                "layers.1.probe.weight": [[1.0]],
                "layers.1.probe.bias": 1.0,
                "layers.1.probe.slope": 1.0,
            },
            "layer 1: probe.weight has 2 dimensions",
        ),
        (
            {"layers.1.direction": [1.0]}
            | {
                f"layers.1.units.{name}": [[1.0]] for name in ("read", "write", "bias", "offset", "threshold")
            },
            "layer 1: units.bias has 2 dimensions",
        ),
        ({}, "at least one layer"),
    ],
)
def test_faulty_safetensors_are_refused(tensors, says):
    """Each fault of a safetensors file is one sentence that names the tensor or the layer."""
    with pytest.raises(VectorError, match=says):
        read_vector(save({name: np.array(value, np.float32) for name, value in tensors.items()}))


def test_other_floats_become_float32():
    """Halves and doubles are read; a double too large for float32 and tensors of other types are refused."""
    for kind in (np.float16, np.float64):
        assert read_vector(save({"layers.1.direction": np.array([1, 2], kind)})).vector.width == 2
    with pytest.raises(VectorError, match="finite"):
        read_vector(save({"layers.1.direction": np.array([1e300])}))
    for kind in (np.int8, np.bool_, np.complex64):
        with pytest.raises(VectorError, match=r"'layers.1.direction' is '.*': vectors are F32"):
            read_vector(save({"layers.1.direction": np.ones(2, kind)}))


def test_metadata_that_is_null():
    """Is none, as the safetensors library reads it too."""
    header = b'{"__metadata__":null,"layers.1.direction":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    data = struct.pack("<Q", len(header)) + header + struct.pack("<f", 1.5)
    assert read_vector(data).vector.layers[1].direction.tolist() == [1.5]


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "NaN"])
def test_metadata_of_others_does_not_crash(text):
    """Metadata under our key that is no JSON object is refused or passed over."""
    tensors = {"layers.1.direction": np.ones(2, np.float32)}
    try:
        assert read_vector(save(tensors, {"steersman": text, "format": "pt"})).metadata == {}
    except VectorError as error:
        assert "metadata" in str(error)


def test_repengs_package_reads_what_we_write(tmp_path):
    """The `gguf` package finds the architecture, repeng's fields, and every direction of our file."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "v.gguf"
    path.write_bytes(write_vector(vector(0, 7), Format.GGUF, {"model_name": "llama"}))
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.0", "direction.7"]
    for tensor, layer in zip(reader.tensors, (0, 7), strict=True):
        assert np.array_equal(tensor.data, vector(0, 7).layers[layer].direction)


def exported(path, tensors, architecture="controlvector", extra=lambda writer: None):
    """A file as repeng's `export_gguf` writes it."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string(f"{architecture}.model_hint", "llama")
    writer.add_uint32(f"{architecture}.layer_count", len(tensors))
    extra(writer)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path).read_bytes()


def test_we_read_what_repeng_writes(tmp_path):
    """repeng's N is the block whose output changes, as ours; half precision and further metadata are fine."""

    def extra(writer):
        writer.add_array("general.tags", ["a", "b"])
        writer.add_array("numbers", [1, 2, 3])
        writer.add_bool("flag", True)
        writer.add_custom_alignment(64)

    rows = {f"direction.{n}": np.arange(1, 8, dtype=np.float32) * n for n in (2, 1)}
    read = read_vector(exported(tmp_path / "a.gguf", rows, extra=extra)).vector
    assert set(read.layers) == {1, 2}
    assert np.array_equal(read.layers[2].direction, rows["direction.2"])
    halves = {name: row.astype(np.float16) for name, row in rows.items()}
    assert read_vector(exported(tmp_path / "b.gguf", halves)).vector.digest == read.digest


@pytest.mark.parametrize(
    ("tensors", "architecture", "says"),
    [
        ({"direction.1": np.ones(4, np.float32)}, "llama", "something else"),
        ({"direction.x": np.ones(4, np.float32)}, "controlvector", "unknown tensor 'direction.x'"),
        ({"token_embd.weight": np.ones(4, np.float32)}, "controlvector", "unknown tensor"),
        ({"direction.1": np.ones((2, 4), np.float32)}, "controlvector", "direction.1 has 2 dimensions"),
        ({"direction.1": np.ones(4, np.int8)}, "controlvector", "'direction.1' is quantized"),
        ({"direction.1": np.zeros(4, np.float32)}, "controlvector", "layer 1.*zero"),
        ({"direction.1": np.full(4, np.inf, np.float32)}, "controlvector", "layer 1.*finite"),
        (
            {"direction.1": np.ones(4, np.float32), "direction.2": np.ones(3, np.float32)},
            "controlvector",
            "direction.2 is 3 numbers long, direction.1 4",
        ),
    ],
)
def test_faulty_gguf_is_refused(tmp_path, tensors, architecture, says):
    """Each fault of a GGUF file is one sentence that names the tensor or the layer."""
    with pytest.raises(VectorError, match=says):
        read_vector(exported(tmp_path / "a.gguf", tensors, architecture))


def text(value):
    return struct.pack("<Q", len(value)) + value


def head(tensors=0, keys=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)


def tensor(name, count, kind=0, offset=0):
    return text(name) + struct.pack("<IQIQ", 1, count, kind, offset)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"GGUF", "too early"),
        (head(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte order"),
        (head(keys=2**60), "more than"),
        (head(tensors=2**60), "more than"),
        (head(keys=1) + text(b"\xff") + bytes(12), "UTF-8"),
        (head(keys=1) + struct.pack("<Q", 2**63), "too early"),
        (head(keys=1) + text(b"a") + struct.pack("<I", 99), "kind of value 99"),
        (head(keys=1) + text(b"a") + struct.pack("<IIQ", 9, 0, 2**62), "too early"),
        (head(keys=1) + text(b"a") + struct.pack("<IIQ", 9, 8, 2**62), "too early"),
        (head(keys=1) + text(b"a") + struct.pack("<IIQ", 9, 9, 2**62), "array of values of kind 9"),
        (head(keys=2) + 2 * (text(b"a") + struct.pack("<IB", 0, 1)), "'a' occurs twice"),
        (head(keys=1) + text(b"general.alignment") + struct.pack("<II", 4, 0), "alignment"),
        (head(tensors=1) + tensor(b"direction.1", 2**62), "larger than the file"),
        (head(tensors=1) + text(b"direction.1") + struct.pack("<IQQIQ", 2, 0, 2**63, 0, 0), "larger than"),
        (head(tensors=1) + tensor(b"direction.1", 2, offset=2**62), "beyond the end"),
        (head(tensors=1) + tensor(b"direction.1", 2, kind=12), "quantized"),
        (head(tensors=1) + text(b"direction.1") + struct.pack("<I", 2**31), "dimensions"),
        (head(tensors=2) + 2 * tensor(b"direction.1", 1) + bytes(64), "occurs twice"),
        (head(tensors=9) + b"".join(tensor(b"%d" % n, 99) for n in range(9)) + bytes(999), "larger than"),
    ],
)
def test_malicious_gguf_is_refused_at_once(data, says):
    """Counts, lengths and offsets that a file only claims cost neither time nor memory."""
    started = time.perf_counter()
    with pytest.raises(VectorError, match=says):
        read_vector(data)
    assert time.perf_counter() - started < 0.5


def test_a_large_array_in_gguf_is_passed_over_at_once():
    """Metadata of eight million elements, which takes the `gguf` package gigabytes, is no work."""
    data = head(keys=1) + text(b"a") + struct.pack("<IIQ", 9, 0, 8_000_000) + bytes(8_000_000)
    started = time.perf_counter()
    assert own_gguf.read(data).tensors == {}
    assert time.perf_counter() - started < 0.5


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_never_crash(format, seed):
    """A file cut anywhere, or with bytes changed, is read as some vector or refused as VectorError."""
    whole = write_vector(gated(), format, {"name": "x", "scale": 1.0})
    dice = random.Random(seed)
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(min(len(damaged), 600))] = dice.randrange(256)
        cut = dice.randint(0, len(damaged)) if dice.random() < 0.5 else len(damaged)
        try:
            read_vector(bytes(damaged[:cut]))
        except VectorError as error:
            assert str(error)


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.sampled_from(["1", "layers.1", "blocks.2.hook_resid_pre", "x", "3"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=4),
            max_leaves=8,
        ),
    )
)
def test_any_flat_object_is_a_vector_or_refused(content):
    """Whatever JSON values a client sends, the answer is a vector of finite numbers or VectorError."""
    try:
        made = read_flat(content)
    except VectorError as error:
        assert str(error)
    else:
        assert all(np.isfinite(norm) for norm in made.norms.values())


def test_files_load_neither_torch_nor_the_web():
    """Reading vectors needs numpy and safetensors only, so the command line starts fast."""
    program = "import sys, steering.files; print({'torch', 'fastapi', 'vllm', 'gguf'} & sys.modules.keys())"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "set()\n"
