"""Runners against the direct torch call.

Tolerance where rows share a pass: 1e-4 absolute on logits of order one, as kernels for other batch sizes add up in
another order (about 1e-6 is seen). Alone, a request must match exactly.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from epara_executors.runners import chat
from epara_executors.runners.arrays import from_array, text_array, to_array
from epara_executors.runners.batches import OnePassRunner
from epara_executors.runners.contract import LoadError, Request, RequestError, UnsupportedShape
from epara_executors.runners.generation import GenerationRunner
from epara_executors.runners.loading import image_size, read_config
from epara_executors.runners.registry import open_decoder, open_one_pass, supported_shapes
from epara_executors.runners.sampling import choose, penalized
from epara_executors.runners.transcript import IncrementalTranscript
from epara_executors.worker.blocks import BlockPool
from epara_executors.worker.engine import Engine
from epara_executors.worker.frames import Tensor
from epara_executors.worker.hosting import Host, Tenant
from epara_executors.worker.ranks import alone
from epara_executors.worker.scheduler import Scheduler
from epara_executors.worker.sequences import Sampling, Sequence
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
)

CPU = torch.device("cpu")
TOLERANCE = 1e-4

IMAGES = [
    ("image-segmentation", "tiny-segformer", AutoModelForSemanticSegmentation, ("logits",)),
    ("image-classification", "tiny-vit", AutoModelForImageClassification, ("logits",)),
    ("object-detection", "tiny-yolos", AutoModelForObjectDetection, ("logits", "pred_boxes")),
]


def runner_of(task: str, source: str, root: Path) -> OnePassRunner:
    return open_one_pass(task, source, root, CPU, alone())


@pytest.mark.parametrize(("task", "source", "auto_class", "names"), IMAGES)
def test_images_match_the_direct_call_alone_and_batched(
    tiny_root: Path, task: str, source: str, auto_class: Any, names: tuple[str, ...]
) -> None:
    runner = runner_of(task, source, tiny_root)
    model = auto_class.from_pretrained(tiny_root / source).eval()
    side = runner.forms[0][0].shape[-1]
    rng = np.random.default_rng(7)
    pixels = [rng.standard_normal((rows, 3, side, side), dtype=np.float32) for rows in (1, 2, 1)]
    alone_answer = runner.run([Request("a", {"pixel_values": pixels[1]})])[0]
    together = runner.run([Request(str(i), {"pixel_values": p}) for i, p in enumerate(pixels)])
    for i, name in ((i, n) for i in range(3) for n in names):
        with torch.inference_mode():
            direct = getattr(model(pixel_values=torch.from_numpy(pixels[i])), name).numpy()
        np.testing.assert_allclose(together[i].outputs[name], direct, atol=TOLERANCE)
        if i == 1:
            np.testing.assert_array_equal(alone_answer.outputs[name], direct)


def test_masks_are_the_argmax_that_transformers_post_processing_gives(tiny_root: Path) -> None:
    runner = runner_of("image-segmentation", "tiny-segformer", tiny_root)
    answer = runner.run([runner.example(2)])[0]
    logits = torch.from_numpy(answer.outputs["logits"])
    large = torch.nn.functional.interpolate(logits, size=(128, 128), mode="bilinear", align_corners=False)
    assert answer.outputs["mask"].dtype == np.uint8
    np.testing.assert_array_equal(answer.outputs["mask"], large.argmax(1).numpy())


def test_embeddings_match_mean_pooling_and_padding_changes_nothing(tiny_root: Path) -> None:
    runner = runner_of("feature-extraction", "tiny-bert", tiny_root)
    model = AutoModel.from_pretrained(tiny_root / "tiny-bert").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-bert")
    texts = ["a", "a much longer sentence than the first", "größer"]
    answers = runner.run([Request(t, {"text": text_array([t])}) for t in texts])
    for text, answer in zip(texts, answers, strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        direct = torch.nn.functional.normalize(hidden.mean(1), dim=1).numpy()
        np.testing.assert_allclose(answer.outputs["embedding"], direct, atol=TOLERANCE)
        assert np.linalg.norm(answer.outputs["embedding"]) == pytest.approx(1.0, abs=1e-5)


def test_token_ids_embed_as_their_text_does(tiny_root: Path) -> None:
    runner = runner_of("feature-extraction", "tiny-bert", tiny_root)
    ids = np.array(AutoTokenizer.from_pretrained(tiny_root / "tiny-bert")(["same"])["input_ids"], dtype=np.int64)
    by_text, by_ids = runner.run([Request("a", {"text": text_array(["same"])}), Request("b", {"input_ids": ids})])
    np.testing.assert_allclose(by_text.outputs["embedding"], by_ids.outputs["embedding"], atol=TOLERANCE)


def test_speech_matches_generate(tiny_root: Path) -> None:
    runner = runner_of("automatic-speech-recognition", "tiny-whisper", tiny_root)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(tiny_root / "tiny-whisper").eval()
    example = runner.example(2)
    answer = runner.run([example])[0]
    direct = model.generate(input_features=torch.from_numpy(np.array(example.inputs["input_features"])))
    np.testing.assert_array_equal(answer.outputs["tokens"], direct.numpy())
    assert len(answer.outputs["text"]) == 2


def test_a_wrong_request_is_refused_alone(tiny_root: Path) -> None:
    runner = runner_of("image-classification", "tiny-vit", tiny_root)
    good = runner.example(1)
    bad = [
        ({"pixel_values": np.zeros((1, 3, 8, 8), np.float32)}, "expected shape [-1, 3, 112, 112], got [1, 3, 8, 8]"),
        ({"pixel_values": np.zeros((1, 3, 112, 112), np.int64)}, "expected datatype FP32, got INT64"),
        ({"pixels": np.zeros((1,), np.float32)}, "inputs: expected pixel_values, got pixels"),
        ({}, "inputs: expected pixel_values, got none"),
    ]
    answers = runner.run([*(Request(m, a) for a, m in bad), good])
    for (_, message), answer in zip(bad, answers, strict=False):
        assert answer.code == "INVALID_ARGUMENT"
        assert message in answer.message
    assert answers[-1].code == ""
    np.testing.assert_array_equal(answers[-1].outputs["logits"], runner.run([good])[0].outputs["logits"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": np.array([[5, 9999]])}, r"input_ids: expected values in \[0, 259\), got 9999"),
        ({"input_ids": np.ones((1, 513), np.int64)}, "input_ids: expected at most 512 tokens, got 513"),
        (
            {"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.ones((1, 2), np.int64)},
            r"attention_mask: expected shape \[1, 3\], got \[1, 2\]",
        ),
        ({"text": text_array([b"\xff\xfe"])}, "text: expected UTF-8"),
        ({"text": text_array(["a"]), "input_ids": np.ones((1, 3), np.int64)}, r"expected text or input_ids \+ \["),
    ],
)
def test_embedding_inputs_out_of_range_are_refused(tiny_root: Path, inputs: dict[str, Any], message: str) -> None:
    (answer,) = runner_of("feature-extraction", "tiny-bert", tiny_root).run([Request("a", inputs)])
    assert answer.code == "INVALID_ARGUMENT"
    with pytest.raises(RequestError, match=message):
        raise RequestError(answer.message)


def test_images_of_two_sizes_run_in_passes_of_their_own_where_the_model_names_none(
    tiny_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "any-size"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(tiny_root / "tiny-segformer" / name)
    assert image_size("any-size", tmp_path, read_config("any-size", tmp_path)) == (-1, -1)
    runner = runner_of("image-segmentation", "any-size", tmp_path)
    sizes = [(64, 64), (96, 64), (64, 64)]
    requests = [Request(str(i), {"pixel_values": np.ones((1, 3, *s), np.float32)}) for i, s in enumerate(sizes)]
    answers = runner.run(requests)
    assert [a.outputs["mask"].shape for a in answers] == [(1, *s) for s in sizes]


def test_only_the_outputs_asked_for_are_returned(tiny_root: Path) -> None:
    runner = runner_of("image-segmentation", "tiny-segformer", tiny_root)
    (answer,) = runner.run([Request("a", runner.example(1).inputs, outputs=("mask",))])
    assert set(answer.outputs) == {"mask"}


@pytest.fixture(scope="module")
def llama(tiny_root: Path) -> GenerationRunner:
    part = open_decoder("tiny-llama", tiny_root, CPU, alone())
    runner = GenerationRunner("r", part, "tiny-llama", tiny_root)
    runner.resize(100)
    return runner


PROMPTS = ["hello", "the quick brown fox jumps over", "a", "más vale tarde que nunca", "zz", "x" * 60, "42"]


def generate(
    runner: GenerationRunner,
    batch: int,
    prompts: list[str],
    pool: BlockPool | None = None,
    scheduler: Scheduler | None = None,
    **params: Any,
) -> list[list[int]]:
    engine = Engine(runner, scheduler or Scheduler(batch, pool or BlockPool(100)), time.monotonic)
    members = [
        runner.sequence(str(i), Request(str(i), {"text": text_array([p])}, {"max_tokens": 12 + 5 * i, **params}))
        for i, p in enumerate(prompts)
    ]
    for member in members:
        engine.add(member)
    while not engine.idle:
        engine.step()
    return [m.tokens for m in members]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_greedy_generation_equals_generate_token_for_token(
    llama: GenerationRunner, tiny_root: Path, batch: int
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_root / "tiny-llama").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-llama")
    for i, tokens in enumerate(generate(llama, batch, PROMPTS)):
        given = tokenizer(PROMPTS[i], return_tensors="pt")
        direct = model.generate(**given, max_new_tokens=12 + 5 * i, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert tokens == direct.tolist()


def test_sequences_that_gave_up_their_place_go_on_as_if_nothing_had_been(llama: GenerationRunner) -> None:
    """Seven sequences of up to seven blocks in a pool of eight: taken in, interrupted, computed anew."""
    alone = generate(llama, 1, PROMPTS)
    for params in ({}, {"temperature": 0.9, "seed": 5, "frequency_penalty": 0.4}):
        pool = BlockPool(8)
        expected = alone if not params else generate(llama, 1, PROMPTS, **params)
        assert generate(llama, 7, PROMPTS, pool, **params) == expected
        assert pool.num_free == 8


def test_a_model_that_cannot_tell_packed_prompts_apart_runs_them_alone_and_is_exact(
    llama: GenerationRunner, tiny_root: Path, tmp_path: Path
) -> None:
    """Bloom makes its positions from a padding mask and takes no other."""
    shutil.copytree(tiny_root / "tiny-llama", tmp_path / "bloom")
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=259, hidden_size=64, n_layer=2, n_head=4, eos_token_id=None)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)
    model.save_pretrained(tmp_path / "bloom")
    hosted = Host(tmp_path, CPU, alone()).host(Tenant(replica="r", source="bloom", task="text-generation", batch=3))
    assert llama.packs()
    assert hosted.generation is not None
    assert hosted.engine is not None
    assert hosted.engine.scheduler.pass_tokens == 0
    scheduler = Scheduler(3, BlockPool(100))
    scheduler.pass_tokens = 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-llama")
    for prompt, tokens in zip(
        PROMPTS, generate(hosted.generation, 3, PROMPTS, scheduler=scheduler, max_tokens=8), strict=True
    ):
        given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        made = model.generate(**given, max_new_tokens=8, do_sample=False, pad_token_id=0)
        assert tokens == made[0, given["input_ids"].shape[1] :].tolist()


def test_a_cache_takes_what_was_set_and_not_a_byte_more_whatever_is_asked(tiny_root: Path) -> None:
    host = Host(tiny_root, CPU, alone())
    tenant = Tenant(
        replica="r", source="tiny-llama", task="text-generation", batch=20, prompt_tokens=100, output_tokens=28
    )
    hosted = host.host(tenant)
    runner, engine = hosted.generation, hosted.engine
    assert runner is not None
    assert engine is not None
    assert runner.part.cache is not None
    in_layer = 16 * 2 * 2 * 32 * 4  # bytes of a block: tokens, keys and values, heads, head size, bytes

    def in_blocks() -> int:
        """Four layers, with a block for padding each, and two desks on which one layer's blocks are gathered."""
        cache = runner.part.cache
        assert cache is not None
        assert cache.num_bytes == 4 * (1 + cache.num_blocks) * in_layer + 2 * cache.num_blocks * in_layer
        return cache.num_blocks

    assert in_blocks() == engine.scheduler.pool.num_blocks == 20 * 8
    loaded_bytes = hosted.memory_bytes
    assert loaded_bytes >= runner.parameter_bytes + runner.part.cache.num_bytes
    for i in range(20):
        ids = np.full((1, 1400), 5 + i)
        engine.add(runner.sequence(str(i), Request(str(i), {"input_ids": ids}, {"max_tokens": 600})))
    for _ in range(4):
        engine.step()
    assert in_blocks() == 160
    with pytest.raises(RequestError, match="within 2048 tokens, got 1400 \\+ 700"):
        runner.sequence("x", Request("x", {"input_ids": np.full((1, 1400), 5)}, {"max_tokens": 700}))
    host.tune(hosted, 40, 1)
    assert hosted.memory_bytes == loaded_bytes + 160 * 6 * in_layer
    for _ in range(4):
        engine.step()
    assert in_blocks() == 320
    assert engine.scheduler.num_running == 3
    host.tune(hosted, 1, 1)  # those that run keep theirs until they end
    assert engine.scheduler.pool.num_blocks == 128
    assert in_blocks() == engine.scheduler.pool.highest_taken > 128
    for i in range(20):
        engine.cancel(str(i))
    assert engine.idle
    host.tune(hosted, 1, 1)
    assert in_blocks() == engine.scheduler.pool.num_free == 128


