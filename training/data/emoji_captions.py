"""Captions of emoji: the name or keywords, a colour that it was given, a background."""

import random
from dataclasses import dataclass

COLOUR_WORDS = frozenset({"red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"})


@dataclass(frozen=True, slots=True)
class Concept:
    """One drawing of the atlas.

    Attributes:
        name: as Unicode calls it, in lower case.
        keywords: as Unicode's annotations have them.
    """

    name: str
    keywords: tuple[str, ...]


def coloured_name(name: str, colour: str | None) -> str:
    """The name of a drawing in another colour: "apple" → "blue apple", "red apple" → "blue apple"."""
    if colour is None:
        return name
    words = name.split()
    if COLOUR_WORDS.isdisjoint(words):
        return f"{colour} {name}"
    return " ".join(colour if word in COLOUR_WORDS else word for word in words)


def plain_caption(concept: Concept, colour: str | None, background: str | None) -> str:
    """The caption that says what matters and no more."""
    return coloured_name(concept.name, colour) + behind(background)


def varied_caption(concept: Concept, colour: str | None, background: str | None, draw: random.Random) -> str:
    """One of the many ways to say it: the name, with an article or with keywords, or keywords alone."""
    keywords = [
        word for word in concept.keywords if colour is None or COLOUR_WORDS.isdisjoint(word.split())
    ]  # "red" is a keyword of the red apple, and wrong of a blue one
    form = draw.random()
    chosen = draw.sample(keywords, min(len(keywords), draw.randint(1, 3)))
    if form < 0.1 and chosen:
        text = ", ".join(chosen) if colour is None else f"{colour} {', '.join(chosen)}"
    else:
        text = coloured_name(concept.name, colour)
        if form < 0.3:
            text = f"a {text}"
        elif form < 0.6 and chosen:
            text = f"{text}, {', '.join(chosen)}"
    return text + behind(background)


def behind(background: str | None) -> str:
    """What a caption says of the background; nothing of a white one."""
    return "" if background is None else f" on a {background} background"
