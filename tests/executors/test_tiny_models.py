"""Small models of real architectures."""

from __future__ import annotations

import filecmp
from pathlib import Path

import pytest
from epara_executors.tiny_models import TASK_OF_KIND, make, make_all
from transformers import AutoTokenizer

from epara_opt.errors import InputError


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        make("tiny-segformer", tmp_path / folder, seed)
    weights = [tmp_path / folder / "model.safetensors" for folder in "abc"]
    assert filecmp.cmp(weights[0], weights[1], shallow=False)
    assert not filecmp.cmp(weights[0], weights[2], shallow=False)


def weights_of(folder: Path) -> Path:
    return folder / ("model.pt2" if folder.name == "tiny-mlp" else "model.safetensors")


def test_every_kind_is_a_few_megabytes_of_weights_and_json(tiny_root: Path) -> None:
    for kind in TASK_OF_KIND:
        files = list((tiny_root / kind).iterdir())
        assert {f.suffix for f in files} == {weights_of(tiny_root / kind).suffix, ".json"}
        assert sum(f.stat().st_size for f in files) < 10e6


def test_any_text_survives_the_byte_level_tokenizer(tiny_root: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-llama")
    text = "Smørrebrød, 寿司 & 🍕  two  spaces\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_making_all_again_keeps_what_is_there(tiny_root: Path) -> None:
    before = {k: weights_of(tiny_root / k).stat().st_mtime_ns for k in TASK_OF_KIND}
    make_all(tiny_root)
    assert before == {k: weights_of(tiny_root / k).stat().st_mtime_ns for k in TASK_OF_KIND}


def test_an_unknown_kind_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"kind: expected one of tiny-llama.*, got tiny-gpt"):
        make("tiny-gpt", tmp_path)
