"""Generation without a server: transformers' `generate`, its continuous batching, and our engine, in one process.

Orders are JSON lines on stdin, {engine, jobs: [[prompt, tokens] ...]}, each answered by {seconds, cpu_s, answer}
on stdout; the answer is the tokens of each job.
`generate` takes one job after the other; `library` (ContinuousBatchingManager) and `ours` take all of them at once.
The order {engine: "rules"} asks what the library does with sampling and cancellation, see `rules`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from epara_executors.runners.contract import Request
from epara_executors.worker.hosting import Host, Hosted, Tenant
from epara_executors.worker.ranks import Ranks
from tiny_llm import LONGEST, SOURCE, Job
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

PAGE = 16  # tokens
PATIENCE_S = 60.0


class Engines:
    """One model three times over."""

    def __init__(self, root: Path, batch: int) -> None:
        self._batch = batch
        self._plain = AutoModelForCausalLM.from_pretrained(root / SOURCE)
        self._paged = AutoModelForCausalLM.from_pretrained(root / SOURCE)
        self._managers: dict[bool, Any] = {}
        ranks = Ranks(0, 1, 1, None, "cpu")
        tenant = Tenant(
            replica="r",
            source=SOURCE,
            task="text-generation",
            batch=batch,
            prompt_tokens=LONGEST,
            output_tokens=LONGEST,
        )
        self._hosted = Host(root, torch.device("cpu"), ranks).host(tenant)

    def generate(self, jobs: Sequence[Job]) -> list[list[int]]:
        """One at a time."""
        made: list[list[int]] = []
        for prompt, num_tokens in jobs:
            ids = torch.tensor([prompt])
            out = self._plain.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
            )
            made.append(out[0, len(prompt) :].tolist())
        return made

    def ours(self, jobs: Sequence[Job]) -> list[list[int]]:
        return ours(self._hosted, jobs)

    def library(self, jobs: Sequence[Job]) -> list[list[int]]:
        manager = self._manager(sample=False)
        names = [manager.add_request(prompt, max_new_tokens=num_tokens, eos_token_id=-1) for prompt, num_tokens in jobs]
        made: dict[str, list[int]] = {}
        while len(made) < len(names):
            result = manager.get_result(timeout=PATIENCE_S)
            if result is None or result.error is not None:
                raise RuntimeError(f"the library's engine failed: {result}")
            if result.is_finished():
                made[result.request_id] = result.generated_tokens
        return [made[n] for n in names]

    def _manager(self, *, sample: bool) -> Any:
        """One that chooses greedily, or one that samples: it is a setting of the manager, not of a request."""
        if sample not in self._managers:
            for other in self._managers.values():
                other.stop()
            chosen = (
                {"do_sample": True, "temperature": 0.7, "top_k": 50, "top_p": 0.9} if sample else {"do_sample": False}
            )
            generation = GenerationConfig(eos_token_id=-1, pad_token_id=0, max_new_tokens=LONGEST, **chosen)
            paging = ContinuousBatchingConfig(
                page_size=PAGE,
                num_blocks=self._batch * 2 * LONGEST // PAGE,
                max_batch_tokens=512,
                max_requests_per_batch=self._batch,
                allow_block_sharing=False,
                per_request_processors=True,
                seed=1,
            )
            self._managers = {
                sample: self._paged.init_continuous_batching(
                    generation_config=generation, continuous_batching_config=paging
                )
            }
            self._managers[sample].start()
        return self._managers[sample]

    def rules(self, job: Job, company: Sequence[Job]) -> dict[str, Any]:
        """What the library does with one request's own parameters; True where it gets what it asks for."""
        manager = self._manager(sample=True)

        def ask(jobs: Sequence[Job], **params: Any) -> Any:
            names = [manager.add_request(p, max_new_tokens=n, eos_token_id=-1, **params) for p, n in jobs]
            made: dict[str, Any] = {}
            while len(made) < len(names):
                result = manager.get_result(timeout=PATIENCE_S)
                if result is None:
                    raise RuntimeError("the library's engine gave no answer")
                if result.is_finished():
                    made[result.request_id] = result
            return made[names[0]]

        found: dict[str, Any] = {}
        for name, value in {
            "temperature": 0.5,
            "top_k": 5,
            "top_p": 0.5,
            "seed": 7,
            "do_sample": False,
            "repetition_penalty": 1.5,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
        }.items():
            found[name] = ask([job], **{name: value}).error is None
        alone, again = (ask([job]).generated_tokens for _ in range(2))
        found["sampling_same_twice"] = alone == again
        found["sampling_same_in_company"] = alone == ask([job, *company]).generated_tokens
        greedy = ask([job], temperature=1e-9).generated_tokens
        found["greedy_beside_sampling"] = greedy == self.generate([job])[0]
        return found

    def close(self) -> None:
        for manager in self._managers.values():
            manager.stop()


def ours(hosted: Hosted, jobs: Sequence[Job]) -> list[list[int]]:
    """Through runner and engine as a worker drives them."""
    runner, engine = hosted.generation, hosted.engine
    if runner is None or engine is None:
        raise TypeError("expected a generating tenant")
    for i, (prompt, num_tokens) in enumerate(jobs):
        request = Request(str(i), {"input_ids": np.array([prompt], dtype=np.int64)}, {"max_tokens": num_tokens})
        engine.add(runner.sequence(str(i), request))
    made: dict[int, list[int]] = {}
    while not engine.idle:
        made |= {int(e.sequence.key): list(e.sequence.tokens) for e in engine.step() if e.done}
    return [made[i] for i in range(len(jobs))]


def main() -> None:
    root, batch = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    logging.disable(logging.ERROR)  # the library logs each request that it refuses
    engines = Engines(root, batch)
    for line in sys.stdin:
        order = json.loads(line)
        started_at, used_s = time.perf_counter(), time.process_time()
        if order["engine"] == "rules":
            answer: Any = engines.rules(order["jobs"][0], order["jobs"][1:])
        else:
            answer = getattr(engines, order["engine"])(order["jobs"])
        spent = {"seconds": time.perf_counter() - started_at, "cpu_s": time.process_time() - used_s}
        print(json.dumps({**spent, "answer": answer}), flush=True)
    engines.close()


if __name__ == "__main__":
    main()
