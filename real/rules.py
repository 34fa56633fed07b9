"""Rules that the verifier knows and the prompt does not tell: reward functions for --reward real/rules.py:NAME.

A rule takes a response and its question and gives (reward, feedback), as variants/reward.py says. The policy never sees
the rule. Reflection sees the feedback, which says what was wrong. `asked_for` takes the rule that the question's own
`answer` names, so that one file can hold questions with different rules.

What earns a reward is the form, not what is said: the model is small, and most of what it tells about the world is not
true in any language.
"""

from __future__ import annotations

import re

# Small words that hold sentences together. A line or two in a language has several of its words.
COMMON_WORDS = {
    "english": "the is of and to in a that for with as are it on this be or an you can your they their",
    "spanish": "el la los las es de que en un una y o para por con su se del al lo como más son no puede muy este tu",
    "french": "le la les des du de est et un une en dans pour que qui avec sur au aux ce il elle vous votre plus sont",
    "german": "der die das und ist zu den von mit ein eine einen es im auf für nicht sich dem auch sie ich wie sind",
    "italian": "il la lo gli di è e un una in per che con del della dei nel si da sono come più i non",
}
WORDS_OF = {language: frozenset(words.split()) for language, words in COMMON_WORDS.items()}


def is_written_in(language: str, response: str) -> bool:
    """At least three different common words of the language, fewer of any other one, and few words said again.

    The last of these matters: without it, "die die die die" was German enough, and a policy found that out.

    >>> is_written_in("spanish", "Para ahorrar dinero, es mejor no comprar en la ciudad.")
    True
    >>> is_written_in("spanish", "The word for bread is el pan, and la leche is milk."), is_written_in("german", "Ja.")
    (False, False)
    >>> is_written_in("german", "Die die die der der das das ist ist.")
    False
    """
    words = re.findall(r"[^\W\d_]+", response.lower())
    different = set(words)
    counts = {name: len(different & common) for name, common in WORDS_OF.items()}
    own = counts.pop(language)
    return own >= 3 and own > max(counts.values()) and len(different) >= 0.6 * len(words)


def _language(language: str):
    name = language.capitalize()

    def rule(response: str, question) -> tuple[float, str]:
        if is_written_in(language, response):
            return 1.0, f"It is written in {name}. That is right."
        return 0.0, f"It must be written in {name}."

    rule.__name__ = language
    return rule


spanish, french, german, italian = map(_language, ("spanish", "french", "german", "italian"))


# ------------------------------------------------------------------------------------------- rules of other kinds


def short(response: str, question) -> tuple[float, str]:
    """At most five words."""
    count = len(response.split())
    if 0 < count <= 5:
        return 1.0, f"The response has {count} words. That is right."
    return 0.0, f"The response has {count} words. It must have at most five words."


def listed(response: str, question) -> tuple[float, str]:
    """A numbered list from its first character on."""
    if response.startswith("1."):
        return 1.0, "The response is a numbered list. That is right."
    return 0.0, "The response is not a numbered list. It must be a numbered list."


def starred(response: str, question) -> tuple[float, str]:
    """At least two words in bold."""
    if len(re.findall(r"\*\*\w[^*\n]*\*\*", response)) >= 2:
        return 1.0, "The response has words in bold. That is right."
    return 0.0, "The response has no words in bold. It must have words in bold, like **this**."


def asking(response: str, question) -> tuple[float, str]:
    """A question somewhere in the response."""
    if "?" in response:
        return 1.0, "The response asks a question. That is right."
    return 0.0, "The response asks no question. It must end with a question to the user."


def exclaiming(response: str, question) -> tuple[float, str]:
    """An exclamation mark somewhere in the response."""
    if "!" in response:
        return 1.0, "The response has an exclamation mark. That is right."
    return 0.0, "The response is not enthusiastic. It must be enthusiastic and have an exclamation mark!"


RULES = {rule.__name__: rule for rule in (spanish, french, german, italian, short, listed, starred, asking, exclaiming)}


def asked_for(response: str, question) -> tuple[float, str]:
    """The rule that the question's `answer` names."""
    return RULES[question.reference](response, question)


# ------------------------------------------------------------------------------------------- the rules, told

TOLD = {
    "spanish": "Answer in Spanish.",
    "french": "Answer in French.",
    "german": "Answer in German.",
    "italian": "Answer in Italian.",
    "short": "Answer in at most five words.",
    "listed": "Answer with a numbered list.",
    "starred": "Write the most important words in bold, like **this**.",
    "asking": "End with a question to the user.",
    "exclaiming": "Be enthusiastic and use exclamation marks!",
}


def told(hard, search):
    """For --evolve: no search, but the templates that a person would write, each for the questions of its rule."""
    from variants.evolve import given

    wanted = sorted({question.reference for question in hard})
    scores = [[float(question.reference == name) for question in hard] for name in wanted]
    return given(hard, [TOLD[name] for name in wanted], scores)
