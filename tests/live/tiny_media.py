"""Random models of two layers that see or hear, with the embedded model's tokenizer, without torchvision."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}\
{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}MEDIA{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {
    **_LAYERS,
    "vocab_size": 49216,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def _tokenizer(model_path: Path, names: list[str]):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.chat_template = None  # the processor has it
    torch.manual_seed(0)
    return tokenizer


def make_seeing(model_path: Path, folder: Path) -> None:
    """An Idefics3: of an image of 28 x 28 pixels it makes four tokens."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, LlamaConfig
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    names = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer = _tokenizer(model_path, names)
    vision = Idefics3VisionConfig(
        hidden_size=32, intermediate_size=64, image_size=28, patch_size=7, **_LAYERS
    )
    config = Idefics3Config(
        vision_config=vision,
        text_config=LlamaConfig(**_TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    edge = {"longest_edge": 28}
    images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    template = _TEMPLATE.replace("MEDIA", "<image>")
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=template).save_pretrained(folder)


def make_hearing(model_path: Path, folder: Path) -> None:
    """A Qwen2-Audio: a second becomes 25 tokens."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioEncoderConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        Qwen2Config,
        WhisperFeatureExtractor,
    )

    tokenizer = _tokenizer(model_path, ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"])
    audio = Qwen2AudioEncoderConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64, num_mel_bins=80
    )
    config = Qwen2AudioConfig(
        audio_config=audio,
        text_config=Qwen2Config(**_TEXT),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    Qwen2AudioForConditionalGeneration(config).save_pretrained(folder)
    # Transformers 5 doubles a part of the names as it saves them, which its own loading takes back.
    saved = folder / "model.safetensors"
    weights = {name.replace("model.model.", "model."): each for name, each in load_file(saved).items()}
    save_file(weights, saved, {"format": "pt"})
    template = _TEMPLATE.replace("MEDIA", "<|audio_bos|><|AUDIO|><|audio_eos|>")
    features = WhisperFeatureExtractor(feature_size=80)
    Qwen2AudioProcessor(features, tokenizer, chat_template=template).save_pretrained(folder)
