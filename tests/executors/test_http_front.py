"""OpenAI's API at executors with echo workers, and every refusal through a front of its own."""

import asyncio
import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import httpx2 as httpx
import openai
import pytest
from epara_executors.agent import requests as refusals
from epara_executors.agent.http_front.app import MAX_BODY_BYTES, Front
from epara_executors.agent.http_front.errors import HTTP_OF
from epara_executors.agent.http_front.server import HttpServer
from epara_executors.agent.main import AgentOptions, run
from epara_executors.contents import join_bytes
from epara_executors.rpc import open_inference_pb2 as oip

from epara_opt.errors import FleetError, InputError

ASK = [{"role": "user", "content": "left right"}]
HTTP = ("--http", "127.0.0.1:0")


def client_of(address, **over):
    return openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", **{"max_retries": 0, **over})


def chat_tenant(edge, *, group="g1", latency_ms=5, batch=2, **over):
    source = f"echo?latency_ms={latency_ms}"
    values = {"task": "text-generation", "output_tokens": 8, "deadline_ms": 9000.0, **over}
    return edge.tenant(service="chat", group=group, source=source, batch=batch, **values)


@pytest.fixture(scope="module")
def edge(shared_edge):
    """`chat` of two slots and `slow`, which takes a second for each token, at executor a."""
    shared_edge.start("a", "127.0.0.1:0", *HTTP)
    slow = shared_edge.tenant(
        service="slow", group="g2", source="echo?latency_ms=1000", task="text-generation", batch=1, deadline_ms=60_000.0
    )
    shared_edge.apply(
        "a",
        shared_edge.group("a", chat_tenant(shared_edge), name="g1", device=1),
        shared_edge.group("a", slow, name="g2", device=2),
    )
    return shared_edge


@pytest.fixture(scope="module")
def url(edge):
    return f"http://{edge.executors['a'].http_address}"


@pytest.fixture(scope="module")
def client(edge):
    with client_of(edge.executors["a"].http_address) as client:
        yield client


@contextlib.contextmanager
def posted(address, body):
    """A bare connection that has sent a chat, and is closed at the end whatever comes."""
    payload = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n\r\n"
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head.encode() + payload)
        yield connection


def error_of(response):
    said = response.json()["error"]
    assert set(said) == {"message", "type", "param", "code"}
    return said


# What is wrong with a request ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty: expected a number in [-2, 2], got 2.5"),
        ({"presence_penalty": "much"}, 'presence_penalty: expected a number in [-2, 2], got "much"'),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number in [0.01, 100], got 0"),
        ({"logit_bias": {"1": 5}}, "logit_bias: is not offered; expected {} or nothing"),
        ({"min_p": 0.1}, "min_p: is not known"),
        ({"n": 2}, "n: is not offered; expected 1 or nothing, got 2"),
        ({"tools": [{"type": "function"}]}, "tools: is not offered"),
        ({"response_format": {"type": "json_object"}}, "response_format: is not offered"),
        ({"reasoning_effort": "high"}, "reasoning_effort: is not known"),
        ({"temprature": 1}, "temprature: is not known; did you mean temperature?"),
        ({"temperature": -1}, "temperature: expected a number in [0, 100], got -1"),
        ({"temperature": "hot"}, 'temperature: expected a number in [0, 100], got "hot"'),
        ({"top_p": 1.5}, "top_p: expected a number in [0, 1], got 1.5"),
        ({"max_tokens": 0}, "max_tokens: expected an integer in [1, 2147483647], got 0"),
        ({"max_tokens": True}, "max_tokens: expected an integer in [1, 2147483647], got true"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens: expected the value of max_completion_tokens"),
        ({"seed": 2**63}, "seed: expected an integer in"),
        ({"stop": [1]}, "stop: expected text or a list of texts, got [1]"),
        ({"stop": "\ud800"}, "stop: expected Unicode text, got a lone surrogate"),
        ({"stream": "yes"}, 'stream: expected true or false, got "yes"'),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage: is not known"),
        ({"timeout": 0}, "timeout: expected a number in [1e-06, 86400], got 0"),
        ({"model": 5}, "model: expected text, got 5"),
        ({"messages": []}, "messages: expected a non-empty list of messages"),
        ({"messages": ["hello"]}, "messages[0]: expected an object with role and content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: expected text or a list of text parts, got nothing"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "messages[0].content: expected Unicode text"),
        ({"messages": [{"content": "a"}]}, "messages[0].role: expected text, got nothing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
            'messages[0].content[0].type: expected "text", got "image_url"',
        ),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [1]}]}, "messages[0].tool_calls: is not"),
    ],
)
def test_a_wrong_chat_is_a_400_that_names_the_field(url, more, words):
    body = {"model": "chat", "messages": ASK, **more}
    response = httpx.post(
        f"{url}/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert response.status_code == 400, response.text
    error = error_of(response)
    assert words in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", words.split(":")[0])


@pytest.mark.parametrize("prompt", [None, 5, [], ["a", "b"], [[1], [2]], ["a", 1], [1, "a"], [-1], [True]])
def test_a_wrong_prompt_is_a_400(url, prompt):
    response = httpx.post(f"{url}/v1/completions", json={"model": "chat", "prompt": prompt})
    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [[]]}, "input[0]"),
        ({"input": ["a", {}]}, "input[1]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 8}, "dimensions"),
    ],
)
def test_wrong_embeddings_are_a_400(url, more, param):
    response = httpx.post(f"{url}/v1/embeddings", json={"model": "embed", "input": "a", **more})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model": NaN}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_a_400(url, body):
    response = httpx.post(f"{url}/v1/chat/completions", content=body)
    assert response.status_code == 400
    assert error_of(response)["message"].startswith("body: expected")