def test_one_long_sequence_among_short_ones_is_stepped_apart_and_nothing_changes(llama: GenerationRunner) -> None:
    prompts = ["x" * 900, *PROMPTS]
    assert llama.part.cache is not None
    lengths = [901, *(len(p.encode()) + 1 for p in PROMPTS)]
    assert [len(part) for part in llama.part.cache.rows_at_once(lengths)] == [3, 5]
    assert generate(llama, 8, prompts, max_tokens=9) == generate(llama, 1, prompts, max_tokens=9)


def test_a_generation_returns_only_the_outputs_asked_for(llama: GenerationRunner) -> None:
    member = llama.sequence("k", Request("r", {"text": text_array(["a"])}, outputs=("tokens",)))
    assert set(llama.answer(member).outputs) == {"tokens"}


def test_sampling_with_a_seed_is_the_same_in_any_company(llama: GenerationRunner) -> None:
    params = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 11}
    together = generate(llama, 4, PROMPTS[:4], **params)
    assert generate(llama, 1, PROMPTS[:4], **params) == together
    assert generate(llama, 4, PROMPTS[:4], **{**params, "seed": 12}) != together


@pytest.mark.parametrize(
    ("inputs", "params", "message"),
    [
        ({"text": text_array(["a", "b"])}, {}, "text: expected one sequence per request, got 2"),
        ({"text": text_array(["a"])}, {"max_tokens": 0}, "params.max_tokens: expected >= 1, got 0"),
        ({"text": text_array(["a"])}, {"max_tokens": 5000}, r"within 2048 tokens, got 2 \+ 5000"),
        ({"input_ids": np.array([[-1]])}, {}, r"input_ids: expected values in \[0, 259\), got -1"),
        (
            {"text": text_array(["a"])},
            {"max_tokens": 2046},
            "within 1600 tokens, the key-value cache of this replica, got",
        ),
        ({"text": text_array(["a"])}, {"presence_penalty": 2.5}, r"presence_penalty: expected in \[-2, 2\], got 2.5"),
        ({"text": text_array(["a"])}, {"frequency_penalty": -3}, r"frequency_penalty: expected in \[-2, 2\], got -3"),
        ({"text": text_array(["a"])}, {"repetition_penalty": 0}, r"penalty: expected in \[0.01, 100\], got 0"),
        ({"text": text_array(["a"])}, {"repetition_penalty": "x"}, "repetition_penalty: expected a number, got 'x'"),
        ({"text": text_array(["a"])}, {"stop": 3}, "params.stop: expected text or a list of texts, got 3"),
        ({"text": text_array(["a"])}, {"stops": "a"}, "params.stops: expected a JSON array of texts, got 'a'"),
        ({"text": text_array(["a"])}, {"stops": "[1]"}, r"params.stop: expected text or a list of texts, got \[1\]"),
        ({"text": text_array(["a"])}, {"stops": '["a"' + ', "a"' * 16 + "]"}, "expected at most 16 texts, got 17"),
        ({"text": text_array(["a"])}, {"top_k": float("inf")}, "params.top_k: expected a number, got inf"),
        ({"text": text_array(["a"])}, {"seed": "nan"}, "params.seed: expected a number, got 'nan'"),
        ({"messages": text_array(["{}"])}, {}, "messages: expected a non-empty array, got {}"),
        ({"messages": text_array(["[1]"])}, {}, r"messages\[0\]: expected an object, got 1"),
        ({"messages": text_array(['[{"role": "user"}]'])}, {}, r"messages\[0\].content: expected text, got None"),
        ({"messages": text_array(["["])}, {}, "messages: expected a JSON array"),
    ],
)
def test_generations_that_cannot_be_are_refused(
    llama: GenerationRunner, inputs: dict[str, Any], params: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        llama.sequence("k", Request("r", inputs, params))


def test_a_conversation_without_a_template_is_one_line_per_message(llama: GenerationRunner, tiny_root: Path) -> None:
    given = '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]'
    member = llama.sequence("k", Request("r", {"messages": text_array([given])}))
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-llama")
    assert list(member.prompt) == tokenizer("system: Be brief.\nuser: Who?\nassistant:")["input_ids"]
    assert llama.answer(member).usage == {"prompt_tokens": len(member.prompt), "completion_tokens": 0}


def test_a_template_writes_its_own_special_tokens(tiny_root: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-llama")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    tokens = chat.token_ids(tokenizer, [{"role": "user", "content": "a"}])
    assert tokens == tokenizer("[a]")["input_ids"]  # one bos, not two


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ raise_exception('no') }}", "{% for %}", "{{ nobody.here }}"])
def test_a_template_that_fails_fails_its_request(tiny_root: Path, template: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-llama")
    tokenizer.chat_template = template
    with pytest.raises(RequestError, match="messages: the model's chat template refuses them"):
        chat.token_ids(tokenizer, [{"role": "user", "content": "a"}])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_temperatures_next_to_nothing_are_greedy_and_none_fails(dtype: torch.dtype) -> None:
    logits = torch.tensor([900.0, -900.0, 1000.0], dtype=dtype)
    for temperature in (1e-320, 1e-40, 1e-6, 1e-3):
        assert choose(logits, Sampling(temperature=temperature), 0) == 2
    assert 0 <= choose(logits, Sampling(temperature=1e30, top_p=1e-9), 0) < 3


def test_the_repetition_penalty_is_that_of_transformers(llama: GenerationRunner, tiny_root: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_root / "tiny-llama").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_root / "tiny-llama")
    given = tokenizer("hello", return_tensors="pt")
    direct = model.generate(**given, max_new_tokens=30, do_sample=False, repetition_penalty=1.6)[0, 6:].tolist()
    assert generate(llama, 2, ["hello", "z"], max_tokens=30, repetition_penalty=1.6)[0] == direct
    assert generate(llama, 2, ["hello", "z"], max_tokens=30)[0] != direct


