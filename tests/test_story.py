"""bench/story.py in small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parent.parent / "bench" / "story.py"


def story(file: Path, runs: Path, *words: str) -> list[str]:
    command = [sys.executable, str(SCRIPT), str(file), "--base", "fresh", "--rows", "40", "--asked", "5", *words]
    done = subprocess.run(
        [*command, "--runs", str(runs)],
        env={**os.environ, "PYTHONUTF8": "1", "PYTHONPATH": str(SCRIPT.parent.parent)},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(not SCRIPT.exists(), reason="bench/ is not part of the package")
def test_a_change_beside_what_it_changes(qa: Path, tmp_path: Path) -> None:
    lines = story(qa, tmp_path, "--only", "5 epochs")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    heads, _, stock, changed = rows
    assert {len(row) for row in rows} == {len(heads)}
    assert stock[:4] == ["stock recipe", "1", "40", "3"]
    assert changed[:4] == ["5 epochs instead of 3", "2", "40", "5"]
    assert changed[-2] == "stock recipe"
    assert changed[-1].startswith(("helped", "hurt", "no clear difference"))
    learned = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(learned) > 2
    assert story(qa, tmp_path, "--only", "5 epochs") == lines
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == learned
