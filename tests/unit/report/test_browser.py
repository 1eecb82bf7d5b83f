"""The page in a real browser: nothing is wider than the window, and it prints."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bcami.report.capacity import Demand, capacity_report
from bcami.report.folder import write_report
from tests.unit.report.test_capacity import DAY, ONE
from tests.unit.report.test_folder import SETTING

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MEASURE = """<script>
addEventListener("load", () => {
  const page = document.documentElement;
  const broken = [...document.images].filter(image => !image.naturalWidth).length;
  page.setAttribute("data-seen", `${innerWidth} ${page.scrollWidth} ${document.images.length} ${broken}`);
});
</script></body>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: `apt-get install chromium`")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return write_report(capacity_report(Demand(30e6, 1800.0, 4), [ONE, DAY], SETTING), tmp_path)


def browse(folder: Path, *arguments: str) -> str:
    assert BROWSER is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", profile, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("width", [1400, 500])
def test_nothing_is_wider_than_the_window(page: Path, tmp_path: Path, width: int) -> None:
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text().replace("</body>", MEASURE))
    shown = browse(tmp_path, f"--window-size={width},900", "--virtual-time-budget=5000", "--dump-dom", copy.as_uri())
    seen = re.search(r'data-seen="(\d+) (\d+) (\d+) (\d+)"', shown)
    assert seen is not None
    inner, scroll, images, broken = map(int, seen.groups())
    assert scroll <= inner
    assert (images, broken) == (1, 0)


def test_it_prints(page: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.pdf"
    browse(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={target}", page.as_uri())
    printed = target.read_bytes()
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type /Page\b", printed)) <= 8
