"""OpenAI's own client, unchanged, against a real executor with real torch workers."""

import base64
import json
import shutil
import time

import grpc
import httpx2 as httpx
import numpy as np
import openai
import pytest
from epara_executors.client import GrpcFleet
from epara_executors.infer_client import InferClient, InferError
from epara_executors.local import LocalExecutor

from epara_opt.control.ports import CommitSpec, Fence, GroupSpec, RouteSpec, TenantSpec

pytestmark = pytest.mark.system

SEED = 3
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is the edge?"}]
PLAIN = "system: Be brief.\nuser: Where is the edge?\nassistant:"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TEMPLATED = "[system]Be brief.[user]Where is the edge?[assistant]"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from epara_executors.tiny_models import make

    root = tmp_path_factory.mktemp("models")
    for kind in ("tiny-bert", "tiny-llama"):
        make(kind, root / kind, SEED)
    shutil.copytree(root / "tiny-llama", root / "templated")
    (root / "templated" / "chat_template.jinja").write_text(TEMPLATE)
    return root


@pytest.fixture(scope="module")
def executor(models, tmp_path_factory):
    """An executor that serves `chat` (no template), `templated` and `embed`, time-sharing one CPU slot."""
    folder = tmp_path_factory.mktemp("executor")

    def tenant(service, source, task, batch, **over):
        values = {"deadline_ms": 30_000.0, "response_ms": 200.0, "work_per_s": 10.0, "fps": 0.0, "frames": 1}
        values |= {"prompt_tokens": 0, "output_tokens": 0, "sensitivity": "latency", "replica": f"{service}@g"}
        return TenantSpec(service=service, source=source, task=task, batch=batch, **{**values, **over})

    tenants = (
        tenant("chat", "tiny-llama", "text-generation", 2, prompt_tokens=16, output_tokens=8),
        tenant("templated", "templated", "text-generation", 2, prompt_tokens=16, output_tokens=8),
        tenant("embed", "tiny-bert", "feature-extraction", 4),
    )
    group = GroupSpec(
        group="g", server="edge", device_type="cpu", device_kind="cpu", devices=(0,), tp=1, pp=1, tenants=tenants
    )
    executor = LocalExecutor(
        "edge",
        state_dir=folder / "state",
        model_root=models,
        log_file=folder / "log",
        arguments=("--http", "127.0.0.1:0"),
    )
    with executor, GrpcFleet() as fleet:
        fence = Fence(epoch=1, generation=1)
        fleet.prepare(executor.address, (group,), fence, deadline_s=150)
        routes = tuple(
            RouteSpec(
                service=t.service,
                replica=t.replica,
                server="edge",
                address=executor.address,
                rate_per_s=1.0,
                network_ms=0.0,
            )
            for t in tenants
        )
        spec = CommitSpec(server="edge", groups=(group,), routes=routes, peers=())
        fleet.commit(executor.address, spec, fence, deadline_s=10)
        yield executor


