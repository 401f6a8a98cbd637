"""What may travel, what a model's files are called, and a cache that keeps its limit. No network."""

import os
import threading
from pathlib import Path

import pytest
from epara_executors.weights.bucket import TokenBucket
from epara_executors.weights.cache import ModelCache, NoRoom, fetched_folder
from epara_executors.weights.fetch import Fetcher, FetchFailed, Fetching
from epara_executors.weights.files import (
    BadManifest,
    FileEntry,
    Manifest,
    hub_folder,
    is_model,
    is_plain,
    local_folder,
    may_travel,
    travelling,
)
from epara_executors.weights.offer import NotOffered, Offer

from epara_opt.errors import FleetError

SHA = "0" * 64


def model_in(folder: Path, num_bytes: int = 100) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(num_bytes))
    return folder


def manifest_of(num_bytes: int = 10, sha256: str = SHA) -> Manifest:
    sizes = {"config.json": 2, "model.safetensors": num_bytes}
    return Manifest(files=tuple(FileEntry(name=n, size_bytes=s, sha256=sha256) for n, s in sizes.items()))


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model-00001-of-00002.safetensors", "tokenizer.json", "merges.txt", "tokenizer.model",
     "chat_template.jinja", "model.pt2", "1_Pooling/config.json"],
)  # fmt: skip
def test_files_of_models_may_travel(name):
    assert may_travel(name)


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "optimizer.pkl", "modeling_x.py", "weights.npz", "notes.txt", "../config.json",
     "/etc/x.json", "a/../../x.json", ".cache/x.json", "a//x.json", "a/b/c/d.json", "x.json\n", "x.json\0", "..",
     "a\\..\\x.json", ""],
)  # fmt: skip
def test_nothing_else_may(name):
    assert not may_travel(name)
    with pytest.raises(BadManifest, match="expected a plain name"):
        FileEntry(name=name, size_bytes=1, sha256=SHA)


@pytest.mark.parametrize("source", ["models/tiny", "org/name", "a.b-c_d+e"])
def test_plain_sources_are_fetched(source):
    assert is_plain(source)


@pytest.mark.parametrize("source", ["/abs", "../up", "a/../b", "a/./b", ".hidden", "", "a//b", "a\0b", "x" * 201])
def test_other_sources_are_not(source, tmp_path):
    assert not is_plain(source)
    assert fetched_folder(tmp_path, source) is None
    cache = ModelCache(tmp_path / "cache", max_bytes=1000)
    with pytest.raises(NotOffered, match="expected a relative path"):
        Offer(tmp_path, cache).manifest(source)
    with pytest.raises(FetchFailed, match="only relative paths"):
        Fetcher(cache).fetch((), Fetching(source), kept=set)
    cache.close()


def test_a_model_is_a_config_with_safetensors_or_an_exported_program():
    assert is_model(["config.json", "model.safetensors"])
    assert is_model(["tensors.json", "model.pt2"])
    for names in (["config.json"], ["model.safetensors"], ["tensors.json"], ["config.json", "model.pt2"]):
        assert not is_model(names)
    with pytest.raises(BadManifest, match="expected a SHA-256"):
        FileEntry(name="config.json", size_bytes=1, sha256="short")
    with pytest.raises(BadManifest, match="size >= 0, got -1"):
        FileEntry(name="config.json", size_bytes=-1, sha256=SHA)


def test_a_revision_is_of_names_sizes_and_hashes_in_any_order():
    one = manifest_of()
    assert Manifest(files=one.files[::-1]).revision == one.revision
    assert manifest_of(11).revision != one.revision
    assert manifest_of(sha256="1" * 64).revision != one.revision


def test_links_out_of_the_model_root_and_pickles_are_left_out_of_what_is_offered(tmp_path):
    root = tmp_path / "root"
    folder = model_in(root / "m")
    (tmp_path / "secret.json").write_text("{}")
    (folder / "generation_config.json").symlink_to(tmp_path / "secret.json")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    blob = root / "blobs" / "b"
    blob.parent.mkdir()
    blob.write_text("{}")
    (folder / "tokenizer.json").symlink_to(blob)  # as the hub's own cache does
    assert [n for n, _ in travelling(folder, [root])] == ["config.json", "model.safetensors", "tokenizer.json"]


def test_local_folders_are_found_as_before_and_the_hubs_own_cache_too(tmp_path, monkeypatch):
    folder = model_in(tmp_path / "m")
    assert local_folder("m", tmp_path) == folder
    assert local_folder(str(folder), Path("elsewhere")) == folder
    assert local_folder("absent", tmp_path) is None
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub_folder("org/name") is None
    model = tmp_path / "hub" / "models--org--name"
    there = model_in(model / "snapshots" / "abc")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc")
    assert hub_folder("org/name") == there


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_holds_any_flow_to_its_rate_after_the_burst():
    clock = Clock()
    bucket = TokenBucket(1000.0, burst_bytes=500, clock=clock)
    for _ in range(100):
        clock.now_s += bucket.wait_s(70)
    assert clock.now_s == pytest.approx((7000 - 500) / 1000.0)
    clock.now_s += 60.0  # what was not used is lost beyond the burst
    assert bucket.wait_s(500) == 0.0
    assert bucket.wait_s(100) == pytest.approx(0.1)
    assert TokenBucket(0.0, burst_bytes=1, clock=clock).wait_s(10**12) == 0.0


