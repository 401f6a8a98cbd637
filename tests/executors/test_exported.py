"""Programs of torch.export: served as the direct call answers, refused with words, and never trusted."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from epara_executors.profiler import profile_model
from epara_executors.runners.archive import PROGRAM, checked_archive, open_program
from epara_executors.runners.batches import OnePassRunner
from epara_executors.runners.contract import LoadError, Request
from epara_executors.runners.registry import open_one_pass
from epara_executors.worker.launch import Launcher
from epara_executors.worker.ranks import alone

ROWS = torch.export.Dim("rows", min=1, max=64)
X = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
Y = {"name": "y", "datatype": "FP32", "shape": [-1, 4]}


def runner_of(root: Path, source: str) -> OnePassRunner:
    return open_one_pass("tensor", source, root, torch.device("cpu"), alone())


class Calls(torch.nn.Module):
    """A module out of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self._function(x)


def write(
    folder: Path, module: torch.nn.Module, tensors: Any = None, *, example: Any = None, shapes: Any = None
) -> Path:
    folder.mkdir()
    given = example or (torch.zeros(2, 4),)
    program = torch.export.export(module, given, dynamic_shapes=shapes or tuple({0: ROWS} for _ in given))
    torch.export.save(program, folder / "model.pt2")
    (folder / "tensors.json").write_text(json.dumps(tensors or {"inputs": [X], "outputs": [Y]}))
    return folder


def test_outputs_equal_the_direct_call_alone_and_batched(tiny_root: Path) -> None:
    runner = runner_of(tiny_root, "tiny-mlp")
    module = torch.export.load(tiny_root / "tiny-mlp" / "model.pt2").module()
    rng = np.random.default_rng(5)
    given = [rng.standard_normal((rows, 256), dtype=np.float32) for rows in (1, 3, 2)]
    together = runner.run([Request(str(i), {"x": x}) for i, x in enumerate(given)])
    for x, answer in zip(given, together, strict=True):
        (single,) = runner.run([Request("alone", {"x": x})])
        with torch.inference_mode():
            direct = module(torch.from_numpy(x)).numpy()
        np.testing.assert_array_equal(single.outputs["y"], direct)
        np.testing.assert_allclose(answer.outputs["y"], direct, atol=1e-5)


def test_several_arguments_and_results_keep_their_order_and_types(tmp_path: Path) -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(8, 4)
            self.register_buffer("scale", torch.full((4,), 2.0))

        def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
            joined = x * self.scale + self.table(ids).sum(1)
            return {"joined": joined, "best": joined.argmax(1)}

    module = Both().eval()
    ids = {"name": "ids", "datatype": "INT64", "shape": [-1, -1]}
    best = {"name": "best", "datatype": "INT64", "shape": [-1]}
    width = torch.export.Dim("width", min=1, max=32)
    write(
        tmp_path / "both",
        module,
        {"inputs": [X, ids], "outputs": [{**Y, "name": "joined"}, best]},
        example=(torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.int64)),
        shapes=({0: ROWS}, {0: ROWS, 1: width}),
    )
    runner = runner_of(tmp_path, "both")
    rng = np.random.default_rng(6)
    x, tokens = rng.standard_normal((2, 4), dtype=np.float32), rng.integers(0, 8, (2, 5))
    (answer,) = runner.run([Request("r", {"ids": tokens, "x": x})])
    with torch.inference_mode():
        direct = module(torch.from_numpy(x), torch.from_numpy(tokens))
    np.testing.assert_allclose(answer.outputs["joined"], direct["joined"].numpy(), atol=1e-5)
    np.testing.assert_array_equal(answer.outputs["best"], direct["best"].numpy())
    assert runner.parameter_bytes == 8 * 4 * 4 + 4 * 4


def test_a_batch_beyond_what_was_exported_is_an_error_of_that_batch(tmp_path: Path) -> None:
    write(tmp_path / "m", Calls(torch.relu))
    (answer,) = runner_of(tmp_path, "m").run([Request("r", {"x": np.zeros((65, 4), np.float32)})])
    assert answer.code == "INTERNAL"
    assert "expected a batch of at most 64 rows, as it was exported, got 65" in answer.message


def test_weights_and_devices_named_in_operators_move_together(tmp_path: Path) -> None:
    write(tmp_path / "m", Calls(lambda x: x + torch.ones(4)))
    meta = torch.device("meta")
    runner = open_one_pass("tensor", "m", tmp_path, meta, alone())
    assert runner.forward({"x": torch.zeros(3, 4, device=meta)})["y"].device == meta