@pytest.fixture(scope="module")
def client(executor):
    with openai.OpenAI(base_url=f"http://{executor.http_address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models / "tiny-llama")


@pytest.fixture(scope="module")
def greedy(models, tokenizer):
    """What the model itself says after a prompt of tokens: text and number of tokens."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(models / "tiny-llama").eval()

    def generate(ids, max_tokens):
        with torch.inference_mode():
            made = model.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False)[0, len(ids) :]
        return tokenizer.decode(made, skip_special_tokens=True), len(made)

    return generate


def test_models_are_listed_with_their_readiness(client):
    listed = {m.id: m.ready for m in client.models.list()}
    assert listed == {"chat": True, "embed": True, "templated": True}
    assert client.models.retrieve("chat").owned_by == "epara"


def test_a_completion_equals_the_direct_generation_and_its_usage_is_exact(client, tokenizer, greedy):
    prompt = "the edge of the cloud"
    made = client.completions.create(model="chat", prompt=prompt, max_tokens=6, temperature=0)
    ids = tokenizer(prompt)["input_ids"]
    text, num_tokens = greedy(ids, 6)
    assert made.choices[0].text == text
    assert made.choices[0].finish_reason == "length"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (len(ids), num_tokens)
    assert made.usage.total_tokens == len(ids) + num_tokens


def test_penalties_are_those_of_transformers_over_http_and_grpc_alike(executor, client, models, tokenizer):
    import torch
    from transformers import LlamaForCausalLM

    ids = tokenizer("the edge")["input_ids"]
    model = LlamaForCausalLM.from_pretrained(models / "tiny-llama").eval()
    with torch.inference_mode():
        made = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, repetition_penalty=1.7)
    direct = tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
    asked = {"model": "chat", "prompt": ids, "max_tokens": 24, "temperature": 0}
    over_http = client.completions.create(**asked, extra_body={"repetition_penalty": 1.7}).choices[0].text
    plain = client.completions.create(**asked).choices[0].text
    assert over_http == direct != plain

    scarce = client.completions.create(**asked, frequency_penalty=2, presence_penalty=2).choices[0].text
    with InferClient(executor.address) as grpc_client:
        for params, expected in (
            ({"repetition_penalty": 1.7}, direct),
            ({"frequency_penalty": 2, "presence_penalty": 2.0}, scarce),
        ):
            inputs = {"input_ids": np.array([ids], dtype=np.int64)}
            answer = grpc_client.infer("chat", inputs, params={"max_tokens": 24, **params})
            assert bytes(answer.outputs["text"][0]).decode() == expected
        for params, words in (
            ({"presence_penalty": 3}, "params.presence_penalty: expected in [-2, 2], got 3"),
            ({"top_k": 2.5}, "params.top_k: expected a whole number, got 2.5"),
            ({"logit_bias": "{}"}, "parameter 'logit_bias' is not known"),
            ({"max_tokens": 2047}, "params.max_tokens: expected prompt and output within 2048 tokens, got 9 + 2047"),
        ):
            with pytest.raises(InferError) as refused:
                grpc_client.infer("chat", {"input_ids": np.array([ids], dtype=np.int64)}, params=params)
            assert refused.value.status is grpc.StatusCode.INVALID_ARGUMENT
            assert words in refused.value.message


def test_a_prompt_may_be_token_ids(client, tokenizer):
    ids = tokenizer("the edge")["input_ids"]
    by_ids = client.completions.create(model="chat", prompt=ids, max_tokens=4, temperature=0)
    by_text = client.completions.create(model="chat", prompt="the edge", max_tokens=4, temperature=0)
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage == by_text.usage


def test_a_chat_without_a_template_is_the_documented_plain_form(client, tokenizer, greedy):
    made = client.chat.completions.create(model="chat", messages=CHAT, max_tokens=6, temperature=0)
    ids = tokenizer(PLAIN)["input_ids"]
    assert made.choices[0].message.role == "assistant"
    assert made.choices[0].message.content == greedy(ids, 6)[0]
    assert made.choices[0].finish_reason == "length"
    assert made.usage.prompt_tokens == len(ids)


def test_a_chat_goes_through_the_models_own_template(client, tokenizer, greedy):
    made = client.chat.completions.create(model="templated", messages=CHAT, max_completion_tokens=6, temperature=0)
    ids = [tokenizer.bos_token_id, *tokenizer(TEMPLATED, add_special_tokens=False)["input_ids"]]
    assert made.choices[0].message.content == greedy(ids, 6)[0]
    assert made.usage.prompt_tokens == len(ids)


def test_a_template_that_refuses_is_the_clients_mistake(client):
    with pytest.raises(openai.BadRequestError, match="no tools here"):
        client.chat.completions.create(model="templated", messages=[{"role": "tool", "content": "4"}])


def test_content_parts_are_joined(client):
    parts = [{"type": "text", "text": "Where is "}, {"type": "text", "text": "the edge?"}]
    whole = client.chat.completions.create(model="chat", messages=CHAT, max_tokens=4, temperature=0)
    in_parts = client.chat.completions.create(
        model="chat", messages=[CHAT[0], {"role": "user", "content": parts}], max_tokens=4, temperature=0
    )
    assert in_parts.choices[0].message.content == whole.choices[0].message.content


def test_a_stream_says_what_the_whole_answer_says(client):
    asked = {"model": "chat", "messages": CHAT, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    *chunks, last = pieces
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({p.id for p in pieces}) == 1


def test_a_completion_streams_without_usage_unless_asked(client):
    asked = {"model": "chat", "prompt": "once", "max_tokens": 8, "temperature": 0}
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(p.choices[0].text for p in pieces) == client.completions.create(**asked).choices[0].text
    assert pieces[-1].choices[0].finish_reason == "length"
    assert all(p.usage is None for p in pieces)


def test_stop_strings_end_the_text_before_them(client):
    asked = {"model": "chat", "prompt": "once", "max_tokens": 24, "temperature": 0}
    text = client.completions.create(**asked).choices[0].text
    at = len(text) // 2
    for stop in (text[at : at + 2], ["never there", text[at : at + 2]]):
        made = client.completions.create(**asked, stop=stop)
        assert made.choices[0].text == text[: text.index(text[at : at + 2])]
        assert made.choices[0].finish_reason == "stop"
        assert made.usage.completion_tokens < 24


def test_a_seed_repeats_and_its_absence_does_not(client):
    def text(**more):
        made = client.completions.create(model="chat", prompt="once", max_tokens=24, **more)
        return made.choices[0].text

    assert text(seed=5, top_p=0.9, user="me") == text(seed=5, top_p=0.9)
    assert text(temperature=1.5) != text(temperature=1.5)


def test_embeddings_come_as_floats_and_as_base64(client, executor):
    texts = ["edge", "a camera in the street", "edge"]
    made = client.embeddings.create(model="embed", input=texts, encoding_format="float")
    vectors = np.array([d.embedding for d in made.data])
    assert [d.index for d in made.data] == [0, 1, 2]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
    assert made.usage.prompt_tokens == made.usage.total_tokens == sum(len(t) + 1 for t in texts)  # bytes and [CLS]
    by_default = client.embeddings.create(model="embed", input=texts)  # the client itself asks for base64
    np.testing.assert_allclose(np.array([d.embedding for d in by_default.data]), vectors, atol=1e-5)
    body = {"model": "embed", "input": "edge", "encoding_format": "base64"}
    raw = httpx.post(f"http://{executor.http_address}/v1/embeddings", json=body).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), vectors[0], atol=1e-5)


def test_embeddings_of_token_ids_equal_those_of_their_text(client, models):
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(models / "tiny-bert")(["edge", "street"])["input_ids"]
    by_ids = client.embeddings.create(model="embed", input=ids)
    by_text = client.embeddings.create(model="embed", input=["edge", "street"])
    for a, b in zip(by_ids.data, by_text.data, strict=True):
        np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5)
    assert by_ids.usage == by_text.usage
    alone = client.embeddings.create(model="embed", input=ids[0])
    np.testing.assert_allclose(alone.data[0].embedding, by_text.data[0].embedding, atol=1e-5)


def test_a_prompt_longer_than_the_model_is_refused_with_both_numbers(client):
    with pytest.raises(openai.BadRequestError, match=r"within 2048 tokens, got 3001 \+ 8") as caught:
        client.completions.create(model="chat", prompt="a" * 3000)
    assert caught.value.type == "invalid_request_error"


def test_a_service_of_another_task_is_named(client):
    with pytest.raises(openai.BadRequestError, match=r"expected a text-generation service .* got feature-extraction"):
        client.chat.completions.create(model="embed", messages=CHAT)
    with pytest.raises(openai.BadRequestError, match="expected a feature-extraction service"):
        client.embeddings.create(model="chat", input="edge")


def test_a_deadline_that_cannot_be_met_is_refused_at_once(client):
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="chat", messages=CHAT, extra_headers={"x-epara-timeout-ms": "0.01"})
    assert int(caught.value.response.headers["retry-after-ms"]) > 0
    assert caught.value.code == "overloaded"


def test_a_client_that_leaves_a_stream_frees_its_slots_at_once(client, executor):
    """Both slots are held by long generations, which must not run to their end."""

    def replica():
        with GrpcFleet() as fleet:
            state = fleet.observe({"edge": executor.address}, with_plan=False).executors["edge"]
        return next(r for r in state.replicas if r.replica == "chat@g")

    served = replica().served
    asked = {"model": "chat", "prompt": "once", "temperature": 0}
    held = [client.completions.create(**asked, max_tokens=2000, stream=True) for _ in range(2)]
    for stream in held:
        next(stream)
    for stream in held:
        stream.close()
    give_up_at = time.monotonic() + 30.0
    while replica().queued:
        assert time.monotonic() < give_up_at
    assert replica().served == served  # neither was finished
    assert client.completions.create(**asked, max_tokens=2).usage.completion_tokens == 2


def test_the_stream_on_the_wire_ends_with_done(executor):
    body = {"model": "chat", "messages": CHAT, "max_tokens": 2, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"http://{executor.http_address}/v1/chat/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"
