"""Queries for what isn't there (training/queries.py)."""

import torch

from training.queries import ask_for_absent


def test_some_last_queries_ask_for_what_is_not_there():
    count = 2000
    asked = torch.tensor([[1, 0]]).expand(count, -1)
    wanted = torch.tensor([[3, 2]]).expand(count, -1)
    free = torch.tensor([True, True, False, False]).expand(count, -1).clone()
    free[:500] = False
    found, kind = ask_for_absent(asked, wanted, free, 0.4, torch.Generator().manual_seed(0))
    assert torch.equal(found[:, 0], asked[:, 0]) and torch.equal(kind[:, 0], wanted[:, 0])
    absent = found[:, 1] < 0
    assert not absent[:500].any()  # nothing else to ask for
    assert 0.35 < float(absent[500:].float().mean()) < 0.45
    assert torch.equal(found[~absent], asked[~absent])
    assert torch.equal(kind[~absent], wanted[~absent])
    assert set(kind[absent, 1].tolist()) == {0, 1}
    assert (asked >= 0).all() and (wanted >= 2).all()  # what was given is as it was
