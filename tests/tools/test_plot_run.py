"""The tool that draws the README's figure."""

from __future__ import annotations

import json
from pathlib import Path


def test_accuracies_are_drawn_by_round(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "tools"))
    import plot_run

    rounds = {"zero_shot": [70.0], "feddlp": [80.0, 90.0]}
    rows = [{"method": m, "round": n, "test": {"pooled": y}} for m, ys in rounds.items() for n, y in enumerate(ys, 1)]
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_run.main([str(tmp_path), "--to", str(tmp_path / "run.svg")])
    assert "<svg" in (tmp_path / "run.svg").read_text()
