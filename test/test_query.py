"""Queries of words, tags and pictures; what models take of them."""

import numpy as np
import pytest

from luseel_model.errors import ConfigError, QueryError
from luseel_model.families import FAMILIES, family_of, find_family, load_config
from luseel_model.query import Capabilities, Query, as_query

PICTURE = np.zeros((16, 24, 3), np.uint8)


def test_what_a_query_consists_of():
    assert as_query(" dog  barking ").text == "dog barking"
    assert as_query("dog").clues == {"text"}
    query = as_query(Query(text="a  dog", tag="dog barking", image=PICTURE, frames=PICTURE[None]))
    assert query.clues == {"text", "tag", "image", "frames"} and query.text == "a dog"
    assert query.image is PICTURE
    assert (Query(tag="rain").words, Query(image=PICTURE).words) == ("rain", "picture")


@pytest.mark.parametrize("query, said", [
    (Query(), "the query is empty"),
    (7, "must be a string"),
    (Query(text="…"), "the query is empty"),
    (Query(tag="x" * 300), "300 characters"),
    (Query(image=PICTURE.astype(float)), "must be a uint8 RGB array"),
    (Query(image=PICTURE[..., 0]), "must be a uint8 RGB array"),
    (Query(image=PICTURE[:4]), "24 x 4 pixels"),
    (Query(frames=PICTURE), "must be a uint8 RGB array"),
    (Query(frames=np.zeros((1025, 8, 8, 3), np.uint8)), "1025 frames"),
])
def test_what_is_no_query(query, said):
    with pytest.raises(QueryError, match=said):
        as_query(query)


def test_models_refuse_what_they_cannot_use():
    words = Capabilities(frozenset({"text"}))
    words.check(Query(text="rain"), "net")
    with pytest.raises(QueryError, match="net can't use a picture as a query: give it words"):
        words.check(Query(text="rain", image=PICTURE), "net")
    either = Capabilities(frozenset({"text", "tag"}), direction=False)
    with pytest.raises(QueryError, match="one kind of clue at a time: words or a tag"):
        either.check(Query(text="rain", tag="rain"), "net")
    Capabilities(frozenset({"text", "tag"}), together=True).check(
        Query(text="rain", tag="rain"), "net")


def test_descriptions():
    assert Capabilities(frozenset({"text"})).describe() == \
        "2 microphones + words -> sound and direction"
    assert Capabilities(frozenset({"text"}), sound=False, microphones=4).describe() == \
        "4 microphones + words -> direction"
    assert Capabilities(frozenset({"text", "tag"}), direction=False).describe() == \
        "2 microphones + words or a tag -> sound"


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    family = find_family(name)
    assert family.network_class and family.extractor_class
    config = load_config(name)
    assert type(config) is family.config_class and family_of(config) is family
    assert config.window_samples == round(config.window * config.sample_rate)


def test_unknown_family(tmp_path):
    (tmp_path / "a.yaml").write_text("family: lusel\nname: a\n")
    with pytest.raises(ConfigError, match="no model family 'lusel'; there are: luseel"):
        load_config(tmp_path / "a.yaml")