def test_presence_and_frequency_count_the_output_alone() -> None:
    transcript = IncrementalTranscript(lambda _: "")
    sampling = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    member = Sequence(key="k", request="r", prompt=(3,), max_tokens=9, transcript=transcript, sampling=sampling)
    logits = torch.tensor([1.0, 1.0, 1.0, 1.0])
    assert penalized(logits, member).tolist() == [1.0, 1.0, 1.0, 1.0]
    member.tokens = [1, 2, 1]
    assert penalized(logits, member).tolist() == [1.0, 0.0, 0.25, 1.0]
    assert logits.tolist() == [1.0] * 4  # the batch's logits are not touched


def test_embeddings_say_how_many_tokens_they_read(tiny_root: Path) -> None:
    runner = runner_of("feature-extraction", "tiny-bert", tiny_root)
    short, long = runner.run(
        [Request("a", {"text": text_array(["ab"])}), Request("b", {"text": text_array(["a", "abc"])})]
    )
    assert (short.usage, long.usage) == ({"prompt_tokens": 3}, {"prompt_tokens": 6})


def test_a_source_that_is_nowhere_is_named_with_what_was_tried(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LoadError, match=r"model no/such: no folder .* with a config.json, and not to be had as a hub"):
        runner_of("image-classification", "no/such", tmp_path)


