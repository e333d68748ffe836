"""The tool that ends the node again and again: one run, and what it finds fault with."""

import signal
import sys
from pathlib import Path

import pytest
from model_fixtures import changed, make_network

pytest.importorskip("rclpy")

from luseel_model.checkpoint import save_checkpoint  # noqa: E402

sys.path.append(str(Path(__file__).parents[1] / "tools/field"))

import signals  # noqa: E402


def test_a_node_that_works_is_ended(tmp_path):
    config, path = changed("tiny"), tmp_path / "tiny.safetensors"
    save_checkpoint(path, make_network(config).state_dict(), config)
    row = signals.once("active", signal.SIGTERM, 0.5, {"model": str(path)})
    assert (row["situation"], row["signal"], row["status"]) == ("active", "SIGTERM", 0)
    assert not row["traceback"] and 0 < row["seconds"] < 30  # how long says the report


def test_what_it_finds_fault_with():
    good = {"situation": "active", "signal": "SIGINT", "seconds": 0.9, "status": 0,
            "traceback": False, "load": 0.5}
    assert signals.misses([good]) == []
    for bad in ({"seconds": 1.1}, {"status": -6}, {"traceback": True}):
        assert len(signals.misses([good, {**good, **bad}])) == 1
    rows = [{**good, "situation": situation, "signal": name, "seconds": seconds}
            for situation in signals.SITUATIONS for name in ("SIGINT", "SIGTERM")
            for seconds in (0.3, 0.5, 0.4)]
    text = signals.markdown({"machine": {"processor": "x", "cores": 2, "load_before": 0.1},
                             "times": 3, "rows": rows, "failed": []})
    assert text.count("| 0.40 / 0.50 | 0.5 to 0.5 |") == 4 and "within a second" in text
