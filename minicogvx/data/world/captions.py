"""Captions of the shapes world: from a scene to words, and from words back to the scene they describe.

Every meaning has several phrasings, short or dense (paper 3.1 trains on dense captions). All words are lower case,
without punctuation, at most 30 to a caption. `parse_caption` inverts them, so a program can check a prompt.
"""

import random
import re
from dataclasses import dataclass, replace
from itertools import chain

from minicogvx.data.world.vocabulary import BACKGROUNDS, COLOURS, DIRECTIONS, MOTIONS, SHAPES, Scene, ShapeObject

MAX_WORDS = 30
_MAX_WORDS_SHORT_ALONE = 19  # of a short caption of one object
OMIT_BACKGROUND = 0.25  # share of short captions that say nothing about the background


def _direction_phrases(motion: str) -> tuple[str, ...]:
    words = motion.removeprefix("moves ").split(" and ")
    if len(words) == 2:
        up, left = words
        return (f"moves {up} and {left}", f"goes {up} and {left}", f"slides {up} and to the {left}",
                f"moves {up} and to the {left}", f"moves diagonally {up} and {left}",
                f"goes diagonally {up} and {left}")
    plain = (motion, f"goes {words[0]}", f"slides {words[0]}")
    more = {"up": ("rises",), "down": ("sinks",)}
    return plain + more.get(words[0], (f"moves to the {words[0]}", f"slides to the {words[0]}"))


MOTION_PHRASES = {motion: _direction_phrases(motion) for motion in DIRECTIONS} | {
    "bounces": ("bounces", "bounces up and down", "hops", "hops up and down", "jumps up and down"),
    "grows": ("grows", "gets bigger", "gets larger", "becomes bigger", "becomes larger"),
    "shrinks": ("shrinks", "gets smaller", "becomes smaller"),
    "moves in a circle": ("moves in a circle", "goes in a circle", "moves around in a circle",
                          "goes around in circles"),
    "stays still": ("stays still", "stands still", "is still", "stays in place", "does not move"),
}
_BACKGROUND_PHRASES = ("on a {} background", "on {}", "in front of a {} wall", "against a {} background",
                       "over a {} background", "with a {} background")
_SIZES, _PLACES = ("small", "large"), ("top", "bottom", "middle", "left", "right")
_WHERE_PHRASES = ("near the {}", "at the {}")

# {who} a noun with its article, {does} a verb phrase, {back} a background phrase, {colour} the background's colour.
_SHORT = ("{who} {does} {back}", "{who} that {does} {back}", "{back} {who} {does}", "there is {who} that {does} {back}",
          "a video of {who} that {does} {back}", "{who} {does} and the background is {colour}",
          "the background is {colour} and {who} {does}")
_BARE = ("{who} {does}", "{who} that {does}", "there is {who} that {does}", "a video of {who} that {does}")
_DENSE = ("{who} starts {where} and {does} {back}", "{back} {who} starts {where} and {does}",
          "there is {who} {where} that {does} {back}", "a video of {who} {back} it starts {where} and {does}",
          "the background is {colour} and {who} that starts {where} {does}",
          "{who} {where} {does} while the background is {colour}")
_SHORT_TWO = ("{who} {does} and {who2} {does2} {back}", "{who} that {does} and {who2} that {does2} {back}",
              "{back} {who} {does} and {who2} {does2}", "{back} {who} {does} while {who2} {does2}",
              "{who} {does} while {who2} {does2} and the background is {colour}",
              "there is {who} that {does} and {who2} that {does2} {back}")
_BARE_TWO = ("{who} {does} and {who2} {does2}", "{who} {does} while {who2} {does2}",
             "a video of {who} that {does} and {who2} that {does2}")
_DENSE_TWO = ("{who} {where} {does} and {who2} {where2} {does2} {back}",
              "{back} {who} {where} {does} while {who2} {where2} {does2}",
              "the background is {colour} {who} {where} {does} and {who2} {where2} {does2}")


# ---- from a scene to words


def caption(scene: Scene, rng: random.Random, style: str | None = None) -> str:
    """One caption of the scene; `rng` chooses the phrasing.

    `style="short"` names shape, colour and motion, and in three of four captions the background. "dense" also says
    where an object starts and whether it is small or large. None takes either.
    """
    if style not in ("short", "dense", None):
        raise ValueError(f"style is {style!r}; it must be 'short', 'dense' or None")
    style = style or rng.choice(("short", "dense"))
    if style == "dense":
        return _phrase(scene, rng, (_DENSE, _DENSE_TWO), sized=True)
    bare = rng.random() < OMIT_BACKGROUND
    return _phrase(scene, rng, (_BARE, _BARE_TWO) if bare else (_SHORT, _SHORT_TWO), sized=False)