def came(cache: ModelCache, source: str, num_bytes: int, used_at: float) -> Path:
    """A model of so many bytes in the cache, used at that time."""
    manifest = manifest_of(num_bytes)
    folder = cache.partial(source, manifest.revision)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(num_bytes))
    there = cache.adopt(source, manifest)
    os.utime(there, (used_at, used_at))
    return there


def test_room_is_made_by_what_was_used_longest_ago_and_never_by_what_is_kept(tmp_path):
    cache = ModelCache(tmp_path, max_bytes=400, free_bytes=0)
    for i, name in enumerate(("a", "b", "org/c")):
        came(cache, name, 98, used_at=1000.0 + i)
    assert cache.used_bytes() == 300
    cache.make_room(100, source="new", kept=set())
    assert cache.current("a") is not None  # it fits
    cache.make_room(200, source="new", kept={"a"})
    assert [n for n in ("a", "b", "org/c") if cache.current(n)] == ["a", "org/c"]
    cache.touch(["a"])
    cache.make_room(300, source="new", kept=set())
    assert [n for n in ("a", "b", "org/c") if cache.current(n)] == ["a"]
    with pytest.raises(NoRoom, match=r"needs 350 bytes more beside 100 that run or come; the cache may have 400"):
        cache.make_room(350, source="new", kept={"a"})
    assert cache.current("a") is not None
    cache.close()


def test_what_is_being_fetched_counts_and_stays_while_older_attempts_go(tmp_path):
    cache = ModelCache(tmp_path, max_bytes=300, free_bytes=0)
    for source in ("mine", "theirs"):
        (cache.partial(source, "r") / "model.safetensors.part").write_bytes(bytes(100))
    cache.make_room(150, source="mine", kept=set())
    assert (cache.partial("mine", "r") / "model.safetensors.part").exists()
    assert not (cache.partial("theirs", "r") / "model.safetensors.part").exists()
    cache.close()


def test_a_full_disk_is_said_before_anything_is_removed(tmp_path):
    cache = ModelCache(tmp_path, max_bytes=2**62, free_bytes=2**61)
    came(cache, "a", 98, used_at=1.0)
    with pytest.raises(NoRoom, match="the disk has 0 to give"):
        cache.make_room(1, source="new", kept=set())
    assert cache.current("a") is not None
    cache.close()


def test_another_revision_takes_over_at_once_and_the_old_one_is_removed_first(tmp_path):
    cache = ModelCache(tmp_path, max_bytes=300, free_bytes=0)
    old = came(cache, "m", 98, used_at=1.0)
    new = came(cache, "m", 97, used_at=2.0)
    assert fetched_folder(tmp_path, "m") == new
    assert cache.manifest("m") == manifest_of(97)
    assert old.exists()  # somebody may have it open
    cache.make_room(200, source="other", kept=set())
    assert not old.exists()
    assert fetched_folder(tmp_path, "m") == new
    cache.close()


def test_a_cache_has_one_owner(tmp_path):
    cache = ModelCache(tmp_path, max_bytes=1)
    with pytest.raises(FleetError, match="expected no other executor in it"):
        ModelCache(tmp_path, max_bytes=1)
    cache.close()
    ModelCache(tmp_path, max_bytes=1).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetError, match="expected a folder that can be written"):
        ModelCache(tmp_path / "file", max_bytes=1)


def test_hashes_are_remembered_until_a_file_changes_and_unlisted_files_are_not_opened(tmp_path, monkeypatch):
    root = tmp_path / "root"
    weights = model_in(root / "m") / "model.safetensors"
    cache = ModelCache(tmp_path / "cache", max_bytes=10**6)
    offer = Offer(root, cache)
    with pytest.raises(NotOffered, match="ask for them first"):
        offer.open("m", "any", "config.json")
    first = offer.manifest("m")
    again = Offer(root, cache)  # a restart
    monkeypatch.setattr("epara_executors.weights.offer.sha256_of", lambda *_, **__: pytest.fail("read again"))
    assert again.manifest("m") == first
    with again.open("m", first.revision, "config.json") as file:
        assert file.read() == b"{}"
    with pytest.raises(NotOffered, match="expected revision"):
        again.open("m", "other", "config.json")
    for name in ("../secret.json", "absent.json", "/etc/passwd"):
        with pytest.raises(NotOffered, match="no file"):
            again.open("m", first.revision, name)
    monkeypatch.undo()
    weights.write_bytes(b"other")
    with pytest.raises(NotOffered, match="have changed"):
        again.open("m", first.revision, "config.json")
    assert again.manifest("m").revision != first.revision
    cache.close()


def test_two_who_ask_at_once_have_it_hashed_once(tmp_path, monkeypatch):
    import epara_executors.weights.offer as module

    root = tmp_path / "root"
    model_in(root / "m")
    cache = ModelCache(tmp_path / "cache", max_bytes=10**6)
    offer = Offer(root, cache)
    started, go_on, read = threading.Event(), threading.Event(), []
    real = module.sha256_of

    def slow(file, **more):
        read.append(file.name)
        started.set()
        go_on.wait(10)
        return real(file, **more)

    monkeypatch.setattr(module, "sha256_of", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(offer.manifest("m"))) for _ in range(2)]
    threads[0].start()
    started.wait(10)
    assert offer.progress("m") == (0, 102)
    threads[1].start()
    go_on.set()
    for t in threads:
        t.join()
    assert found[0] == found[1]
    assert sorted(read) == ["config.json", "model.safetensors"]
    cache.close()
