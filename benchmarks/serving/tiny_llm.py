"""The generation benchmark's model, a Llama of 5 million parameters with random weights, and what is asked of it.

There is no end-of-text token, so every answer is as long as its request allows.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from epara_executors.tiny_models import make
from transformers import LlamaConfig, LlamaForCausalLM

SOURCE = "tiny-llm"
LONGEST = 64  # tokens of a prompt, and of an answer
Job = tuple[list[int], int]  # prompt, tokens to generate


def make_model(folder: Path) -> None:
    """Write the model with tiny-llama's tokenizer, one token per byte. The same weights every time."""
    make("tiny-llama", folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=259,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=None,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)  # so that outputs differ visibly between inputs
        model.save_pretrained(folder)


def jobs(number: int, seed: int) -> list[Job]:
    """Prompts and answers of 4 to 64 tokens, evenly mixed."""
    rng = random.Random(seed)
    return [
        ([1, *(rng.randrange(3, 259) for _ in range(rng.randint(4, LONGEST) - 1))], rng.randint(4, LONGEST))
        for _ in range(number)
    ]