BAD = {
    "other datatype": (
        {"inputs": [{**X, "datatype": "INT64"}], "outputs": [Y]},
        "x: expected datatype FP32 of the pro",
    ),
    "other width": (
        {"inputs": [{**X, "shape": [-1, 5]}], "outputs": [Y]},
        r"x: expected the program's shape \[s\d+, 4\]",
    ),
    "open where fixed": ({"inputs": [X], "outputs": [{**Y, "shape": [-1, -1]}]}, r"y: expected the program's shape"),
    "one too many": (
        {"inputs": [X, {**X, "name": "z"}], "outputs": [Y]},
        "inputs: expected 1, as the program has, got 2",
    ),
    "no rows": ({"inputs": [{**X, "shape": [2, 4]}], "outputs": [Y]}, r"inputs\[0\].shape: expected -1 for the rows"),
    "no such type": (
        {"inputs": [{**X, "datatype": "BF16"}], "outputs": [Y]},
        "datatype: expected one of BOOL, .*got BF16",
    ),
    "twice": ({"inputs": [X], "outputs": [Y, Y]}, "outputs: expected distinct names, got y, y"),
    "nothing made": ({"inputs": [X], "outputs": []}, "outputs: expected a list of at least one tensor"),
    "unknown key": ({"inputs": [{**X, "size": 4}], "outputs": [Y]}, r"inputs\[0\]: expected name, datatype and shape"),
    "a side missing": ({"inputs": [X]}, "expected inputs and outputs and nothing else"),
}


@pytest.mark.parametrize(("tensors", "words"), BAD.values(), ids=BAD)
def test_a_declaration_that_the_program_does_not_keep_is_refused(tmp_path: Path, tensors: Any, words: str) -> None:
    write(tmp_path / "m", Calls(torch.relu), tensors)
    with pytest.raises(LoadError, match=words):
        runner_of(tmp_path, "m")


def test_a_fixed_first_dimension_is_refused_with_the_remedy(tmp_path: Path) -> None:
    write(tmp_path / "m", Calls(torch.relu), shapes=({},))
    with pytest.raises(
        LoadError, match=r"the program has 2; export it with dynamic_shapes naming a torch\.export\.Dim"
    ):
        runner_of(tmp_path, "m")


def test_a_program_that_makes_other_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "m", Calls(lambda x: torch.cat([x, x])))
    with pytest.raises(
        LoadError, match="y: expected a first dimension that any number of rows fits, the program has 2"
    ):
        runner_of(tmp_path, "m")


def test_rows_that_see_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m", Calls(lambda x: x - x.mean(0)))
    with pytest.raises(LoadError, match="model m: y: expected rows that do not depend on the others of their batch"):
        runner_of(tmp_path, "m")


def test_a_program_that_keeps_state_is_refused(tmp_path: Path) -> None:
    class Counts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            return x + self.seen

    write(tmp_path / "m", Counts())
    with pytest.raises(
        LoadError, match="model m: expected a program without state, this one writes to its buffer seen"
    ):
        runner_of(tmp_path, "m")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"model m: no folder .*/m with model\.pt2 and tensors\.json"):
        runner_of(tmp_path, "m")
    folder = write(tmp_path / "m", Calls(torch.relu))
    (folder / "model.pt2").rename(folder / "other.pt2")
    with pytest.raises(LoadError, match=r"model\.pt2: expected an archive of torch\.export\.save, found no such file"):
        runner_of(tmp_path, "m")
    (folder / "model.pt2").write_bytes(b"not a zip file")
    with pytest.raises(LoadError, match=r"model\.pt2: expected an archive of torch\.export\.save: BadZipFile"):
        runner_of(tmp_path, "m")
    (folder / "tensors.json").unlink()
    with pytest.raises(LoadError, match=r"tensors\.json: expected the names, .* found no such file"):
        runner_of(tmp_path, "m")


# What an archive must not be able to do


