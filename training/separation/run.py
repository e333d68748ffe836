"""Asks a model for the target of every mixture, in several wordings, and keeps a row for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luseel_model.errors import ConfigError
from luseel_model.inference import Extractor
from luseel_model.query import Query
from training import SAMPLE_RATE
from training.benchmark.render import BenchmarkMixture, Renderer
from training.benchmark.run import Results, ahead, listen
from training.metrics import oracle_mask
from training.separation.metrics import separation_metrics
from training.separation.mixtures import Mixtures, Queries

#: A query that says nothing about the target.
ANY = "a sound"


def rows_of_references(mixture: BenchmarkMixture) -> list[dict[str, Any]]:
    """The unprocessed mixture, and oracle masks that know both sounds."""
    sources, audio = _ears(mixture)
    target, others = sources[:1], sources[None, 1:]
    estimates = torch.cat([audio[None], oracle_mask(target, others),
                           oracle_mask(target, others, binary=True)])
    return _rows(mixture, ["unprocessed", "irm", "ibm"], ["", "", ""], estimates, sources)


def asked_of(model: Extractor, queries: Queries) -> tuple[list[str], list[str], list[Query]]:
    """What a model is asked in one mixture: the sort of each query, its words, the query."""
    if "text" in model.capabilities.clues:
        asked = [("label", queries.label), ("caption", queries.caption),
                 *(("held_out", words) for words in queries.held_out),
                 ("nothing", ANY), ("other", queries.other)]
        return [s for s, _ in asked], [w for _, w in asked], [Query(text=w) for _, w in asked]
    if "tag" in model.capabilities.clues:
        asked = [("label", queries.label), ("other", queries.other)]
        return [s for s, _ in asked], [w for _, w in asked], [Query(tag=w) for _, w in asked]
    raise ConfigError(f"the model {model.name} takes neither words nor tags: the mixtures of this "
                      "evaluation have nothing else")


def rows_of(model: Extractor, mixture: BenchmarkMixture, queries: Queries) -> list[dict[str, Any]]:
    """Rows of one mixture, with the mean over the held-out wordings, as the paper takes it."""
    sources, _ = _ears(mixture)
    sorts, words, asked = asked_of(model, queries)
    heard = listen(model, mixture.audio, asked)
    if heard.audio is None:
        raise ConfigError(f"the model {model.name} gives no sound: there is nothing to measure")
    estimates = heard.audio[:, :sources.shape[1]]
    return _rows(mixture, sorts, words, estimates, sources)


def _ears(mixture: BenchmarkMixture) -> tuple[Tensor, Tensor]:
    """Sources (S, C, N) and mixture (C, N); one ear where both hear the same."""
    sources, audio = torch.from_numpy(mixture.sources), torch.from_numpy(mixture.audio)
    if torch.equal(audio[0], audio[1]):
        return sources[:, :1], audio[:1]
    return sources, audio


def _rows(mixture: BenchmarkMixture, sorts: Sequence[str], words: Sequence[str],
          estimates: Tensor, sources: Tensor) -> list[dict[str, Any]]:
    values = separation_metrics(estimates, sources)
    return [{"mixture": mixture.index, "asked": sort, "query": word, "kind": mixture.kind[0],
             "other": mixture.kind[1], "recording": mixture.recording[0],
             **{key: round(float(value[i]), 4) for key, value in values.items()}}
            for i, (sort, word) in enumerate(zip(sorts, words))]


def run_cell(model: Extractor | None, mixtures: Mixtures, renderer: Renderer, results: Results,
             count: int | None = None, progress: bool = True) -> None:
    """Evaluate one cell, as far as it isn't yet; without a model, what needs none.

    Args:
        count: the first so many mixtures; None: all.
    """
    if model is not None and model.sample_rate != SAMPLE_RATE:
        raise ConfigError(f"the model {model.name} works at {model.sample_rate} Hz, the recordings "
                          f"are packed at {SAMPLE_RATE} Hz")
    cell = renderer.cell
    total = mixtures.catalogue.size(cell)
    wanted = [i for i in range(total if count is None else min(count, total))
              if i not in renderer.missing]
    done = {row["mixture"] for row in results.rows(cell.name)}
    coming = ahead(renderer, [i for i in wanted if i not in done])
    results.claim(cell.name, renderer.inputs())

    def make(index: int) -> list[dict[str, Any]]:
        mixture = next(coming)
        assert mixture.index == index
        if model is None:
            return rows_of_references(mixture)
        return rows_of(model, mixture, mixtures.queries[index])

    results.fill(cell.name, wanted, make, progress)


def with_binaural(model: Extractor, binaural: str | None) -> Extractor:
    """The model with one mask for both ears ('mid') or one for each ('each').

    Raises:
        ConfigError: it has no such choice.
    """
    if binaural is None:
        return model
    if not hasattr(model.config, "binaural"):
        raise ConfigError(f"the model {model.name} has no choice of binaural")
    model.config = model.network.config = dataclasses.replace(model.config, binaural=binaural)
    return model
