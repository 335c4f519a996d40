"""The page in a real browser: it is not blank, follows light and dark, and never scrolls sideways."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageStat
from records_factory import make_run
from test_paper import everything

from feddlp.report.page import write_report
from feddlp.report.paper import build

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome is installed"
)
LIGHT, DARK = 1, 0
PROBE = """<script>
const root = document.documentElement;
const seen = [...document.querySelectorAll("svg.plot")].filter(plot => plot.getBoundingClientRect().height > 40);
const outside = [...document.querySelectorAll("svg.plot text")].filter(text => {
  const box = text.getBoundingClientRect(), plot = text.closest("svg").getBoundingClientRect();
  const across = box.left < plot.left - 1 || box.right > plot.right + 1;
  return across || box.top < plot.top - 1 || box.bottom > plot.bottom + 1;
});
const line = document.querySelector("svg.plot path[style*='--c0']");
parent.document.documentElement.setAttribute("data-probe", [root.scrollWidth, innerWidth, seen.length, outside.length,
  getComputedStyle(line).stroke, performance.getEntriesByType("resource").length].join("|"));
</script></body>"""
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark">
<iframe style="width:{width}px;height:800px;border:0" srcdoc="{page}"></iframe>"""  # windows are at least 500 wide


def browse(page: Path, profile: Path, width: int, scheme: int, *arguments: str) -> str:
    """Run the browser without any network."""
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", f"--window-size={width},900",
        f"--blink-settings=preferredColorScheme={scheme}", *arguments, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("page")
    name = "a class with a name that is far too long to stand in any label"
    names = [name, *(f"class {number}" for number in range(40))]
    runs = [make_run(root, f"s{seed}", seed=seed, clients=12, class_names=names, newcomers=(1,)) for seed in (0, 1)]
    tables = [build(name, everything(name), comparable=True) for name in ("table1", "table3", "table5")]
    write_report(runs, root / "report.html", tables)
    return root / "report.html"


@needs_browser
@pytest.mark.parametrize("width", [1280, 360])
def test_no_sideways_scrolling_no_clipped_label_no_request(page, tmp_path, width):
    probed = tmp_path / "probed.html"
    source = page.read_text("utf-8").replace("</body>", PROBE)
    probed.write_text(FRAME.format(width=width, page=html.escape(source)), encoding="utf-8")
    seen = {}
    for scheme in (LIGHT, DARK):
        dom = browse(probed, tmp_path / "profile", 1400, scheme, "--dump-dom")
        probe = re.search(r'data-probe="([^"]*)"', dom)
        assert probe
        scroll, window, plots, outside, stroke, requests = probe[1].split("|")
        assert int(window) == width
        assert int(scroll) <= width
        assert (plots, outside, requests) == ("7", "0", "0")
        seen[scheme] = stroke
    assert seen[LIGHT] == "rgb(0, 114, 178)"
    assert seen[DARK] == "rgb(74, 159, 224)"


@needs_browser
@pytest.mark.parametrize(("scheme", "paper"), [(LIGHT, (255, 255, 255)), (DARK, (18, 22, 28))])
def test_the_picture_is_not_blank_and_follows_the_scheme(page, tmp_path, scheme, paper):
    shot = tmp_path / "shot.png"
    browse(page, tmp_path / "profile", 1280, scheme, f"--screenshot={shot}")
    with Image.open(shot) as opened:
        image = opened.convert("RGB")
    assert image.size == (1280, 900)
    assert image.getpixel((5, 890)) == paper
    assert min(ImageStat.Stat(image).stddev) > 10


@needs_browser
def test_the_page_prints(page, tmp_path):
    browse(page, tmp_path / "profile", 1280, LIGHT, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