def test_weights_that_are_not_safetensors_are_refused(tiny_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").symlink_to(tiny_root / "tiny-vit" / "config.json")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match=r"model pickled: folder .* cannot be loaded \(safetensors only\)"):
        runner_of("image-classification", "pickled", tmp_path)


@pytest.mark.parametrize(
    ("task", "source", "shapes"),
    [
        ("text-generation", "tiny-llama", [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)]),
        ("feature-extraction", "tiny-bert", [(1, 1), (2, 1), (4, 1)]),
        ("image-classification", "tiny-vit", [(1, 1), (2, 1), (4, 1)]),
        ("image-segmentation", "tiny-segformer", [(1, 1)]),
        ("automatic-speech-recognition", "tiny-whisper", [(1, 1)]),
    ],
)
def test_supported_shapes_are_those_that_a_plan_exists_for(
    tiny_root: Path, task: str, source: str, shapes: list[tuple[int, int]]
) -> None:
    assert supported_shapes(task, read_config(source, tiny_root), max_devices=4) == shapes


def test_a_task_that_no_runner_serves_is_refused_with_those_that_are(tiny_root: Path) -> None:
    with pytest.raises(UnsupportedShape, match=r"expected a task of text-generation, .*, got juggling"):
        runner_of("juggling", "tiny-vit", tiny_root)


def test_tensors_that_do_not_add_up_are_refused() -> None:
    for tensor, message in (
        (Tensor("x", "FP32", (2,), b"1234"), "x: expected 8 bytes"),
        (Tensor("x", "FP99", (1,), b"1234"), "x: expected a datatype"),
        (Tensor("x", "BYTES", (2,), b"\x01\0\0\0a"), "x: expected 2 BYTES elements, got 1"),
        (Tensor("x", "BYTES", (1,), b"\x09\0\0\0a"), "element 0 runs past the end"),
        (Tensor("x", "FP32", (-1,), b""), "without negative numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            to_array(tensor)


def test_tensors_survive_the_round_trip() -> None:
    for array in (text_array(["é", b"\xff", ""]), np.arange(6, dtype=np.float32).reshape(2, 3), np.array([True])):
        back = to_array(from_array("x", array))
        expected = [x.encode() if isinstance(x, str) else x for x in array] if array.dtype == object else array.tolist()
        assert back.tolist() == list(expected)
