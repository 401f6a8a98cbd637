"""Text generation: requests to sequences, steps to tokens, sequences to answers. Runs on rank 0.

Greedy output equals `model.generate(do_sample=False)` token for token: each row sees its own tokens alone, and the
end-of-text tokens are those of the generation config. Of its other settings none is read: sampling comes from the
request (temperature, top_k, top_p, seed, penalties); greedy is the default. Exact means: as exact as arithmetic that
adds in another order in a batch of another size; nothing but a tie within some 1e-6 may fall the other way.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence as Listing
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from epara_executors.runners import chat
from epara_executors.runners.arrays import text_array
from epara_executors.runners.contract import Answer, Form, Request, RequestError, TensorSpec, check
from epara_executors.runners.decoder import DecoderPart, Step
from epara_executors.runners.loading import parameter_bytes, read_tokenizer
from epara_executors.runners.sampling import next_tokens
from epara_executors.runners.transcript import IncrementalTranscript
from epara_executors.worker.blocks import BLOCK_TOKENS, blocks_for
from epara_executors.worker.frames import Frame
from epara_executors.worker.scheduler import Work
from epara_executors.worker.sequences import Sampling, Sequence, whole

_DEFAULT_OUTPUT_TOKENS = 64
_SAME = 0.02  # of the range of logits: rounding in 16 bits stays below, another mask does not
_MAX_STOPS = 16  # each is looked for at every token, while every other sequence waits


class GenerationRunner:
    """A decoder LLM with its tokenizer; an engine's stage."""

    forms: tuple[Form, ...] = (
        (TensorSpec("text", "BYTES", (-1,)),),
        (TensorSpec("input_ids", "INT64", (-1, -1)),),
        (TensorSpec("messages", "BYTES", (-1,)),),  # one conversation: a JSON array of {role, content}
    )
    outputs: Form = (TensorSpec("text", "BYTES", (1,)), TensorSpec("tokens", "INT64", (-1,)))

    def __init__(
        self, replica: str, part: DecoderPart, source: str, model_root: Path, *, output_tokens: int = 0
    ) -> None:
        self.replica = replica
        self.part = part
        self._tokenizer = read_tokenizer(source, model_root)
        self._default_tokens = output_tokens or _DEFAULT_OUTPUT_TOKENS
        self.max_length = int(getattr(part.config, "max_position_embeddings", 0)) or 2**31
        ends = part.model.generation_config.eos_token_id
        ends = part.config.eos_token_id if ends is None else ends
        self._ends = frozenset[int]() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)
        self._under_way: deque[tuple[Work, torch.Tensor | None]] = deque()
        self._num_blocks = 0

    @property
    def parameter_bytes(self) -> int:
        return parameter_bytes(self.part.model)

    def sequence(self, key: str, request: Request) -> Sequence:
        """A sequence for the engine. Raises RequestError naming what does not fit."""
        rows = check(request, self.forms)
        if rows != 1:
            name = next(iter(request.inputs))
            raise RequestError(f"{name}: expected one sequence per request, got {rows}")
        prompt = self._prompt(request)
        params = request.params
        max_tokens = whole(params, "max_tokens", self._default_tokens)
        if max_tokens < 1:
            raise RequestError(f"params.max_tokens: expected >= 1, got {max_tokens}")
        room = self._num_blocks * BLOCK_TOKENS
        for limit, whose in ((self.max_length, ""), (room, ", the key-value cache of this replica")):
            if len(prompt) + max_tokens > limit:
                raise RequestError(
                    f"params.max_tokens: expected prompt and output within {limit} tokens{whose}, "
                    f"got {len(prompt)} + {max_tokens}"
                )
        stops = [*_stops(params.get("stop")), *_listed_stops(params.get("stops"))]
        if len(stops) > _MAX_STOPS:
            raise RequestError(f"params.stops: expected at most {_MAX_STOPS} texts, got {len(stops)}")
        return Sequence(
            key=key,
            request=request.id,
            prompt=prompt,
            max_tokens=max_tokens,
            transcript=IncrementalTranscript(self._decode, stops),
            end_tokens=self._ends,
            sampling=Sampling.from_params(params),
            outputs=request.outputs,
            stream=params.get("stream") in (True, "true", 1),
        )

    def answer(self, sequence: Sequence) -> Answer:
        """The outputs of a finished sequence."""
        tokens = np.array(sequence.tokens, dtype=np.int64)
        made = {"text": text_array([sequence.transcript.text]), "tokens": tokens}
        wanted = sequence.outputs or tuple(made)
        return Answer(sequence.request, {name: made[name] for name in wanted if name in made}, sequence.usage)

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""

    def _prompt(self, request: Request) -> tuple[int, ...]:
        (name,) = request.inputs  # each form is one tensor
        raw = request.inputs[name][0]
        ids: list[int]
        if name == "input_ids":
            ids = [int(t) for t in raw]
        elif name == "messages":
            ids = chat.token_ids(self._tokenizer, chat.conversation(_decoded(name, raw)))
        else:
            ids = self._tokenizer(_decoded(name, raw))["input_ids"]
        if not ids:
            raise RequestError(f"{name}: expected at least one token, got none")
        vocab_size = self.part.vocab_size
        for token in ids:
            if not 0 <= token < vocab_size:
                raise RequestError(f"input_ids: expected values in [0, {vocab_size}), got {token}")
        return tuple(ids)

    # The engine's stage -----------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        return self.part.ranks.pp

    @property
    def num_in_flight(self) -> int:
        return len(self._under_way)

    def submit(self, work: Work) -> None:
        """Start an iteration; on one stage it is done when this returns."""
        self._under_way.append((work, self.launch(Step.of(work))))

    def collect(self) -> tuple[Work, list[int]]:
        work, logits = self._under_way.popleft()
        logits = self.land(len(work.sequences), logits)
        return work, next_tokens(logits, work.sequences)

    def forget(self) -> None:
        """Give up what is under way; after an error, on one rank only."""
        self._under_way.clear()

    def launch(self, step: Step) -> torch.Tensor | None:
        """Run this rank's part of a step; logits if there is no later stage."""
        ranks = self.part.ranks
        ranks.tell(step.frame(self.replica))
        made = self.part.run(step)
        if ranks.is_last_stage:
            return made
        ranks.send_activations(made)
        return None

    def land(self, num_rows: int, logits: torch.Tensor | None) -> torch.Tensor:
        """Logits of a step that was launched, (rows, vocabulary)."""
        if logits is None:
            logits = self.part.ranks.receive_logits((num_rows, self.part.vocab_size), self.part.device)
        return logits.cpu()

    def resize(self, num_blocks: int, *, kept: int = 0) -> None:
        """A cache of so many blocks on every rank; of `kept` if that is more, because some of them are taken."""
        self._num_blocks = num_blocks
        size = max(num_blocks, kept)
        self.part.ranks.tell(Frame("resize", {"replica": self.replica, "blocks": size}))
        self.part.resize(size)

    def packs(self) -> bool:
        """Whether prompts may share a pass: whether this model answers them then as it does alone. Tried, not assumed.

        Not every architecture takes a mask of its own shape. The engine must be idle.
        """
        one, two = (tuple((i * i + n) % self.part.vocab_size for i in range(n)) for n in (5, 9))
        steps = [Step((one,), (0,), ((1,),)), Step((two,), (0,), ((1,),)), Step((one, two), (0, 0), ((1,), (1,)))]
        try:
            first, second, both = (self.land(len(s.tokens), self.launch(s)) for s in steps)
        except (RuntimeError, ValueError, TypeError, IndexError):
            if self.part.ranks.world > 1:
                raise  # ranks may no longer agree on what comes next
            return False
        alone = torch.cat((first, second))
        return bool((alone - both).abs().max() <= _SAME * (alone.max() - alone.min()))

    def measured_steps(self, batch: int, width: int, start: int) -> Listing[Step]:
        """Synthetic steps, one per group: prompts of `width` tokens at 0, or one token at `start`.

        Where the cache has fewer blocks than that takes, rows share some: what they hold means nothing here.
        """
        tokens = ((self.part.vocab_size // 2,) * width,) * batch
        need = blocks_for(start + width)
        tables = tuple(
            tuple(1 + (row * need + i) % self._num_blocks for i in range(need)) for row in range(batch * self.depth)
        )
        return [Step(tokens, (start,) * batch, tables[g * batch : (g + 1) * batch]) for g in range(self.depth)]


def _decoded(name: str, raw: Any) -> str:
    try:
        return raw.decode() if isinstance(raw, bytes) else str(raw)
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: expected UTF-8, got {error.object[error.start : error.start + 4]!r}") from error


def _listed_stops(given: Any) -> list[str]:
    """Stop strings as one parameter of the Open Inference Protocol, which knows no lists: a JSON array."""
    if given is None:
        return []
    try:
        listed = json.loads(given)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"params.stops: expected a JSON array of texts, got {given!r}") from error
    if not isinstance(listed, list):
        raise RequestError(f"params.stops: expected a JSON array of texts, got {given!r}")
    return _stops(cast("list[Any]", listed))


def _stops(given: Any) -> list[str]:
    """Stop strings of a request: nothing, one text, or a list of texts."""
    listed: list[Any] = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(cast("object", listed), list) or not all(isinstance(s, str) for s in listed):
        raise RequestError(f"params.stop: expected text or a list of texts, got {given!r}")
    return listed
