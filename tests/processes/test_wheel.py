"""What users install: the wheel, without a checkout, brings chaincode, definitions and sample, and runs the demo."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
DEMO_S = 500.0


def build_wheel(folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(TOP)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.thorough
def test_the_wheel_runs_the_demo_in_a_clean_environment(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "dist")
    names = zipfile.ZipFile(wheel).namelist()
    for wanted in ("chaincode/manifest.toml", "network/local-4.toml", "datasets/sample/"):
        assert any(name.startswith(f"bcami/bundled/{wanted}") for name in names), wanted
    assert not any("__pycache__" in name for name in names)

    clean = tmp_path / "clean"
    venv.create(clean, with_pip=False)
    python = clean / "bin" / "python"
    (site,) = (clean / "lib").glob("python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # The dependencies come from this environment; its editable install of the checkout does not: a path that a .pth
    # file names is no site folder, so .pth files in it are not read.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BCAMI", "PYTHON"))}
    where = subprocess.run(
        [python, "-P", "-c", "import bcami; print(bcami.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    demo = subprocess.run(
        [python, "-P", "-m", "bcami.cli.main", "demo", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=DEMO_S,
        check=False,
    )
    assert demo.returncode == 0, demo.stderr
    told = json.loads(demo.stdout)
    assert told["verify"]["ok"]
    assert told["reconcile"]["kwh_stored"] == told["reconcile"]["kwh_expected"]