def test_a_body_beyond_the_limit_is_a_413(url):
    body = b'{"model": "' + b"a" * MAX_BODY_BYTES + b'"}'
    response = httpx.post(f"{url}/v1/chat/completions", content=body)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


@pytest.mark.parametrize("value", ["soon", "0", "-5", "nan", "inf"])
def test_a_wrong_deadline_header_is_a_400(url, value):
    body = {"model": "chat", "messages": ASK}
    response = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-epara-timeout-ms": value})
    assert response.status_code == 400
    assert error_of(response)["param"] == "x-epara-timeout-ms"


def test_unknown_urls_and_methods_have_openais_shape_too(url):
    assert error_of(httpx.get(f"{url}/v1/images"))["code"] == "unknown_url"
    assert error_of(httpx.get(f"{url}/v1/chat/completions"))["code"] == "method_not_allowed"


# What is answered ------------------------------------------------------------------------------------------------


def test_fields_that_ask_for_nothing_are_passed_over(client):
    made = client.chat.completions.create(
        model="chat",
        messages=ASK,
        max_tokens=3,
        n=1,
        frequency_penalty=0,
        logit_bias={},
        logprobs=False,
        response_format={"type": "text"},
        user="me",
        store=True,
        metadata={"a": "b"},
        extra_body={"tools": [], "timeout": 5, "priority": 1, "top_k": 0, "stop": None},
    )
    assert made.choices[0].message.content == "left right left"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (2, 3, 5)


def test_an_unknown_model_is_a_404(client):
    with pytest.raises(openai.NotFoundError, match="known: chat, slow") as caught:
        client.chat.completions.create(model="nope", messages=ASK)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nope")


def test_a_stream_that_is_refused_has_its_status(client):
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nope", messages=ASK, stream=True)


def test_what_cannot_be_on_time_is_a_429_that_says_when(client):
    with pytest.raises(openai.RateLimitError) as caught:
        client.chat.completions.create(model="chat", messages=ASK, extra_headers={"x-epara-timeout-ms": "0.01"})
    headers = caught.value.response.headers
    assert int(headers["retry-after"]) >= 1
    assert 0 < int(headers["retry-after-ms"]) <= 1000 * int(headers["retry-after"])


def test_what_was_started_and_did_not_end_in_time_is_a_504(client):
    with pytest.raises(openai.InternalServerError) as caught:  # the client's class for every status from 500 on
        client.chat.completions.create(model="slow", messages=ASK, extra_body={"timeout": 0.2})
    assert (caught.value.status_code, caught.value.code) == (504, "deadline_exceeded")


def test_streams_side_by_side_keep_their_words(edge):
    async def one(client, word):
        ask = [{"role": "user", "content": word}]
        stream = await client.chat.completions.create(model="chat", messages=ask, max_tokens=4, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream])

    async def all_of(words):
        address = edge.executors["a"].http_address
        async with openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, w) for w in words))

    words = [f"w{i}" for i in range(16)]
    assert asyncio.run(all_of(words)) == [f"{w} " * 4 for w in words]


def test_requests_are_counted_where_they_enter(edge, client):
    def counted():
        (said,) = (s for s in edge.state("a").services if s.service == "chat")
        return said.arrived, said.served

    before = counted()
    client.chat.completions.create(model="chat", messages=ASK, max_tokens=1)
    after = counted()
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_once(edge, url, stream):
    """The only slot of `slow` is held by a generation of a thousand seconds."""

    def queued():
        return next(r.queued for r in edge.state("a").replicas if r.service == "slow")

    body = {"model": "slow", "messages": ASK, "max_tokens": 1000, "stream": stream}
    host, _, port = url.removeprefix("http://").rpartition(":")
    with posted((host, int(port)), body) as connection:
        edge.until(lambda: queued() == 1)
        if stream:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
    edge.until(lambda: queued() == 0, deadline_s=5.0)


