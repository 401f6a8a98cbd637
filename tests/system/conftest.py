"""The command line as a process of its own, and a small edge to feed it with."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

TIMEOUT_S = 120.0
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "COLUMNS": "200"}
EXAMPLES = Path(__file__).resolve().parents[2] / "topologies"

PROFILES = """\
model,device,tp,pp,batch,frames,latency_ms,interval_ms,prefill_ms,prompt_tokens,decode_step_ms,memory_gib,load_s,source
m/label,cpu,1,1,1,1,10,,,,,0.5,2,made up for this test
m/label,cpu,1,1,4,1,25,,,,,0.5,2,made up for this test
m/words,cpu,1,1,1,1,,,12,64,,0.5,2,made up for this test
m/words,cpu,1,1,1,1,,,,,4,0.5,2,made up for this test
"""

EDGE: dict[str, Any] = {
    "version": 1,
    "name": "two-shops",
    "device_types": {"cpu": {"memory_gib": 1.0, "kind": "cpu"}},
    "servers": [
        {"name": "shop-a", "kind": "edge-server", "devices": [{"type": "cpu", "count": 1}]},
        {"name": "shop-b", "kind": "embedded", "devices": [{"type": "cpu", "count": 1}]},
    ],
    "links": [{"between": ["shop-a", "shop-b"], "rtt_ms": 2.0, "bandwidth_mbps": 100}],
    "services": [
        {
            "name": "label",
            "model": {"source": "m/label", "task": "image-classification"},
            "sensitivity": "latency",
            "slo_ms": 200,
            "request": {"input_kb": 10, "output_kb": 1},
        }
    ],
    "demand": [
        {"service": "label", "origin": "shop-a", "rate_per_s": 5},
        {"service": "label", "origin": "shop-b", "rate_per_s": 5},
    ],
    "profiles": "profiles.csv",
}


@dataclass(frozen=True, kw_only=True)
class Done:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class CommandLine:
    """`epara` in one folder."""

    folder: Path

    def __call__(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Done:
        """Run to the end. No command may show a traceback, whatever it was given."""
        done = subprocess.run(
            [sys.executable, "-m", "epara_opt.cli", *map(str, arguments)],
            cwd=self.folder,
            env=os.environ | ENVIRONMENT | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(code=done.returncode, out=done.stdout, err=done.stderr)

    def files(self) -> dict[str, bytes]:
        """Everything in the folder, to see that nothing changed."""
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="session")
def command_line() -> type[CommandLine]:
    """For edges that outlive a test: the command line in a folder of one's choice."""
    return CommandLine


@pytest.fixture
def epara(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


@pytest.fixture
def edge(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small edge after `change(document)`, or with `replace`d text; returns its file."""

    def write(
        change: Callable[[dict[str, Any]], object] | None = None,
        *,
        replace: tuple[str, str] = ("", ""),
        profiles: str = PROFILES,
        name: str = "edge.yaml",
    ) -> Path:
        document = copy.deepcopy(EDGE)
        if change is not None:
            change(document)
        text = yaml.safe_dump(document, sort_keys=False)
        assert replace[0] in text
        (tmp_path / "profiles.csv").write_text(profiles)
        path = tmp_path / name
        path.write_text(text.replace(*replace) if replace[0] else text)
        return path

    return write
