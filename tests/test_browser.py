"""The report in a real browser: figures, table, no console output."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and "VAR_SCALING_REQUIRE_BROWSER" not in os.environ,
        reason="no chromium on this machine",
    ),
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-logging=stderr",
    "--virtual-time-budget=5000",
]


def opened(page: Path, profile: Path, *words: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM, "VAR_SCALING_REQUIRE_BROWSER is set, and there is no chromium"
    blocked = "--host-resolver-rules=MAP * ~NOTFOUND"
    return subprocess.run(
        [CHROMIUM, *FLAGS, blocked, f"--user-data-dir={profile}", *words, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def test_the_report_opens_with_figures_and_table_without_console_errors(smoke, tmp_path):
    page = smoke / "smoke" / "report" / "index.html"
    done = opened(page, tmp_path, "--dump-dom")
    assert 'id="laws_in_parameters"' in done.stdout
    laws = re.search(r'<table id="laws">.*?</table>', done.stdout, re.DOTALL)
    assert laws is not None
    assert "L_mean(N)" in laws.group()
    assert done.stdout.count('<img class="plot" src="data:image/png;base64') >= 3
    message = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert message == []


def test_the_report_is_not_a_blank_page(smoke, tmp_path):
    from PIL import Image

    shot = tmp_path / "shot.png"
    page = smoke / "smoke" / "report" / "index.html"
    opened(page, tmp_path / "profile", f"--screenshot={shot}", "--window-size=1200,2000")
    colours = Image.open(shot).convert("RGB").getcolors(1 << 20)
    assert len(colours) > 50


def test_an_error_on_the_console_is_detected(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('oh')</script>")
    done = opened(page, tmp_path / "profile", "--dump-dom")
    assert any("CONSOLE" in line and "oh" in line for line in done.stderr.splitlines())
