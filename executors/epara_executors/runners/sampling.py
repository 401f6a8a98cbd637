"""From logits to the next token, by the parameters of its request alone: company changes nothing."""

from __future__ import annotations

import torch

from epara_executors.worker.sequences import Sampling, Sequence

_GREEDY_BELOW = 1e-6  # temperatures that no float32 can divide by


def next_tokens(logits: torch.Tensor, sequences: tuple[Sequence, ...]) -> list[int]:
    """The next token of each sequence, from logits of (sequences, vocabulary)."""
    likeliest: list[int] = logits.argmax(dim=-1).tolist()
    return [
        token if _is_plain(s.sampling) else choose(penalized(row, s), s.sampling, len(s.tokens))
        for row, token, s in zip(logits, likeliest, sequences, strict=True)
    ]


def penalized(logits: torch.Tensor, sequence: Sequence) -> torch.Tensor:
    """Logits, (vocabulary,), with the request's penalties.

    First repetition, as transformers and vLLM have it: of every token in prompt and output, positive logits are divided
    by the penalty and negative ones multiplied. Then OpenAI's, over the output alone: presence once, and frequency as
    often as the token came, are subtracted.
    """
    sampling = sequence.sampling
    if not sampling.penalizes:
        return logits
    logits = logits.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*sequence.prompt, *sequence.tokens}), device=logits.device)
        was = logits[seen]
        logits[seen] = torch.where(was > 0, was / sampling.repetition_penalty, was * sampling.repetition_penalty)
    if sequence.tokens:
        seen, counts = torch.tensor(sequence.tokens, device=logits.device).unique(return_counts=True)
        logits[seen] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    return logits


def choose(logits: torch.Tensor, sampling: Sampling, index: int) -> int:
    """The next token from logits, (vocabulary,). The same seed and index choose the same, in any company."""
    if sampling.temperature < _GREEDY_BELOW:
        return int(logits.argmax())
    scaled = (logits.float() - logits.max().float()) / sampling.temperature  # <= 0: nothing overflows
    if 0 < sampling.top_k < scaled.numel():
        scaled = scaled.masked_fill(scaled < scaled.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scaled.sort(descending=True)
        before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
        scaled = scaled.index_fill(0, order[before > sampling.top_p], -torch.inf)
    generator = torch.Generator().manual_seed((sampling.seed * 1_000_003 + index) % 2**63)
    return int(torch.multinomial(scaled.softmax(0), 1, generator=generator))


def _is_plain(sampling: Sampling) -> bool:
    return sampling.temperature < _GREEDY_BELOW and not sampling.penalizes
