"""From a source to a model in evaluation mode: a local folder or a hub id, safetensors only, no code of theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging as transformers_logging

from epara_executors.runners.contract import LoadError
from epara_executors.weights.files import local_folder


def locate(source: str, model_root: Path) -> str:
    """The folder under `model_root` (or an absolute one) if there is one, else the source as a hub id."""
    folder = local_folder(source, model_root)
    return source if folder is None else str(folder)


def read_config(source: str, model_root: Path) -> PreTrainedConfig:
    """The model's config. Raises LoadError that names the source and what was tried."""
    transformers_logging.disable_progress_bar()
    place = locate(source, model_root)
    try:
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(place, trust_remote_code=False))
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(_explained(source, model_root, error)) from error


def read_model(auto_class: Any, source: str, model_root: Path, config: PreTrainedConfig) -> torch.nn.Module:
    """Weights from safetensors, in the dtype they were saved in, in evaluation mode on the CPU."""
    try:
        model = auto_class.from_pretrained(
            locate(source, model_root), config=config, use_safetensors=True, trust_remote_code=False, dtype="auto"
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise LoadError(_explained(source, model_root, error)) from error
    return cast("torch.nn.Module", model).eval().requires_grad_(False)


def read_tokenizer(source: str, model_root: Path) -> Any:
    """The source's own tokenizer."""
    try:
        return AutoTokenizer.from_pretrained(locate(source, model_root), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(_explained(source, model_root, error)) from error


def image_size(source: str, model_root: Path, config: PreTrainedConfig) -> tuple[int, int]:
    """Height and width the model was made for: of its preprocessor if it says so, else of its config.

    (-1, -1) where neither says: then any size is taken, and requests of one size run together.
    """
    file = Path(locate(source, model_root)) / "preprocessor_config.json"
    sizes: list[Any] = []
    if file.is_file():
        try:
            described = cast("dict[str, Any]", json.loads(file.read_text()))
        except json.JSONDecodeError as error:
            raise LoadError(f"{source}: preprocessor_config.json: expected JSON: {error}") from error
        sizes += [described.get("crop_size") if described.get("do_center_crop") else None, described.get("size")]
    sizes.append(getattr(config, "image_size", None))
    for size in sizes:
        match size:
            case {"height": int(height), "width": int(width)}:
                return height, width
            case {"shortest_edge": int(edge)} if "longest_edge" not in size:
                return edge, edge
            case [int(height), int(width)] | (int(height), int(width)):
                return height, width
            case int(edge):
                return edge, edge
            case _:
                continue
    return -1, -1


def parameter_bytes(model: torch.nn.Module) -> int:
    """Weights and buffers, shared ones once."""
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _explained(source: str, model_root: Path, error: Exception) -> str:
    folder = model_root / source
    if folder.is_dir():
        return f"model {source}: folder {folder} cannot be loaded (safetensors only): {_first_line(error)}"
    return f"model {source}: no folder {folder} with a config.json, and not to be had as a hub id: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
