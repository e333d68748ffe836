"""Wordings of the labels: completeness, separation of held-out wordings, clear errors."""

import csv

import pytest

from luseel_model.errors import LuseelError
from training.captions import Captions, CaptionsError
from training.corpus.debian import CATALOGUE
from training.corpus.pack import ESC_LABELS


@pytest.fixture(scope="module")
def captions():
    return Captions.load()


def catalogued_labels():
    with open(CATALOGUE, newline="", encoding="utf-8") as file:
        return {row["label"] for row in csv.DictReader(file)} | set(ESC_LABELS.values())


def test_every_catalogued_label_has_wordings(captions):
    labels = catalogued_labels()
    assert len(labels) > 180
    assert labels <= set(captions.labels)
    for label in captions.labels:
        assert len(captions.phrases(label)) >= 4, label
        assert captions.held_out(label) != label


def test_variants_begin_with_the_label_and_do_not_repeat(captions):
    for label in captions.labels:
        variants = captions.variants(label)
        assert variants[0] == label
        assert len(set(variants)) == len(variants)
    again = Captions.load()  # the same order every time: training resumes exactly
    assert all(again.variants(label) == captions.variants(label) for label in captions.labels)
    assert "dog" in captions.variants("dog barking")
    assert "where is the barking dog?" in captions.variants("dog barking")


def test_no_held_out_wording_is_trained_on(captions):
    trained = {text.lower() for label in captions.labels for text in captions.variants(label)}
    for label in captions.labels:
        for text in captions.held_out_variants(label):
            assert text.lower() not in trained, text


def test_a_wording_stands_for_one_label_only(captions):
    owner = {}
    for label in captions.labels:
        for text in (*captions.variants(label), *captions.held_out_variants(label)):
            assert owner.setdefault(text.lower(), label) == label, text


def test_confusable_is_symmetric_and_not_about_itself(captions):
    for label in captions.labels:
        assert label not in captions.confusable(label)
        for other in captions.confusable(label):
            assert label in captions.confusable(other)
    assert "songbird singing" in captions.confusable("birds chirping")
    # A broad label excludes what it covers, but not these each other.
    assert "cow mooing" in captions.confusable("farm animals")
    assert "pig grunting" not in captions.confusable("cow mooing")


def test_unknown_label_is_its_own_wording(captions):
    assert captions.variants("theremin") == ["theremin"]
    assert captions.held_out("theremin") == "theremin"
    assert captions.held_out_variants("theremin") == ["theremin"]
    assert captions.confusable("theremin") == set()


GOOD = {
    "templates": {"train": ["find the {}"], "held_out": ["seek the {}"]},
    "labels": {
        "dog barking": {"noun": "dog", "train": ["a dog barks"], "held_out": "woof"},
        "cat meowing": {"noun": "cat", "train": ["meow"], "held_out": "a kitten"},
    },
    "broad": {},
    "confusable": [["dog barking", "cat meowing"]],
}


def test_small_document():
    captions = Captions.parse(GOOD)
    assert captions.variants("dog barking") == ["dog barking", "dog", "a dog barks", "find the dog"]
    assert captions.held_out_variants("dog barking") == ["woof", "seek the dog"]
    assert captions.confusable("dog barking") == {"cat meowing"}


@pytest.mark.parametrize("section, value, message", [
    ("labels", {"dog": {"trian": ["a"]}}, "unknown key trian"),
    ("labels", {"dog": {"train": "a dog"}}, "expected a list"),
    ("labels", {"dog": {"train": [True]}}, "expected a non-empty text"),
    ("labels", {"dog": {"train": ["Woof"], "held_out": "woof!"}}, "also a training phrase"),
    ("labels", {"dog": {"noun": "dog", "held_out": "find the dog"}}, "also a training phrase"),
    ("labels", {"dog": {"train": ["pet"]}, "cat": {"train": ["pet"]}}, "already stands for 'dog'"),
    ("labels", ["dog"], "expected a mapping"),
    ("templates", {"train": ["find it"]}, "exactly one {}"),
    ("confusable", [["dog barking"]], "two or more"),
    ("confusable", [["dog barking", "unicorn"]], "'unicorn' is not among the labels"),
    ("broad", {"dog barking": ["unicorn"]}, "'unicorn' is not among the labels"),
    ("labls", {}, "unknown key labls"),
])
def test_mistakes_are_named(section, value, message):
    document = {**GOOD, section: value}
    if section == "labels":
        document["confusable"] = []
    with pytest.raises(CaptionsError, match=message.replace("{", r"\{").replace("}", r"\}")):
        Captions.parse(document)


def test_unreadable_files(tmp_path):
    assert issubclass(CaptionsError, LuseelError)  # what the commands show
    with pytest.raises(CaptionsError, match="cannot read"):
        Captions.load(tmp_path / "missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("labels: [")
    with pytest.raises(CaptionsError, match="not valid YAML"):
        Captions.load(broken)
    broken.write_text("labels:\n  dog: {train: [a]}\n  dog: {train: [b]}\n")
    with pytest.raises(CaptionsError, match="'dog' is there twice"):
        Captions.load(broken)