def most_tokens(scenes: list[Scene], style: str | None) -> int:
    """The most tokens, end token included, of any `caption(scene, rng, style)`."""
    alone = all(len(scene.objects) == 1 for scene in scenes)
    return (_MAX_WORDS_SHORT_ALONE if style == "short" and alone else MAX_WORDS) + 1


def fewest_tokens(style: str | None) -> int:
    """Any scene has a `caption(scene, rng, style)` of at most so many tokens, end token included."""
    return 28 if style == "dense" else 16


def evaluation_caption(scene: Scene, rng: random.Random) -> str:
    """A short caption that always names shape, colour, motion and background, as adherence is measured with it."""
    return _phrase(scene, rng, (_SHORT, _SHORT_TWO), sized=False)


def _phrase(scene: Scene, rng: random.Random, templates: tuple, sized: bool) -> str:
    if len(scene.objects) > len(templates):
        raise ValueError(f"a scene has {len(scene.objects)} objects; a caption describes one or two")
    while True:  # the longest phrasings of two objects can exceed the limit
        fields = {"back": rng.choice(_BACKGROUND_PHRASES).format(scene.background), "colour": scene.background}
        for suffix, thing in zip(("", "2"), scene.objects):
            fields |= {"who" + suffix: _noun(thing, sized), "does" + suffix: rng.choice(MOTION_PHRASES[thing.motion]),
                       "where" + suffix: rng.choice(_WHERE_PHRASES).format(_where(thing))}
        text = rng.choice(templates[len(scene.objects) - 1]).format(**fields)
        if len(text.split()) <= MAX_WORDS:
            return text


def _noun(thing: ShapeObject, sized: bool) -> str:
    words = f"{thing.size} {thing.colour}" if sized and thing.size else thing.colour
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words} {thing.shape}"


