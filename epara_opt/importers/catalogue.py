"""What the generator may choose from: device types, kinds of servers, and services with the models they run.

Device memory is what vendors state less a runtime reserve. Models are those of the shipped profile catalogue
(topologies/profiles/edge-catalogue.csv), where every number names its source. Deadlines are ours, chosen as
such services are used: interactive speech and search under a second, cameras within a few frames, long
documents within a minute.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from epara_opt.domain.profile import ProfileCatalogue
from epara_opt.topology import read_profiles

DEVICE_TYPES: Final[dict[str, dict[str, Any]]] = {
    "a100-sxm-80gb": {"memory_gib": 78.0, "kind": "gpu"},
    "a100-40gb": {"memory_gib": 38.0, "kind": "gpu"},
    "l4": {"memory_gib": 22.0, "kind": "gpu"},
    "a30": {"memory_gib": 22.0, "kind": "gpu"},
    "t4": {"memory_gib": 14.5, "kind": "gpu"},
    "orin-agx": {"memory_gib": 26.0, "kind": "gpu"},
    "orin-nx": {"memory_gib": 12.0, "kind": "gpu"},
    "xavier-nx": {"memory_gib": 5.5, "kind": "gpu"},
    "rpi4": {"memory_gib": 3.0, "kind": "cpu"},
}

# (server kind, devices), in the order in which small edges are furnished
SERVER_MIX: Final[tuple[tuple[str, tuple[tuple[str, int], ...]], ...]] = (
    ("edge-server", (("l4", 8),)),
    ("embedded", (("orin-agx", 2),)),
    ("edge-server", (("a100-sxm-80gb", 2),)),
    ("microcomputer", (("rpi4", 2),)),
    ("edge-server", (("t4", 4), ("a30", 1))),
    ("embedded", (("orin-nx", 2),)),
    ("edge-server", (("a100-40gb", 4),)),
    ("embedded", (("xavier-nx", 1),)),
    ("edge-server", (("l4", 4),)),
    ("microcomputer", (("rpi4", 4),)),
    ("edge-server", (("a30", 2),)),
    ("embedded", (("orin-agx", 1),)),
    ("edge-server", (("t4", 8),)),
    ("embedded", (("orin-nx", 1),)),
)

# bandwidth of a server's links by its kind, in Mb/s; a link is as fast as its slower end
BANDWIDTH_MBPS: Final[dict[str, float]] = {"edge-server": 10_000, "embedded": 1_000, "microcomputer": 300}


def _latency(name: str, profile: str, task: str, slo_ms: float, input_kb: float) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"source": profile, "task": task},
        "sensitivity": "latency",
        "slo_ms": slo_ms,
        "request": {"input_kb": input_kb, "output_kb": 2},
    }


def _chat(name: str, profile: str, slo: dict[str, float], prompt_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"source": profile, "task": "text-generation"},
        "sensitivity": "latency",
        **slo,
        "request": {
            "input_kb": 4,
            "output_kb": 4,
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
        },
    }


def _frames(
    name: str, profile: str, task: str, fps: float, frame_deadline_ms: float, input_kb: float
) -> dict[str, Any]:
    return {
        "name": name,
        "model": {"source": profile, "task": task},
        "sensitivity": "frequency",
        "fps": fps,
        "frame_deadline_ms": frame_deadline_ms,
        "request": {"input_kb": input_kb, "output_kb": 4},
    }


# One list per category, so that small choices still cover all four.
SERVICES: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "latency, single-device": (
        _latency("photo-tag", "resnet50", "image-classification", 60, 110),
        _chat("chat-7b", "llama-2-7b-fp16", {"slo_ms": 9000}, 256, 128),
        _latency("doc-search", "bert-large-384", "feature-extraction", 50, 3),
        _latency("dictation", "rnnt", "automatic-speech-recognition", 300, 320),
        _latency("kiosk-tag", "mobilenet-v3-large", "image-classification", 120, 110),
        _chat("assist-13b", "llama-2-13b-fp16", {"ttft_ms": 500, "tpot_ms": 80}, 256, 192),
        _latency("shelf-scan", "efficientnet-lite0", "image-classification", 150, 110),
        _chat("code-7b", "llama-7b-gptq", {"ttft_ms": 400, "tpot_ms": 60}, 256, 96),
        _latency("plate-find", "ssd-resnet34-1200", "object-detection", 150, 400),
        _latency("voice-command", "rnnt", "automatic-speech-recognition", 150, 100),
    ),
    "frequency, single-device": (
        _frames("traffic-watch", "retinanet-800", "object-detection", 15, 200, 160),
        _frames("crossing-watch", "ssd-mobilenet", "object-detection", 30, 100, 40),
        _frames("robot-eyes", "yolov8s-640", "object-detection", 30, 80, 80),
        _frames("parking-watch", "ssd-resnet34-1200", "object-detection", 10, 400, 300),
        _frames("nest-box", "mobilenet-v2", "image-classification", 5, 400, 60),
        _frames("drone-eyes", "yolov8n-640", "object-detection", 30, 60, 80),
    ),
    "latency, multi-device": (
        _chat("assist-30b", "llama-30b-fp16", {"ttft_ms": 2500, "tpot_ms": 400}, 500, 96),
        _chat("counsel-70b", "llama-2-70b-fp16", {"ttft_ms": 4000, "tpot_ms": 600}, 500, 128),
        _chat("report-30b", "llama-30b-fp16", {"slo_ms": 30000}, 500, 96),
        _chat("summary-70b", "llama-2-70b-fp16", {"slo_ms": 60000}, 1000, 96),
    ),
    "frequency, multi-device": (
        _frames("echo-volume-seg", "3d-unet-brats", "image-segmentation", 30, 700, 400),
        _frames("line-inspect", "yolov9m-1280", "object-detection", 60, 150, 250),
        _frames("ct-seg", "3d-unet-kits19", "image-segmentation", 4, 2500, 4000),
        _frames("weld-inspect", "yolov8m-1280", "object-detection", 60, 120, 250),
    ),
}


def shipped_topologies() -> Path:
    """The folder of example topologies: inside the installed package, or at the root of a source checkout."""
    installed = Path(str(files("epara_opt"))) / "shipped"
    return installed if installed.is_dir() else Path(__file__).resolve().parents[2] / "topologies"


def shipped_profiles() -> Path:
    """The file of profiles that the generator's services need."""
    return shipped_topologies() / "profiles" / "edge-catalogue.csv"


def shipped_catalogue() -> ProfileCatalogue:
    """Those profiles, read."""
    return read_profiles([shipped_profiles()])