# Elsewhere, and the end ------------------------------------------------------------------------------------------


def test_what_others_host_is_answered_there(echo_edge):
    for server in ("a", "b"):
        echo_edge.start(server, "127.0.0.1:0", *HTTP)
    tenant = chat_tenant(echo_edge)
    echo_edge.apply("b", echo_edge.group("b", tenant, name="g1"))
    echo_edge.apply("a", routes=(echo_edge.route(tenant, "b"),), peers=(echo_edge.peer("chat", "b"),))
    with client_of(echo_edge.executors["a"].http_address) as client:
        assert [m.ready for m in client.models.list()] == [True]
        asked = {"model": "chat", "messages": ASK, "max_tokens": 3, "stop": ["x", "y"]}
        made = client.chat.completions.create(**asked)
        assert made.choices[0].message.content == "left right left"
        assert made.usage.total_tokens == 5
        *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "left right left "
        assert last.usage == made.usage


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot_at_a_peer(echo_edge, stream):
    for server in ("a", "b"):
        echo_edge.start(server, "127.0.0.1:0", *HTTP)
    tenant = chat_tenant(echo_edge, latency_ms=1000, deadline_ms=60_000.0)
    echo_edge.apply("b", echo_edge.group("b", tenant, name="g1"))
    echo_edge.apply("a", routes=(echo_edge.route(tenant, "b"),), peers=(echo_edge.peer("chat", "b"),))

    def queued():
        return next(r.queued for r in echo_edge.state("b").replicas)

    host, _, port = echo_edge.executors["a"].http_address.rpartition(":")
    body = {"model": "chat", "messages": ASK, "max_tokens": 1000, "stream": stream}
    with posted((host, int(port)), body):
        echo_edge.until(lambda: queued() == 1)
    echo_edge.until(lambda: queued() == 0, deadline_s=5.0)


def test_sigterm_lets_a_stream_end_and_new_requests_go(echo_edge):
    executor = echo_edge.start("a", "127.0.0.1:0", *HTTP)
    echo_edge.apply("a", echo_edge.group("a", chat_tenant(echo_edge, latency_ms=50), name="g1"))
    with client_of(executor.http_address) as client:
        stream = client.chat.completions.create(model="chat", messages=ASK, max_tokens=20, stream=True)
        next(stream)
        executor.process.send_signal(signal.SIGTERM)
        chunks = list(stream)
        assert sum(bool(c.choices[0].delta.content) for c in chunks) == 20
        assert executor.process.wait(timeout=30) == 0
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(model="chat", messages=ASK)


def test_a_stream_that_outlasts_the_grace_does_not_keep_the_executor(echo_edge):
    executor = echo_edge.start("a", "127.0.0.1:0", *HTTP, "--drain-grace", "1")
    echo_edge.apply("a", echo_edge.group("a", chat_tenant(echo_edge, latency_ms=1000), name="g1"))
    with client_of(executor.http_address) as client:
        stream = client.chat.completions.create(model="chat", messages=ASK, max_tokens=1000, stream=True)
        next(stream)
        executor.process.send_signal(signal.SIGTERM)
        assert executor.process.wait(timeout=20) == 0
        stream.close()


def test_a_draining_executor_is_a_503_and_unhealthy(echo_edge):
    executor = echo_edge.start("a", "127.0.0.1:0", *HTTP)
    health = f"http://{executor.http_address}/healthz"
    echo_edge.apply("a", echo_edge.group("a", chat_tenant(echo_edge), name="g1"))
    echo_edge.until(lambda: httpx.get(health).status_code == 200)
    echo_edge.fleet.drain(executor.address, exit_process=False, deadline_s=10)
    response = httpx.get(health)
    assert (response.status_code, response.json()) == (503, {"status": "draining"})
    with client_of(executor.http_address) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="chat", messages=ASK)
    assert (caught.value.status_code, caught.value.code) == (503, "unavailable")


def test_an_http_address_in_use_ends_with_status_5(echo_edge):
    first = echo_edge.start("a", "127.0.0.1:0", *HTTP)
    with pytest.raises(FleetError):
        echo_edge.start("b", "127.0.0.1:0", "--http", first.http_address)
    assert f"cannot listen on {first.http_address}" in (echo_edge.folder / "b.log").read_text()


