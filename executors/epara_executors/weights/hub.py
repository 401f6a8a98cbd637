"""One model from the hub, by the hub's own library, in a process of its own.

    python -m epara_executors.weights.hub SOURCE FOLDER BYTES_PER_S

Says JSON lines on standard output: {"files": {name: bytes}}, then waits for a line on standard input (somebody makes
room), then {"received": bytes} as they come, and at last {"error": "..."}, empty if all went well. Files that may
travel only; what came before an interruption is gone on with, as the library does. BYTES_PER_S 0: no cap.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from epara_executors.weights.bucket import TokenBucket
from epara_executors.weights.files import may_travel

_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "model.pt2"]


def paced_bar(bucket: TokenBucket, wait: Any = time.sleep, say: Any = None) -> type:
    """A progress bar for the library that tells what came from the network and holds it to the cap."""
    from huggingface_hub.utils import tqdm

    class Paced(tqdm):  # pyright: ignore[reportUntypedBaseClass]
        has_transfers = False  # releases before 2 have no bar of their own for what the network brings

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            name, is_bytes = str(kwargs.get("name") or ""), kwargs.get("unit") == "B"
            if name.endswith(".transfer"):
                Paced.has_transfers = True
            self._counts = is_bytes and (name.endswith(".transfer") or not Paced.has_transfers)
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> Any:
            if self._counts and n and n > 0:
                if say is not None:
                    say({"received": int(n)})
                wait(bucket.wait_s(int(n)))
            return super().update(n)

    return Paced


def _say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)


def main(source: str, folder: Path, bytes_per_s: float) -> str:
    """What went wrong, or nothing."""
    if bytes_per_s:
        os.environ["HF_HUB_DISABLE_XET"] = "1"  # a protocol of its own, in threads of its own: it takes no cap
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    constants.DOWNLOAD_CHUNK_SIZE = 2**18  # its own 10 MB would be lost at every interruption, and come in one burst
    where: dict[str, Any] = {"local_dir": folder, "cache_dir": folder / ".cache" / "listed", "max_workers": 1}
    try:
        listed: Any = snapshot_download(source, allow_patterns=_PATTERNS, dry_run=True, **where)
        files = {str(f.filename): int(f.file_size or 0) for f in listed if may_travel(str(f.filename))}
        _say({"files": files})
        if not sys.stdin.readline():
            return "nobody waits for it any more"
        bucket = TokenBucket(bytes_per_s, burst_bytes=2**20, clock=time.monotonic)
        snapshot_download(
            source,
            revision=listed[0].commit_hash,
            allow_patterns=list(files),
            tqdm_class=paced_bar(bucket, say=_say),
            **where,
        )
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as e:
        cause = e.__cause__ or e  # the library wraps what the hub said in words of its own
        lines = str(cause).strip().splitlines()
        return f"{type(cause).__name__}: {lines[0] if lines else 'no word'}"
    return ""


if __name__ == "__main__":
    _say({"error": main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))})
