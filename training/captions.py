"""What people call a sound: paraphrases of the catalogues' labels and groups that sound alike.

The wordings live in ``captions.yaml`` beside this module; see its head for the format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from luseel_model.errors import LuseelError

DEFAULT_PATH = Path(__file__).with_name("captions.yaml")


class CaptionsError(LuseelError):
    """A captions file that cannot be read or breaks its format; the message names the entry."""


@dataclass(frozen=True)
class _Entry:
    phrases: tuple[str, ...]  # label, noun and training paraphrases, without repeats
    noun: str | None
    held_out: str | None


def _normal(phrase: str) -> str:
    """Form in which two phrases count as the same wording."""
    return " ".join(phrase.lower().split()).rstrip("?!. ")


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise CaptionsError(
            f"{where}: expected a non-empty text, got {value!r} (put it in quotes if it is text)"
        )
    return value.strip()


def _texts(value: object, where: str) -> list[str]:
    if not isinstance(value, list):
        raise CaptionsError(f"{where}: expected a list of texts, got {value!r}")
    return [_text(item, where) for item in value]


def _mapping(value: object, where: str, known: Iterable[str] | None = None) -> Mapping:
    if not isinstance(value, dict):
        raise CaptionsError(f"{where}: expected a mapping, got {value!r}")
    if known is not None:
        unknown = sorted(str(key) for key in value if key not in known)
        if unknown:
            raise CaptionsError(
                f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(known)}"
            )
    return value


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys silently; a label written twice is a mistake."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise CaptionsError(f"line {key_node.start_mark.line + 1}: {key!r} is there twice")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


@dataclass(frozen=True)
class Captions:
    """Paraphrases of labels, question frames and groups of labels that sound alike.

    All answers are deterministic: the order is the file's. An unknown label is its own only
    phrase, so that data with other labels can be trained on without writing captions first.

    Example:
        >>> captions = Captions.load()
        >>> captions.variants("dog barking")[:3]
        ['dog barking', 'barking dog', 'dog']
    """

    _entries: Mapping[str, _Entry] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    held_out_templates: tuple[str, ...] = ()
    _confusable: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Captions:
        """Read and check a captions file (default: the one beside this module).

        Raises:
            CaptionsError: the file is missing, is not YAML, or an entry breaks the format: an
                unknown key, a phrase used for two labels, a held-out phrase that is also a
                training phrase, a frame without ``{}``, a group naming an unknown label.
        """
        path = Path(path) if path is not None else DEFAULT_PATH
        try:
            document = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
        except OSError as error:
            raise CaptionsError(f"cannot read the captions file {path}: {error}") from error
        except yaml.YAMLError as error:
            raise CaptionsError(f"{path} is not valid YAML: {error}") from error
        except CaptionsError as error:
            raise CaptionsError(f"{path}: {error}") from None
        return cls.parse(document, str(path))

    @classmethod
    def parse(cls, document: object, where: str = "captions") -> Captions:
        """Check a document already read from YAML; see :meth:`load`."""
        _mapping(document, where, ("templates", "labels", "broad", "confusable"))
        frames = _mapping(document.get("templates", {}), f"{where}: templates",
                          ("train", "held_out"))
        train_frames, held_frames = (
            _texts(frames.get(key, []), f"{where}: templates: {key}")
            for key in ("train", "held_out")
        )
        for frame in train_frames + held_frames:
            if frame.count("{}") != 1 or frame.replace("{}", "").count("{"):
                raise CaptionsError(f"{where}: templates: {frame!r} needs exactly one {{}}")

        entries: dict[str, _Entry] = {}
        owner: dict[str, str] = {}
        for label, value in _mapping(document.get("labels", {}), f"{where}: labels").items():
            label = _text(label, f"{where}: labels")
            place = f"{where}: labels: {label}"
            _mapping(value, place, ("noun", "train", "held_out"))
            noun = _text(value["noun"], f"{place}: noun") if "noun" in value else None
            phrases = [label, *([noun] if noun else []),
                       *_texts(value.get("train", []), f"{place}: train")]
            first: dict[str, str] = {}
            for phrase in phrases:
                first.setdefault(_normal(phrase), phrase)
                other = owner.setdefault(_normal(phrase), label)
                if other != label:
                    raise CaptionsError(f"{place}: {phrase!r} already stands for {other!r}")
            held_out = value.get("held_out")
            if held_out is not None:
                held_out = _text(held_out, f"{place}: held_out")
            entries[label] = _Entry(tuple(first.values()), noun, held_out)

        framed = {_normal(frame.format(entry.noun)): label for label, entry in entries.items()
                  if entry.noun for frame in train_frames}
        held: dict[str, str] = {}
        for label, entry in entries.items():
            if entry.held_out is None:
                continue
            key = _normal(entry.held_out)
            if key in owner or key in framed:
                raise CaptionsError(
                    f"{where}: labels: {label}: held_out {entry.held_out!r} is also a training "
                    f"phrase of {owner.get(key, framed.get(key))!r}"
                )
            if held.setdefault(key, label) != label:
                raise CaptionsError(f"{where}: held_out {entry.held_out!r} stands for both "
                                    f"{held[key]!r} and {label!r}")
        both = {_normal(f) for f in train_frames} & {_normal(f) for f in held_frames}
        if both:
            raise CaptionsError(f"{where}: templates: {sorted(both)} are both train and held_out")

        confusable: dict[str, set[str]] = {}

        def check(group: list[str], place: str) -> None:
            if len(group) < 2 or len(set(group)) < len(group):
                raise CaptionsError(f"{place}: needs two or more different labels, got {group}")
            for label in group:
                if label not in entries:
                    raise CaptionsError(f"{place}: {label!r} is not among the labels")

        groups = document.get("confusable", [])
        if not isinstance(groups, list):
            raise CaptionsError(f"{where}: confusable: expected a list of lists")
        for number, group in enumerate(groups, 1):
            place = f"{where}: confusable: group {number}"
            group = _texts(group, place)
            check(group, place)
            for label in group:
                confusable.setdefault(label, set()).update(set(group) - {label})
        for broad, covered in _mapping(document.get("broad", {}), f"{where}: broad").items():
            place = f"{where}: broad: {broad}"
            covered = _texts(covered, place)
            check([broad, *covered], place)
            for label in covered:
                confusable.setdefault(broad, set()).add(label)
                confusable.setdefault(label, set()).add(broad)
        return cls(entries, tuple(train_frames), tuple(held_frames),
                   {label: frozenset(others) for label, others in confusable.items()})

    @property
    def labels(self) -> list[str]:
        """Labels with an entry, in the file's order."""
        return list(self._entries)

    def phrases(self, label: str) -> list[str]:
        """Training phrases without question frames: the label, its noun, its paraphrases."""
        entry = self._entries.get(label)
        return list(entry.phrases) if entry else [label]

    def variants(self, label: str) -> list[str]:
        """All training wordings, the label first: its phrases, then its noun in each frame."""
        entry = self._entries.get(label)
        if entry is None:
            return [label]
        frames = [frame.format(entry.noun) for frame in self.templates] if entry.noun else []
        return [*entry.phrases, *frames]

    def held_out(self, label: str) -> str:
        """A wording never used in training; the label itself where there is none."""
        entry = self._entries.get(label)
        return entry.held_out if entry and entry.held_out else label

    def held_out_variants(self, label: str) -> list[str]:
        """The held-out phrase and the noun in each held-out frame; never used in training."""
        entry = self._entries.get(label)
        if entry is None:
            return [label]
        frames = self.held_out_templates if entry.noun else ()
        return [self.held_out(label), *(frame.format(entry.noun) for frame in frames)]

    def confusable(self, label: str) -> set[str]:
        """Other labels that must not share a scene with this one (without the label itself)."""
        return set(self._confusable.get(label, ()))