@pytest.mark.parametrize("given", ["nowhere", ":1", "127.0.0.1:70000", "127.0.0.1:x"])
def test_an_http_address_that_is_none_ends_with_status_2(tmp_path, given):
    command = [sys.executable, "-m", "epara_opt.cli", "executor", "--server", "a", "--listen", "127.0.0.1:0"]
    command += ["--state-dir", str(tmp_path / "s"), "--model-root", str(tmp_path), "--http", given]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "http: expected HOST:PORT" in done.stderr


def test_without_its_libraries_the_option_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    options = AgentOptions(
        server="a", listen="127.0.0.1:0", http="127.0.0.1:0", state_dir=tmp_path / "s", model_root=tmp_path
    )
    with pytest.raises(InputError, match=re.escape("pip install 'epara-opt[http]'")):
        run(options)


def test_without_the_option_nothing_of_it_is_imported(echo_edge):
    assert echo_edge.start("a").http_address == ""
    code = (
        "import importlib, pkgutil, sys, epara_executors.agent as agent;"
        "[importlib.import_module(f'epara_executors.agent.{m.name}') for m in pkgutil.iter_modules(agent.__path__)"
        " if m.name not in ('__main__', 'http_front')];"
        "print([m for m in ('starlette', 'uvicorn', 'anyio', 'h11') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == "[]"


# Every refusal ---------------------------------------------------------------------------------------------------

REFUSALS = [c for c in vars(refusals).values() if isinstance(c, type) and issubclass(c, refusals.Refusal)][1:]


class ScriptedHandler:
    """Answers some words, then raises."""

    def __init__(self):
        self.words = []
        self.error = None

    async def infer(self, request, passport, *, call_remaining_s, on_response=None):
        for word in self.words:
            response = oip.ModelInferResponse(model_name=request.model_name)
            response.outputs.add(name="text", datatype="BYTES", shape=[1])
            response.raw_output_contents.append(join_bytes([word.encode()]))
            response.parameters["triton_final_response"].bool_param = False
            on_response(response)
        raise self.error


@contextlib.contextmanager
def served(app):
    """A front in a thread of its own; its address."""
    ready, address = threading.Event(), []

    async def serve():
        server = HttpServer("127.0.0.1:0", app, drain_grace_s=1.0)
        await server.start()
        leave = asyncio.Event()
        address.extend([server.address, asyncio.get_running_loop(), leave])
        ready.set()
        await leave.wait()
        await server.stop()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield address[0]
    finally:
        address[1].call_soon_threadsafe(address[2].set)
        thread.join(30)


@pytest.fixture(scope="module")
def scripted():
    """(handler, client) of a front whose handler does as it is told."""
    handler = ScriptedHandler()
    executor = SimpleNamespace(routing={}, draining=False, restored=SimpleNamespace(is_set=lambda: True))
    front = Front(executor, handler, peers=None, rng=random.Random(1), clock=lambda: 1000.0)
    with served(front.app()) as address, client_of(address) as client:
        yield handler, client


def test_every_status_of_a_refusal_has_its_http_status():
    assert {c.status for c in REFUSALS} == set(HTTP_OF)
    assert len({status for status, _, _ in HTTP_OF.values()}) == len(HTTP_OF)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("stream", [False, True])
def test_every_refusal_reaches_the_client_with_its_status(scripted, refusal, stream):
    handler, client = scripted
    handler.words, handler.error = [], refusal("what it was", retry_after_ms=1500)
    status, type_, code = HTTP_OF[refusal.status]
    with pytest.raises(openai.APIStatusError, match="what it was") as caught:
        client.chat.completions.create(model="m", messages=ASK, stream=stream)
    assert (caught.value.status_code, caught.value.type, caught.value.code) == (status, type_, code)
    assert caught.value.response.headers["retry-after"] == "2"
    assert caught.value.response.headers["retry-after-ms"] == "1500"


def test_a_refusal_after_part_of_a_stream_is_its_last_event(scripted):
    handler, client = scripted
    handler.words, handler.error = ["so ", "far"], refusals.Unavailable("the worker is gone")
    stream = client.chat.completions.create(model="m", messages=ASK, stream=True)
    assert [next(stream).choices[0].delta.content for _ in range(3)] == ["", "so ", "far"]
    with pytest.raises(openai.APIError, match="the worker is gone") as caught:
        next(stream)
    assert caught.value.code == "unavailable"


@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_foresaw_is_a_500_without_inner_words(scripted, stream):
    handler, client = scripted
    handler.words, handler.error = [], KeyError("secret")
    for _ in range(3):  # on one connection, which stays open
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="m", messages=ASK, stream=stream)
    assert caught.value.status_code == 500
    assert not re.search("secret", str(caught.value))
