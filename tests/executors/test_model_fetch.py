"""Models that travel between real executors: whole, cut off, damaged, refused, capped, from the hub, and served."""

import http.server
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from epara_executors.rpc import epara_pb2 as pb
from epara_executors.rpc.epara_pb2_grpc import (
    ExecutorFilesServicer,
    ExecutorFilesStub,
    add_ExecutorFilesServicer_to_server,
)
from epara_executors.weights.cache import ModelCache
from epara_executors.weights.fetch import Fetcher, FetchFailed, Fetching, Stopped
from epara_executors.weights.files import Manifest

from epara_opt.control.apply import apply
from epara_opt.control.fake_planner import FirstFitPlanner, small_edge
from epara_opt.control.ports import CommitSpec, Fence, FetchSpec, HolderSpec
from epara_opt.domain.topology import DeviceKind
from epara_opt.errors import ExecutorRefused, FleetError, ModelsOnTheWay, StaleFence
from epara_opt.problem import build_problem

MIB = 2**20
FENCE = Fence(epoch=1, generation=1)
SERVE = ("--serve-models",)


def weights_in(folder: Path, *, mib: float = 1.0, seed: int = 0) -> Path:
    """A model's folder with so much of weights. Echo workers serve nothing from it, but its files are real."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    numbers = np.random.default_rng(seed).integers(0, 255, int(mib * MIB), np.uint8)
    save_file({"w": numbers}, folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"never to leave")
    return folder


def fetched(edge, server: str, source: str = "m") -> Path:
    return edge.folder / server / "models" / "models" / source / "current"


def size_of(folder: Path) -> int:
    return sum((folder / n).stat().st_size for n in ("config.json", "model.safetensors"))


def fetch(edge, server: str, *holders: str, source: str = "m", fence: Fence = FENCE, deadline_s: float = 30.0) -> None:
    specs = tuple(HolderSpec(server=h, address=edge.address(h)) for h in holders)
    models = (FetchSpec(source=source, holders=specs),)
    edge.fleet.fetch(edge.address(server), models, fence, server=server, deadline_s=deadline_s)


def start(edge, server: str, *arguments: str) -> None:
    """An executor with a model root of its own."""
    root = edge.folder / f"root-{server}"
    root.mkdir(exist_ok=True)
    edge.start(server, "127.0.0.1:0", "--model-root", str(root), *arguments)


def root_of(edge, server: str) -> Path:
    return edge.folder / f"root-{server}"


def test_a_model_comes_from_the_peer_that_has_it_and_goes_on_from_there(echo_edge):
    source = weights_in(root_of(echo_edge, "a") / "org" / "m")
    for name in ("a", "b", "c"):
        start(echo_edge, name, *SERVE)
    with pytest.raises(ExecutorRefused) as caught:
        fetch(echo_edge, "c", "b", source="org/m")
    assert "b: model org/m: not here; hub: not allowed (--allow-remote-hub)" in str(caught.value)
    assert "b: model org/m" in echo_edge.state("c").fetches[0].detail
    fetch(echo_edge, "b", "a", source="org/m")
    shutil.rmtree(root_of(echo_edge, "a"))
    fetch(echo_edge, "c", "a", "b", source="org/m")
    there = fetched(echo_edge, "c", "org%2Fm")
    assert sorted(f.name for f in there.iterdir()) == ["config.json", "model.safetensors"]
    fetch(echo_edge, "c", source="org/m")  # it is here: nobody is asked
    a, b, c = (echo_edge.state(s) for s in "abc")
    assert a.model_bytes_sent == b.model_bytes_received == b.model_bytes_sent == c.model_bytes_received
    assert c.fetches == ()
    assert size_of(there) == c.model_bytes_received
    assert not source.exists()


def test_a_local_folder_and_a_builtin_source_need_nobody(echo_edge):
    start(echo_edge, "a")
    weights_in(root_of(echo_edge, "a") / "m")
    fetch(echo_edge, "a")
    fetch(echo_edge, "a", source=str(root_of(echo_edge, "a") / "m"))
    fetch(echo_edge, "a", source="echo?latency_ms=1")
    assert echo_edge.state("a").model_bytes_received == 0
    with pytest.raises(ExecutorRefused, match="only relative paths without"):
        fetch(echo_edge, "a", source="/nowhere/m")
    newer = Fence(epoch=2, generation=1)
    fetch(echo_edge, "a", fence=newer)
    with pytest.raises(StaleFence):
        fetch(echo_edge, "a")


def test_files_are_given_only_where_that_was_asked_for(echo_edge):
    weights_in(root_of(echo_edge, "a") / "m")
    start(echo_edge, "a")
    start(echo_edge, "b")
    with pytest.raises(ExecutorRefused, match=r"a: it gives no files to peers \(--serve-models\)"):
        fetch(echo_edge, "b", "a")


def test_what_a_killed_peer_began_another_ends_and_no_byte_comes_twice(echo_edge):
    source = weights_in(root_of(echo_edge, "slow") / "m", mib=6.0)
    shutil.copytree(source, root_of(echo_edge, "quick") / "m")
    start(echo_edge, "slow", *SERVE, "--model-bandwidth-mbps", "1")
    start(echo_edge, "quick", *SERVE)
    start(echo_edge, "b")
    with pytest.raises(ModelsOnTheWay, match=r"executor of b is still fetching: m: \w+"):
        fetch(echo_edge, "b", "slow", "quick", deadline_s=0.01)
    echo_edge.until(lambda: echo_edge.state("b").fetches[0].done_bytes >= MIB)
    told = echo_edge.state("b").fetches[0]
    assert (told.state, told.origin, told.total_bytes) == ("fetching", "slow", size_of(source))
    before = echo_edge.state("b").model_bytes_received
    echo_edge.executors["slow"].kill()
    fetch(echo_edge, "b", "slow", "quick")
    assert (fetched(echo_edge, "b") / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert echo_edge.state("b").model_bytes_received == size_of(source)
    assert MIB < echo_edge.state("quick").model_bytes_sent <= size_of(source) - before


def test_what_a_killed_executor_had_it_goes_on_with(echo_edge):
    source = weights_in(root_of(echo_edge, "a") / "m", mib=4.0)
    start(echo_edge, "a", *SERVE)
    start(echo_edge, "b", "--model-bandwidth-mbps", "1")
    with pytest.raises(ModelsOnTheWay):
        fetch(echo_edge, "b", "a", deadline_s=0.01)
    echo_edge.until(lambda: echo_edge.state("b").fetches[0].done_bytes >= MIB)
    echo_edge.executors["b"].kill()
    (part,) = (echo_edge.folder / "b" / "models" / "partial" / "m").rglob("*.part")
    had = part.stat().st_size
    assert had > 0
    start(echo_edge, "b")
    fetch(echo_edge, "b", "a")
    assert echo_edge.state("b").model_bytes_received <= size_of(source) - had
    assert (fetched(echo_edge, "b") / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def rot(file: Path, at: int) -> None:
    """A byte changes and nobody writes: time and size stay."""
    times = file.stat()
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_damaged_files_are_refused_and_had_elsewhere_or_said(echo_edge):
    source = weights_in(root_of(echo_edge, "a") / "m")
    shutil.copytree(source, root_of(echo_edge, "c") / "m")
    for name in ("a", "c", "b"):
        start(echo_edge, name, *SERVE)
    with grpc.insecure_channel(echo_edge.address("a")) as channel:  # so that it has hashed its files
        assert ExecutorFilesStub(channel).Manifest(pb.ManifestRequest(source="m"), timeout=10).ready
    rot(source / "model.safetensors", MIB // 2)
    with pytest.raises(ExecutorRefused, match=r"a: model.safetensors: expected sha256 \w{64}, got \w{64}: refused"):
        fetch(echo_edge, "b", "a")
    assert not fetched(echo_edge, "b").exists()
    fetch(echo_edge, "b", "a", "c")
    good = (root_of(echo_edge, "c") / "m" / "model.safetensors").read_bytes()
    assert (fetched(echo_edge, "b") / "model.safetensors").read_bytes() == good


@contextmanager
def peer(files: dict[str, bytes], claimed: dict[str, str] | None = None) -> Iterator[str]:
    """A real server that offers whatever it likes, and answers any range with all of a file."""
    import hashlib

    class Liar(ExecutorFilesServicer):
        def Manifest(self, request, context):  # noqa: N802
            listed = [
                pb.FileEntry(name=n, size_bytes=len(d), sha256=(claimed or {}).get(n, hashlib.sha256(d).hexdigest()))
                for n, d in files.items()
            ]
            return pb.ManifestResponse(ready=True, files=listed)

        def Read(self, request, context):  # noqa: N802
            yield pb.FilePiece(data=files[request.name] + b"and more")

    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_ExecutorFilesServicer_to_server(Liar(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../../../owned.json", "expected a plain name"),
        ("/owned.json", "expected a plain name"),
        ("pytorch_model.bin", "expected a plain name"),
        ("generation_config.json", "more came than was asked for"),
    ],
)
def test_a_peer_that_offers_what_no_model_has_is_refused_and_nothing_is_written(shared_edge, name, words):
    if "fetches" not in shared_edge.executors:
        start(shared_edge, "fetches")
    address = shared_edge.address("fetches")
    with peer({"config.json": b"{}", "model.safetensors": b"w", name: b"{}"}) as liar:
        spec = FetchSpec(source="lies", holders=(HolderSpec(server="liar", address=liar),))
        with pytest.raises(ExecutorRefused, match=words):
            shared_edge.fleet.fetch(address, (spec,), FENCE, server="fetches", deadline_s=20)
    assert not list(shared_edge.folder.rglob("owned.json*"))
    assert not fetched(shared_edge, "fetches", "lies").exists()


def test_a_list_longer_than_any_message_is_no_reason_to_ask_again(tmp_path):
    cache, stop = ModelCache(tmp_path, max_bytes=2**30), threading.Event()
    giving_up = threading.Timer(8.0, stop.set)
    giving_up.start()
    with (
        peer({"config.json": b"{}"}, {"config.json": "0" * 17 * MIB}) as liar,
        pytest.raises(FetchFailed, match=r"liar: .*larger than max"),
    ):
        Fetcher(cache, stop=stop).fetch([HolderSpec(server="liar", address=liar)], Fetching("m"), kept=set)
    giving_up.cancel()
    cache.close()


def test_a_peer_that_is_busy_for_ever_keeps_other_models_waiting_for_a_while_only(tmp_path, monkeypatch):
    class Busy(ExecutorFilesServicer):
        def Manifest(self, request, context):  # noqa: N802
            names = ("config.json", "model.safetensors")
            return pb.ManifestResponse(
                ready=True, files=[pb.FileEntry(name=n, size_bytes=1, sha256="0" * 64) for n in names]
            )

        def Read(self, request, context):  # noqa: N802
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "come back")

    monkeypatch.setattr("epara_executors.weights.fetch.BUSY_PATIENCE_S", 1.5, raising=False)
    cache, stop = ModelCache(tmp_path, max_bytes=2**30), threading.Event()
    giving_up = threading.Timer(8.0, stop.set)
    giving_up.start()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_ExecutorFilesServicer_to_server(Busy(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with pytest.raises(FetchFailed, match="busy: come back"):
        Fetcher(cache, stop=stop).fetch([HolderSpec(server="busy", address=address)], Fetching("m"), kept=set)
    server.stop(0)
    giving_up.cancel()
    cache.close()


def test_requests_that_leave_the_folder_are_refused_by_the_peer(echo_edge):
    weights_in(root_of(echo_edge, "a") / "m")
    (root_of(echo_edge, "a") / "secret.json").write_text("{}")
    start(echo_edge, "a", *SERVE)
    with grpc.insecure_channel(echo_edge.address("a")) as channel:
        stub = ExecutorFilesStub(channel)

        def refused(**request):
            with pytest.raises(grpc.RpcError) as caught:
                list(stub.Read(pb.ReadRequest(offset=0, length=10, **request), timeout=10))
            return caught.value

        for source in ("..", "/", "m/..", "../root-a/m", ""):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Manifest(pb.ManifestRequest(source=source), timeout=10)
            assert "expected a relative path" in caught.value.details()
            assert "expected a relative path" in refused(source=source, revision="r", name="config.json").details()
        said = stub.Manifest(pb.ManifestRequest(source="m"), timeout=10)
        assert sorted(f.name for f in said.files) == ["config.json", "model.safetensors"]
        revision = Manifest(files=tuple(entries(said))).revision
        for name in ("../secret.json", "pytorch_model.bin", str(root_of(echo_edge, "a") / "secret.json")):
            error = refused(source="m", revision=revision, name=name)
            assert (error.code(), "no file" in error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, True)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Read(pb.ReadRequest(source="m", revision=revision, name="config.json", offset=-1, length=1)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def entries(said):
    from epara_executors.weights.files import FileEntry

    return [FileEntry(name=f.name, size_bytes=f.size_bytes, sha256=f.sha256) for f in said.files]


def test_a_peer_whose_readers_are_many_is_asked_again_until_one_has_left(echo_edge):
    weights_in(root_of(echo_edge, "a") / "m", mib=40.0)
    weights_in(root_of(echo_edge, "a") / "n", mib=0.1)
    start(echo_edge, "a", *SERVE, "--model-bandwidth-mbps", "40")
    start(echo_edge, "b")
    with grpc.insecure_channel(echo_edge.address("a")) as channel:
        stub = ExecutorFilesStub(channel)
        revision = Manifest(files=tuple(entries(stub.Manifest(pb.ManifestRequest(source="m"))))).revision
        request = pb.ReadRequest(source="m", revision=revision, name="model.safetensors", offset=0, length=40 * MIB)
        readers = [stub.Read(request) for _ in range(4)]
        for reader in readers:
            next(reader)  # it has half a minute to go
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.Read(request))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(ModelsOnTheWay):
            fetch(echo_edge, "b", "a", source="n", deadline_s=0.01)
        echo_edge.until(lambda: echo_edge.state("b").fetches[0].state == "waiting")
        assert "4 peers read here already" in (echo_edge.folder / "b.log").read_text()
        readers[0].cancel()
        fetch(echo_edge, "b", "a", source="n")
        for reader in readers:
            reader.cancel()
    assert fetched(echo_edge, "b", "n").exists()


def test_the_cache_keeps_its_limit_and_what_runs(echo_edge):
    for i, name in enumerate(("m", "n", "o")):
        weights_in(root_of(echo_edge, "a") / name, mib=1.0, seed=i)
    start(echo_edge, "a", *SERVE)
    start(echo_edge, "b", "--model-cache-gib", str(2.5 / 1024))
    group = echo_edge.group("b", echo_edge.tenant(source="m"))  # an echo worker takes any source
    fetch(echo_edge, "b", "a")
    echo_edge.apply("b", group)
    second, third = Fence(epoch=1, generation=2), Fence(epoch=1, generation=3)
    fetch(echo_edge, "b", "a", source="n", fence=second)
    fetch(echo_edge, "b", "a", source="o", fence=third)
    assert [n for n in ("m", "n", "o") if fetched(echo_edge, "b", n).exists()] == ["m", "o"]
    with pytest.raises(ExecutorRefused, match=r"model n: no room in .*: it needs \d+ bytes more beside \d+ that run"):
        fetch(echo_edge, "b", "a", source="n", fence=third)  # asked for together with o, which stays
    spec = CommitSpec(server="b", groups=(), routes=(), peers=(), plan_json="{}")
    fourth = Fence(epoch=1, generation=4)
    echo_edge.fleet.commit(echo_edge.address("b"), spec, fourth, deadline_s=10)
    echo_edge.fleet.retire(echo_edge.address("b"), ("g0",), fourth, deadline_s=10)
    fetch(echo_edge, "b", "a", source="n", fence=fourth)
    assert [n for n in ("m", "n", "o") if fetched(echo_edge, "b", n).exists()] == ["m", "n"]  # m left last


def test_leaving_waits_for_no_fetch_and_no_reader(echo_edge):
    weights_in(root_of(echo_edge, "a") / "m", mib=4.0)
    start(echo_edge, "a", *SERVE, "--model-bandwidth-mbps", "1")
    start(echo_edge, "b")
    errors = []

    def wait_for_it():
        try:
            fetch(echo_edge, "b", "a")
        except FleetError as e:
            errors.append(str(e))

    waiting = threading.Thread(target=wait_for_it)
    waiting.start()
    echo_edge.until(lambda: any(f.done_bytes >= MIB for f in echo_edge.state("b").fetches))
    assert echo_edge.executors["b"].stop(timeout_s=15) == 0
    assert echo_edge.executors["a"].stop(timeout_s=15) == 0
    waiting.join()
    assert len(errors) == 1


@pytest.mark.parametrize("leaves_after_s", [0.0, 0.5])
def test_an_executor_that_leaves_waits_for_no_silent_peer_and_asks_nobody_else(tmp_path, leaves_after_s):
    cache, stop = ModelCache(tmp_path, max_bytes=2**30), threading.Event()
    fetcher = Fetcher(cache, stop=stop)
    leaving = threading.Timer(leaves_after_s, stop.set)
    leaving.start()
    if not leaves_after_s:
        leaving.join()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        holder = HolderSpec(server="a", address=f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(Stopped):
            fetcher.fetch([holder, holder], Fetching("m"), kept=set)
        assert time.monotonic() - began < 3.0
    cache.close()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as its library asks for: what a repository has, and its files, whole or from some byte on."""

    files: dict[str, bytes]
    cut_after: list[int]  # bytes after which a connection breaks, one per request of a large file
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._file(send=False)

    def do_GET(self):
        if self.path.startswith("/api/models/org/name"):
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.files.items()]
            info = {"id": "org/name", "sha": "c" * 40, "siblings": [{"rfilename": n} for n in self.files]}
            self._answer(200, json.dumps(tree if "/tree/" in self.path else info).encode())
        else:
            self._file(send=True)

    def _file(self, *, send):
        data = self.files.get(self.path.split("?")[0].rpartition("/")[2])
        if data is None:
            self._answer(404, b"{}")
            return
        first = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        self._answer(206 if first else 200, data[first:], send=send, whole=len(data), first=first)

    def _answer(self, status, data, *, send=True, whole=0, first=0):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{whole}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        self.end_headers()
        if send and len(data) > MIB and self.cut_after:
            self.wfile.write(data[: self.cut_after.pop(0)])
            self.close_connection = True
        elif send:
            self.wfile.write(data)
            type(self).sent += len(data) if whole > MIB else 0


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on loopback with one repository, org/name."""
    made = weights_in(tmp_path / "published", mib=2.0)
    files = {f.name: f.read_bytes() for f in made.iterdir()}
    handler = type("Handler", (Hub,), {"files": files, "cut_after": [], "sent": 0})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield handler
    server.shutdown()
    server.server_close()


def test_the_hub_is_the_last_that_is_asked_and_its_files_count_once_they_are_whole(echo_edge, hub):
    start(echo_edge, "b", "--allow-remote-hub", *SERVE)
    with pytest.raises(ExecutorRefused, match=r"b: model org/absent: not here; hub: .*404 Not Found"):
        fetch(echo_edge, "b", "b", source="org/absent")
    hub.cut_after.append(MIB)
    fetch(echo_edge, "b", "b", source="org/name")
    there = fetched(echo_edge, "b", "org%2Fname")
    assert sorted(f.name for f in there.iterdir()) == ["config.json", "model.safetensors"]
    assert (there / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert hub.sent <= len(hub.files["model.safetensors"]) - MIB // 2  # it went on where it was cut off
    assert echo_edge.state("b").model_bytes_received >= len(hub.files["model.safetensors"])
    assert not (echo_edge.folder / "b" / "models" / "partial" / "org%2Fname").exists()


def test_the_cap_holds_the_hubs_library_too(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it may have been read already
    from epara_executors.weights.bucket import TokenBucket
    from epara_executors.weights.hub import paced_bar
    from huggingface_hub import snapshot_download

    waited, came = [], []
    bar = paced_bar(TokenBucket(1e6, burst_bytes=1, clock=lambda: sum(waited)), wait=waited.append, say=came.append)
    endpoint = os.environ["HF_ENDPOINT"]
    snapshot_download("org/name", local_dir=tmp_path / "l", endpoint=endpoint, tqdm_class=bar, max_workers=1)
    total = sum(len(d) for d in hub.files.values())
    assert sum(c["received"] for c in came) == total
    assert sum(waited) == pytest.approx(total / 1e6, rel=0.01)


def test_a_plan_that_needs_a_model_has_it_fetched_before_anything_is_touched(echo_edge):
    small, catalogue = small_edge()
    for name in small.servers:
        start(echo_edge, name, *SERVE, "--devices", "cpu:2")
    weights_in(root_of(echo_edge, "c") / "m")
    label = small.services["label"]
    edge = replace(
        small,
        device_types={"gpu": replace(small.device_types["gpu"], kind=DeviceKind.CPU)},
        servers={n: replace(s, address=echo_edge.address(n)) for n, s in small.servers.items()},
        services={
            **small.services,
            "label": replace(label, model=replace(label.model, source="m", profile="models/label")),
        },
        demand=tuple(d for d in small.demand if d.service == "label"),
    )
    problem = build_problem(edge, catalogue, demand=edge.demand)
    plan = FirstFitPlanner().plan(problem, generation=1, time_limit_s=1.0)
    (host,) = {r.server for r in plan.replicas}
    assert host != "c"
    told = []
    done = apply(plan, None, edge, catalogue, echo_edge.fleet, FENCE, on_progress=told.append)
    assert [(p.stage, p.kind, p.server) for p in told[:2]] == [(0, "fetch", host)] * 2
    assert done.fetch_s > 0.0
    assert echo_edge.state(host).model_bytes_received == size_of(root_of(echo_edge, "c") / "m")
    assert [r.state for r in echo_edge.state(host).replicas] == ["live"] * len(plan.replicas)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from Linux")
def test_a_real_model_comes_from_a_peer_is_loaded_and_answers_and_the_agent_hardly_grows(echo_edge, tiny_root):
    shutil.copytree(tiny_root / "tiny-bert", root_of(echo_edge, "a") / "tiny-bert")
    start(echo_edge, "a", *SERVE)
    start(echo_edge, "b", "--worker", "torch")
    tenant = echo_edge.tenant("embed", source="tiny-bert")
    group = echo_edge.group("b", tenant)
    agent = psutil.Process(echo_edge.executors["b"].pid)
    before = agent.memory_info().rss
    fetch(echo_edge, "b", "a", source="tiny-bert")
    echo_edge.until(lambda: agent.memory_info().rss <= before + 5 * MIB)
    echo_edge.apply("b", group)
    answer = echo_edge.client("b").infer("embed", {"text": np.array([b"hello"], np.object_)})
    assert answer.outputs["embedding"].shape[0] == 1