def _where(thing: ShapeObject) -> str:
    vertical = "top" if thing.y < 0.4 else "bottom" if thing.y > 0.6 else ""
    horizontal = "left" if thing.x < 0.4 else "right" if thing.x > 0.6 else ""
    return f"{vertical} {horizontal}".strip() or "middle"


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted."""
    phrases = [*_SHORT, *_BARE, *_DENSE, *_SHORT_TWO, *_BARE_TWO, *_DENSE_TWO, *_BACKGROUND_PHRASES, *_WHERE_PHRASES,
               *(phrase for phrases in MOTION_PHRASES.values() for phrase in phrases)]
    words = {word for phrase in phrases for word in phrase.split() if "{" not in word}
    return tuple(sorted(words | {"an", *_SIZES, *_PLACES, *SHAPES, *COLOURS, *BACKGROUNDS}))


def words_by_kind() -> dict[str, tuple[str, ...]]:
    """The whole vocabulary for display: kind -> words, and for motions whole phrases."""
    kinds = {"shapes": SHAPES, "colours": tuple(COLOURS), "backgrounds": tuple(BACKGROUNDS), "motions": MOTIONS,
             "sizes": _SIZES, "places": _PLACES}
    said = {word for phrases in kinds.values() for phrase in phrases for word in phrase.split()}
    moving = {word for phrases in MOTION_PHRASES.values() for phrase in phrases for word in phrase.split()} - said
    rest = set(vocabulary()) - said - moving
    return kinds | {"also of motions": tuple(sorted(moving)), "other words": tuple(sorted(rest))}


# ---- from words to a request


@dataclass(frozen=True)
class ObjectRequest:
    """The properties of one object in a caption; None: not mentioned."""

    shape: str | None = None
    colour: str | None = None
    motion: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Request:
    """The content of a caption. No objects: it mentions none."""

    objects: tuple[ObjectRequest, ...] = ()
    background: str | None = None


_SYNONYMS = {"gray": "grey", "center": "middle", "centre": "middle", "big": "large", "disc": "circle", "disk": "circle",
             "plus": "cross", "rectangle": "bar", "violet": "purple", "upward": "up", "upwards": "up",
             "downward": "down", "downwards": "down", "falls": "sinks", "jumps": "hops"}
_VERBS = {stem + ending: verb for verb, stems in {
    "moves": ("move", "mov"), "goes": ("go",), "slides": ("slide", "slid"), "rises": ("rise", "ris"),
    "sinks": ("sink", "fall"), "bounces": ("bounce", "bounc"), "hops": ("hop", "hopp", "jump"), "grows": ("grow",),
    "gets": ("get", "gett"), "becomes": ("become", "becom"), "shrinks": ("shrink",), "stays": ("stay",),
    "stands": ("stand",)}.items() for stem in stems for ending in ("", "ing")}
_SIDE = "(?:left|right|up|down)"
_PATTERN = re.compile("|".join(rf"(?P<{name}>\b(?:{pattern})\b)" for name, pattern in {
    "where": r"(?:near|in|at|on) the (?:top|bottom|left|right|middle)(?: left| right)?",
    "bounces": r"(?:(?:bounces|hops)|(?:moves|goes)(?= up and down))(?: up and down)?",
    "orbit": r"(?:moves|goes)(?: around)? in (?:a circle|circles)",
    "still": r"(?:stays|stands|is) still|stays in place|does not move(?:s)?|motionless",
    "direction": rf"(?:moves|goes|slides)(?: diagonally)?(?: to the)? {_SIDE}(?:(?: and)?(?: to the)? {_SIDE})?",
    "rises": "rises(?: up)?", "sinks": "sinks(?: down)?", "grows": "grows|(?:gets|becomes) (?:bigger|larger)",
    "shrinks": "shrinks|(?:gets|becomes) smaller",
    "background": r"\w+ (?:background|wall)|" + "|".join(BACKGROUNDS),
    "size": "small|large", "colour": "|".join(COLOURS), "shape": r"(?:the )?(?:" + "|".join(SHAPES) + ")",
}.items()))
_MOTION_OF = {"orbit": "moves in a circle", "still": "stays still", "rises": "moves up", "sinks": "moves down",
              "bounces": "bounces", "grows": "grows", "shrinks": "shrinks"}


def _motion(kind: str, words: str) -> str | None:
    if kind != "direction":
        return _MOTION_OF.get(kind)
    sides = set(re.findall(_SIDE, words))
    found = [motion for motion in DIRECTIONS if set(re.findall(_SIDE, motion)) == sides]
    return found[0] if found else None


def parse_caption(text: str) -> Request:
    """Parses a caption, or a free prompt in similar words. Unknown words are ignored; `unjudged` tells them."""
    return _parse(text)[0]


def unjudged(text: str) -> list[str]:
    """What a caption asks for and no reading can confirm, in its own words: sizes, places, unknown or spare words.

    Such as ["purple background", "rotates"]; words without a meaning of their own, such as articles, do not count.
    """
    _, words, said = _parse(text)
    runs: list[list[int]] = []  # places of words that follow one another
    for i, (word, told) in enumerate(zip(words, said)):
        follows = bool(runs) and runs[-1][-1] == i - 1
        if told or (word in _FILLERS and not follows):
            continue
        if follows:
            runs[-1].append(i)
        else:
            runs.append([i])
    for run in runs:
        while words[run[-1]] in _FILLERS - {"background", "wall"}:
            run.pop()
    return [" ".join(words[i] for i in run) for run in runs]


_FILLERS = ({word for phrase in (*_SHORT, *_DENSE, *_SHORT_TWO, *_DENSE_TWO, *_BACKGROUND_PHRASES, *_WHERE_PHRASES)
             for word in phrase.split() if "{" not in word} | {"an", "to", "which", "are", "its", "one", "this"})


def _parse(text: str) -> tuple[Request, list[str], list[bool]]:
    """The request, the caption's words, and of each whether the request has it."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    plain = [_VERBS.get(word, word) for word in (_SYNONYMS.get(word, word) for word in words)]
    line, said = " ".join(plain), [False] * len(words)
    objects: list[ObjectRequest] = []
    background, pending = None, ObjectRequest()
    waits: dict[str, range] = {}  # the places of the pending colour and motion

    def note(*runs: range) -> None:
        for place in chain(*runs):
            said[place] = True

    for match in _PATTERN.finditer(line):
        kind, found = match.lastgroup, match.group()
        begin = line[:match.start()].count(" ")
        places = range(begin, begin + len(found.split()))
        if kind == "background":
            word = found.split()[0]
            if word in BACKGROUNDS:
                background = word
                note(places)
        elif kind in ("size", "colour"):
            pending = replace(pending, **{kind: found})
            if kind == "colour":
                waits["colour"] = places
        elif kind == "shape":
            shape = found.removeprefix("the ")
            if found == shape or pending.colour or shape not in [thing.shape for thing in objects]:
                objects.append(replace(pending, shape=shape))
                pending = ObjectRequest()
            note(*waits.values(), places)
            waits = {}
        elif kind != "where" and (motion := _motion(kind, found)):
            waiting = [i for i, thing in enumerate(objects) if thing.motion is None]
            for i in waiting:
                objects[i] = replace(objects[i], motion=motion)
            pending = pending if waiting or objects else replace(pending, motion=motion)
            if waiting:
                note(places)
            elif not objects:
                waits["motion"] = places
    if objects and pending.colour and objects[-1].colour is None:  # "a circle that is red"
        objects[-1] = replace(objects[-1], colour=pending.colour)
        note(*waits.values())
    return Request(tuple(objects), background), words, said
