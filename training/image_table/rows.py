"""The rows of tables 2 and 3: what the paper says of each, and which can be built here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A comparison of the paper.

    Attributes:
        table: 2 (image encoders) or 3 (separators).
        visual, audio: the models, as in the paper.
        parameters: millions, the paper's.
        sdri: dB, the paper's.
        model: our configuration of its size; empty where it can't be built.
        small: training configuration of its small version, which needs no weights from a hub.
        why: why it can't be built, or what differs.
    """

    table: int
    visual: str
    audio: str
    parameters: float
    sdri: float
    model: str = ""
    small: str = ""
    why: str = ""


_NO_WEIGHTS = "the encoder's weights come from a model hub"
ROWS = (
    Row(2, "ResNet-50", "Conformer", 56.42, 8.682, "id-uss-resnet50", why=_NO_WEIGHTS),
    Row(2, "Efficient-b3", "Conformer", 43.57, 10.139, "id-uss", "image_table/conformer",
        "small: EfficientNet-lite0"),
    Row(2, "ViT", "Conformer", 116.94, 10.120, "id-uss-vit", why=_NO_WEIGHTS),
    Row(2, "Swin", "Conformer", 118.08, 10.233, "id-uss-swin", why=_NO_WEIGHTS),
    Row(2, "CLIP-ResNet-50", "Conformer", 54.61, 8.736, "id-uss-clip",
        why="transformers has CLIP's ViT, not its ResNet-50; weights from a model hub"),
    Row(2, "AudioCLIP-ResNet-50", "Conformer", 54.61, 8.254,
        why="its weights are in no library"),
    Row(3, "Efficient-b3", "Conv-TasNet", 34.53, 8.686, "id-uss-conv-tasnet",
        "image_table/conv-tasnet", "the paper's is larger than Conv-TasNet's authors'"),
    Row(3, "Efficient-b3", "Soundfilter", 30.40, 8.738,
        why="the paper doesn't say how it was changed"),
    Row(3, "Efficient-b3", "ResUNet", 76.49, 9.431, "id-uss-resunet", "image_table/resunet",
        "LASS-Net's (docs/lass.md)"),
    Row(3, "CO-SEPARATION", "", 57.20, 7.579, why="a system of its own, with an object detector"),
    Row(3, "ConceptBeam", "", 72.82, 7.815, why="a system of its own, for speech"),
    Row(3, "Efficient-b3", "Conformer (ID-USS-Conformer)", 43.57, 10.139, "id-uss",
        "image_table/conformer", "small: EfficientNet-lite0"),
)
#: SDR of the paper's test mixtures before any separation, dB.
PAPER_INPUT_SDR = 5.92
