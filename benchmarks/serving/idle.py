"""What an executor that serves nobody takes of its machine: the agent's memory, alone and with a model behind it.

    python benchmarks/serving/idle.py

The agent is what every server runs, a microcomputer too; it imports no torch. Its workers' process does, once for all
of them, whether or not a model is loaded.

Writes benchmarks/results/serving_idle.json.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import psutil
import report
from edges import Edge, group, tenant
from outcomes import row

RESULT = "serving_idle.json"
TARGET_MIB = 60.0


def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, Edge(Path(folder)) as edge:
        edge.make_models("tiny-bert")
        agent = psutil.Process(edge.start("edge", "--metrics", "127.0.0.1:0").pid)
        alone = agent.memory_info().rss / 2**20
        edge.commit({"edge": [group("edge", tenant("embed", "tiny-bert", batch=4, deadline_ms=1000.0))]})
        loaded = agent.memory_info().rss / 2**20
        torch = any("torch" in m.path for m in agent.memory_maps())
    return {
        "rows": [
            row("agent, no plan", alone, "MiB", law="<=", target=TARGET_MIB),
            row("agent, a model loaded", loaded, "MiB", law="<=", target=TARGET_MIB),
            row("agent, torch's libraries mapped", int(torch), "", law="==", target=0),
        ]
    }


if __name__ == "__main__":
    report.main(__doc__, measure, RESULT)
