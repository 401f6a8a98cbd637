"""The page in a real browser: it draws, its script runs, and its console stays empty."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from epara_opt.report.html import render

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH, so the page cannot be drawn")


def browse(tmp_path: Path, html: str, *arguments: str) -> tuple[str, str]:
    """stdout and stderr of a headless run over the page; nothing but the page is opened."""
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        "--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}", *arguments, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout, done.stderr


def test_the_page_is_drawn_without_a_word_on_the_console(tmp_path: Path, make_edge: Callable[..., Any]) -> None:
    e = make_edge(40)
    html = render(e.plan, e.topology, categories=e.categories, history=e.history, load=e.load)
    shot = tmp_path / "report.png"
    _, log = browse(tmp_path, html, f"--screenshot={shot}", "--window-size=1300,1600")
    assert "CONSOLE" not in log
    assert shot.read_bytes().startswith(b"\x89PNG")
    assert shot.stat().st_size > 50_000


def test_the_script_runs_and_hostile_names_do_not(tmp_path: Path, make_edge: Callable[..., Any]) -> None:
    e = make_edge(3, names=(("<script>document.title='owned'</script>", "latency"), ("\"'><b>x", "frequency")))
    dom, log = browse(tmp_path, render(e.plan, e.topology), "--dump-dom")
    assert "CONSOLE" not in log
    assert re.search(r'<html[^>]* class="js"', dom)
    assert "<title>owned</title>" not in dom
    assert "<b>x" not in dom
