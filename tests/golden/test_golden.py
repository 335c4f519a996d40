"""The outcome of every scene is what it was.

python tests/golden/test_golden.py    writes golden.json anew: only where a result is meant to change
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from reading import close  # noqa: E402 - found beside this file
from scenes import SCENES, play  # noqa: E402

GOLDEN = HERE / "golden.json"


SLOW = ("image", "text", "both")


@pytest.mark.parametrize("scene", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in SCENES])
def test_scene_is_as_it_was(scene, tmp_path):
    expected, found = json.loads(GOLDEN.read_text())[scene], play(scene, tmp_path)
    assert found.keys() == expected.keys()
    changed = [name for name, value in found.items() if not close(value, expected[name])]
    assert not changed, {name: (found[name], expected[name]) for name in changed[:5]}


def write() -> None:
    kept = {}
    for scene in SCENES:
        with TemporaryDirectory() as folder:
            kept[scene] = play(scene, Path(folder))
    rounded = {s: {n: [v[0], *(float(f"{x:.12g}") for x in v[1:])] for n, v in at.items()} for s, at in kept.items()}
    GOLDEN.write_text(
        re.sub(r"\[\s+([^]]+?)\s+\]", lambda list: f"[{' '.join(list[1].split())}]", json.dumps(rounded, indent=0))
    )


if __name__ == "__main__":
    write()
