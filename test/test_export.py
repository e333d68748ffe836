"""A checkpoint made ready to be shipped."""

import torch
from model_fixtures import changed, make_network

from luseel_model.checkpoint import load_network, save_checkpoint
from training import export


def test_export_halves_the_file_and_keeps_the_network(tmp_path, capsys):
    network = make_network(changed("tiny"))
    run, shipped = tmp_path / "best.safetensors", tmp_path / "out" / "tiny.safetensors"
    save_checkpoint(run, network.state_dict(), network.config, {"step": 7})
    assert export.main([str(run), str(shipped)]) == 0
    assert shipped.stat().st_size < 0.6 * run.stat().st_size
    loaded, info = load_network(shipped)
    assert info == {"step": 7} and loaded.config == network.config
    for name, value in network.state_dict().items():
        assert torch.allclose(loaded.state_dict()[name], value, rtol=1e-3, atol=1e-6), name


def test_export_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    assert export.main([str(tmp_path / "none.safetensors"), str(tmp_path / "x.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    network = make_network(changed("tiny"))
    save_checkpoint(tmp_path / "run.safetensors", network.state_dict(), network.config)
    monkeypatch.setattr(export, "SHIPPED_BYTES", 1000)
    assert export.main([str(tmp_path / "run.safetensors"), str(tmp_path / "x.safetensors")]) == 1
