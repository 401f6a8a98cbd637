"""Small models of real architectures with random weights, made on the spot.

Where no hub is reachable the demo and the tests still run the true code paths: config, safetensors weights,
tokenizer and preprocessor are written by transformers itself and read back by the same loader that reads a hub
id; the perceptron is a program of torch.export. The weights mean nothing; the arithmetic is that of the
architecture. Sizes are chosen so that one batch of one takes a few to some tens of milliseconds on one CPU core
(the perceptron's: microseconds) and a folder stays within a few megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.utils import logging as transformers_logging

from epara_opt.errors import InputError, Violation

TASK_OF_KIND: Mapping[str, str] = {
    "tiny-llama": "text-generation",
    "tiny-segformer": "image-segmentation",
    "tiny-vit": "image-classification",
    "tiny-yolos": "object-detection",
    "tiny-bert": "feature-extraction",
    "tiny-whisper": "automatic-speech-recognition",
    "tiny-mlp": "tensor",
}

_PAD, _BOS, _EOS = 0, 1, 2  # every tokenizer made here starts with these


def make(kind: str, out_dir: Path, seed: int = 0) -> Path:
    """Write one model folder. The same kind and seed give the same weights, byte for byte.

    Raises
    ------
    InputError
        When the kind is not one of `TASK_OF_KIND`.
    """
    if kind not in TASK_OF_KIND:
        raise InputError(Violation(path="kind", law=f"expected one of {', '.join(TASK_OF_KIND)}", value=kind))
    out_dir.mkdir(parents=True, exist_ok=True)
    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _WRITERS[kind](out_dir)
    return out_dir


def make_all(root: Path, seed: int = 0) -> dict[str, Path]:
    """Every kind, each in a folder of its name under `root`; folders that are complete already are kept."""
    made: dict[str, Path] = {}
    for kind in TASK_OF_KIND:
        folder = root / kind
        kept = any((folder / weights).exists() for weights in ("model.safetensors", "model.pt2"))
        made[kind] = folder if kept else make(kind, folder, seed)
    return made


def _save(model: PreTrainedModel, out_dir: Path, spread: float = 1.0) -> None:
    """Weights wider than the usual 0.02, so that outputs differ visibly between inputs."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
    model.eval().save_pretrained(out_dir)


def _byte_tokenizer(bos: str, eos: str, pad: str) -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8, no merges: any text has an encoding, and no vocabulary needs training."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate([pad, bos, eos, *alphabet])}
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocab[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False
    )


def _labels(num_labels: int) -> dict[str, Any]:
    """Every config takes it, none declares it."""
    return {"num_labels": num_labels}


def _image_processor(out_dir: Path, kind: str, height: int, width: int) -> None:
    text = {"image_processor_type": kind, "size": {"height": height, "width": width}, "do_resize": True}
    (out_dir / "preprocessor_config.json").write_text(json.dumps(text, indent=2) + "\n")


def _llama(out_dir: Path) -> None:
    tokenizer = _byte_tokenizer("<s>", "</s>", "<pad>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=_PAD,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
    )
    _save(LlamaForCausalLM(config), out_dir, spread=4.0)
    tokenizer.save_pretrained(out_dir)


def _segformer(out_dir: Path) -> None:
    config = SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 64, 96],
        num_attention_heads=[1, 2, 4, 6],
        decoder_hidden_size=64,
        **_labels(19),
    )
    _save(SegformerForSemanticSegmentation(config), out_dir, spread=3.0)
    _image_processor(out_dir, "SegformerImageProcessor", 128, 128)


def _vit(out_dir: Path) -> None:
    config = ViTConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=112,
        patch_size=16,
        **_labels(100),
    )
    _save(ViTForImageClassification(config), out_dir, spread=3.0)
    _image_processor(out_dir, "ViTImageProcessor", 112, 112)


def _yolos(out_dir: Path) -> None:
    """A DETR family member whose backbone is a plain vision transformer: no timm, no convolutions to fetch."""
    config = YolosConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=[128, 128],
        patch_size=16,
        num_detection_tokens=20,
        use_mid_position_embeddings=False,
        **_labels(20),
    )
    _save(YolosForObjectDetection(config), out_dir, spread=3.0)
    _image_processor(out_dir, "YolosImageProcessor", 128, 128)


def _bert(out_dir: Path) -> None:
    tokenizer = _byte_tokenizer("[CLS]", "[SEP]", "[PAD]")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=_PAD,
    )
    _save(BertModel(config), out_dir, spread=3.0)
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(out_dir)


def _whisper(out_dir: Path) -> None:
    tokenizer = _byte_tokenizer("<|startoftranscript|>", "<|endoftext|>", "<|pad|>")
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=40,
        d_model=96,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=192,
        decoder_ffn_dim=192,
        max_source_positions=150,
        max_target_positions=64,
        pad_token_id=_PAD,
        bos_token_id=_BOS,
        eos_token_id=_EOS,
        decoder_start_token_id=_BOS,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config.update(
        **cast("dict[str, Any]", {"max_length": 32, "suppress_tokens": None, "begin_suppress_tokens": None})
    )
    _save(model, out_dir, spread=3.0)
    tokenizer.save_pretrained(out_dir)


def _mlp(out_dir: Path) -> None:
    """Two layers of 256, whose arithmetic takes microseconds: what is left is the cost of serving."""
    width = 256
    model = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, width)).eval()
    rows = torch.export.Dim("rows", min=1)
    program = torch.export.export(model, (torch.zeros(2, width),), dynamic_shapes=({0: rows},))
    torch.export.save(program, out_dir / "model.pt2")
    tensors = {
        side: [{"name": name, "datatype": "FP32", "shape": [-1, width]}]
        for side, name in (("inputs", "x"), ("outputs", "y"))
    }
    (out_dir / "tensors.json").write_text(json.dumps(tensors, indent=2) + "\n")


_WRITERS: Mapping[str, Callable[[Path], None]] = {
    "tiny-llama": _llama,
    "tiny-segformer": _segformer,
    "tiny-vit": _vit,
    "tiny-yolos": _yolos,
    "tiny-bert": _bert,
    "tiny-whisper": _whisper,
    "tiny-mlp": _mlp,
}