class Touch:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def tampered(file: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(file) as given:
        root = given.namelist()[0].split("/")[0]
        records = {name.removeprefix(f"{root}/"): given.read(name) for name in given.namelist()}
    change(records)
    with zipfile.ZipFile(file, "w") as made:
        for name, data in records.items():
            made.writestr(f"{root}/{name}", data)
    return file


def edited(change: Callable[[Any], None], record: str = PROGRAM) -> Callable[[dict[str, bytes]], None]:
    def apply(records: dict[str, bytes]) -> None:
        document = json.loads(records[record])
        change(document)
        records[record] = json.dumps(document).encode()

    return apply


def test_pickled_samples_and_guards_are_left_out(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    file = write(tmp_path / "m", Calls(torch.relu)) / "model.pt2"

    def poison(records: dict[str, bytes]) -> None:
        records["data/sample_inputs/model.pt"] = pickle.dumps(Touch(trace))
        edited(lambda d: d.update(guards_code=[f"__import__('os').mkdir({str(trace)!r})"]))(records)

    open_program(tampered(file, poison)).module()(torch.zeros(3, 4))
    assert not trace.exists()


def _first_node(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"][0]


def _first_size(document: Any) -> Any:
    values = document["graph_module"]["graph"]["tensor_values"]
    return next(v["sizes"][0]["as_expr"] for v in values.values() if "as_expr" in v["sizes"][0])


CONTEXT = json.dumps({"__enum__": True, "fqn": "os:system"})
ENUM = json.dumps([1, {"type": "builtins.dict", "context": CONTEXT, "children_spec": []}])
ATTACKS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a dotted name": (
        lambda d: _first_node(d).update(target="torch.os.system"),
        "target: expected an operator of ATen",
    ),
    "files": (
        lambda d: _first_node(d).update(target="torch.ops.aten.from_file.default"),
        "operator of ATen without files",
    ),
    "saving": (lambda d: _first_node(d).update(target="torch.ops.aten.save.default"), "operator of ATen without files"),
    "other libraries": (
        lambda d: _first_node(d).update(target="torch.ops.mine.op.default"),
        "target: expected an operator",
    ),
    "an expression": (
        lambda d: _first_size(d).update(expr_str="__import__('os')"),
        "expr_str: expected arithmetic of sym",
    ),
    "one in pieces": (
        lambda d: _first_size(d).update(expr_str="Add('__imp' 'ort__')"),
        "expr_str: expected arithmetic",
    ),
    "a name": (lambda d: _first_node(d).update(name="x=__import__('os')"), "name: expected a name, got"),
    "an import": (
        lambda d: d["graph_module"]["module_call_graph"][0]["signature"].update(in_spec=ENUM),
        "in_spec: expected tuples, lists and mappings",
    ),
    "words": (lambda d: d.update(torch_version="f()"), "torch_version: expected plain words, got 'f\\(\\)'"),
}


@pytest.mark.parametrize(("change", "words"), ATTACKS.values(), ids=ATTACKS)
def test_words_that_could_run_are_refused(tmp_path: Path, change: Callable[[Any], Any], words: str) -> None:
    file = write(tmp_path / "m", Calls(torch.relu)) / "model.pt2"
    with pytest.raises(LoadError, match=words):
        checked_archive(tampered(file, edited(change)))


def test_a_weight_that_only_unpickling_reads_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "m", torch.nn.Linear(4, 4)) / "model.pt2"

    def pickled(document: Any) -> None:
        document["config"]["weight"]["use_pickle"] = True

    with pytest.raises(
        LoadError, match="weight: expected a plain tensor, got weight_0, which only unpickling could read"
    ):
        checked_archive(tampered(file, edited(pickled, "data/weights/model_weights_config.json")))


# In a worker


def test_a_worker_describes_and_serves_it(worker_of: Any) -> None:
    worker = worker_of()
    loaded = worker.load(worker.tenant("tiny-mlp", "tensor"))["tiny-mlp@g"]
    assert loaded.fields["inputs"] == [["x", "FP32", [-1, 256]]]
    assert loaded.fields["outputs"] == [["y", "FP32", [-1, 256]]]
    worker.send("1", "tiny-mlp", {"x": np.ones((1, 256), np.float32)}, {"x": np.zeros((2, 256), np.float32)})
    _, (ones, zeros) = worker.result()
    assert (ones["y"].shape, zeros["y"].shape) == ((1, 256), (2, 256))


def test_it_is_profiled_on_one_device_and_on_no_more(launcher: Launcher) -> None:
    told: list[str] = []
    rows = list(
        profile_model(
            "tiny-mlp",
            "tensor",
            "box",
            model_root=Path("unused-with-a-launcher"),
            launcher=launcher,
            shapes=((1, 1), (2, 1)),
            batches=(1, 4),
            budget_s=0.1,
            progress=told.append,
        )
    )
    assert [(r.tp, r.batch) for r in rows] == [(1, 1), (1, 4)]
    assert "skipped, model tiny-mlp: exported programs run on one device only" in told[-1].text
