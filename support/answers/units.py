r"""What stands behind a number: a unit, which is dropped, or words that change the value, which are not.

    >>> split(r"5\text{ million dollars}"), split("10 degrees below zero").unit
    (Measured(value='5', scale=Fraction(1000000, 1), unit='dollar', words='million dollar'), None)

Only what is known to be a unit, or looks like the name of things (a plural), may be dropped. A list of words that
change a value is never complete, and a wrong 1 is worse than a wrong 0.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple


class Measured(NamedTuple):
    value: str  # what stands before the words
    scale: Fraction  # what the words multiply it by: a million, a tenth
    unit: str | None  # one spelling of the unit, "" if there is none; None: the words may change the value
    words: str  # the words in one layout


_SIZES = dict(ten=10, dozen=12, hundred=100, thousand=1000, 万=10**4, million=10**6, 亿=10**8, billion=10**9)
_PARTS = dict(half=2, halve=2, third=3, quarter=4, fourth=4, fifth=5, sixth=6, seventh=7, eighth=8, ninth=9, tenth=10)
_PARTS |= dict(eleventh=11, twelfth=12, hundredth=100, thousandth=1000, millionth=10**6)
_SCALES = {name: Fraction(size) for name, size in _SIZES.items()} | {"trillion": Fraction(10**12)}
_SCALES |= {name: Fraction(1, size) for name, size in _PARTS.items()}

# one spelling of each unit and its others, without the plural's s
_PREFIXED = "m meter metre|g gram|L l liter litre|s second|N newton|J joule|W watt|V volt|A amp ampere|Hz hertz"
_PREFIXED += "|Pa pascal|mol mole|ohm Ω|cal calorie|byte|bit|eV|pc parsec|bar|erg|farad|henry|tesla|coulomb"
_PLAIN = "s sec|min minute|h hr hour|day|week wk|month|year yr|in inch|ft foot feet|yd yard|mi mile|acre|hectare|"
_PLAIN += "lb pound|oz ounce|ton tonne|gal gallon|quart|pint|cup|K kelvin|C celsius|F fahrenheit|deg degree|rad radian|"
_PLAIN += (
    "AU|ly lightyear|arcsec arcsecond|arcmin arcminute|Å angstrom|dB decibel|lux|lumen|dyne|psi|hp horsepower|knot|"
)
_PLAIN += "kWh|atm|rpm|unit|dollar USD|cent ¢|euro EUR €|yen|yuan|rupee Rs|people|children|men|women"
_PREFIXES = [("k", "kilo"), ("c", "centi"), ("m", "milli"), ("µ", "micro"), ("d", "deci"), ("n", "nano"), ("M", "mega")]


def _names() -> dict[str, str]:
    """Each spelling of a unit -> its first one."""
    names = {}
    for row in (_PREFIXED + "|" + _PLAIN).split("|"):
        for name in row.split():
            names[name] = row.split()[0]
    for row in _PREFIXED.split("|"):
        for name in row.split():
            for short, long in _PREFIXES:  # km, kilometer
                names[(long if len(name) > 3 else short) + name] = short + row.split()[0]
    return names


_NAMES = _names()

# words that make a plural, or what it is the plural of, another number
_CHANGES = re.compile(
    r"or|and|to|than|not?|non.*|out|more|less|fewer|extra|additional|another|other|most|least|.*illions?|.*(?:teen|tie)ths?|myriads?|times|plus|minus"
    r"|negatives?|positives?|below|above|under|over|up|down|left|right|before|after|ago|early|late|behind|ahead|short"
    r"|north.*|south.*|east.*|west.*|.*clockwise|loss(?:es)?|lost|debts?|owed|deficits?|profits?|gains?|wins?|scores?"
    r"|gross|pairs?|couples?|basis|percent.*|base|binary|remainders?|each|every|choose|axis|infinity|squared|cubed|only"
    r"|missing|mill?e?|twice|double|triple|inverse|factorial|sqrt|over|alpha|beta|theta|grands?"
)
_POWER = r"(?: ?\^ ?\{?(?:-?[1-9])\}?)?"
_TEXT = rf"\\text ?\{{(?:[^{{}}]|\{{[^{{}}]*\}})*\}}{_POWER}"
_TEXTS = rf"((?:{_TEXT}|\\cdot(?![a-zA-Z])| )+)"
_QUOTIENT = rf"\\frac ?\{{{_TEXTS}\}} ?\{{{_TEXTS}\}}"
_DEGREES = r"\^ ?\{? ?\\circ ?\}?(?: ?[CF](?![a-zA-Z]))?|\\degree(?![a-zA-Z])"
# without \text{}: words, and abbreviations that nobody takes for a product of unknowns
_BARE = (
    r"(?<=[0-9} )])(?<![a-zA-Z\\])(?:[ckm]m|[km]g|m[lL]|ft|lbs?|[mk]ph|mi|hrs?|mins?|secs?|yrs?|USD|sq|old"
    r"|(?:in|of|per|the)(?= )|m(?=/s)|(?<=[0-9] )m(?=\^)|[a-zA-Z]{4,}\b|[一-鿿]+)"
    rf"{_POWER}(?: ?/ ?[a-zA-Z]+{_POWER})*"
)
_TAIL = re.compile(
    rf"(?: |\\cdot(?![a-zA-Z])|/(?= ?\\text)|\\mu(?= ?\\text)|\\Omega|[¢€]|{_TEXT}|{_QUOTIENT}|{_DEGREES}|{_BARE})+$"
)
_FLAT = [  # a tail as plain words, `/` and `^2`
    (re.compile(_QUOTIENT), r"\1 / \2"),
    (re.compile(r"\\mu ?(?:\\text ?\{)?"), "µ"),
    (re.compile(r"\\Omega"), "ohm"),
    (re.compile(r"\^ ?\{? ?\\circ ?\}?|\\degree"), " deg "),
    (re.compile(r"\\(?:text|cdot|times)(?![a-zA-Z])|[{}]"), " "),
    (re.compile(r"\."), ""),
    (re.compile(r"\^ *\+?(-?\d)(?!\d)"), r" ^\1 "),
    (re.compile(r"\b([mk])ph\b"), lambda match: "mi / h" if match[1] == "m" else "km / h"),
    (re.compile(r" (?:in (?:total|all)|total|altogether|old|long|wide|tall) *$"), ""),
]
_TOKEN = re.compile(r"\^-?\d|µ?[^\W\d_]+|\S")


def _name(word: str) -> str | None:
    """The one spelling of a known unit. Case counts in abbreviations."""
    forms = [word, word.removesuffix("s"), word.removesuffix("es")]
    if len(word) > 3:
        forms += [form.lower() for form in forms]
    return next((_NAMES[form] for form in forms if form in _NAMES), None)


def _is_plural(word: str) -> bool:
    """cats, and words of other scripts: 元, but not 万, which is ten thousand."""
    if not word.isascii():
        return not re.search("[十百千万亿兆萬億成半]", word)
    return len(word) > 3 and bool(re.search("[^sui]s$", word))


def _unit(tokens: list[str], one: bool) -> str | None:
    """One spelling of a unit, None if these words are none."""
    powers: Counter[str] = Counter()
    sign, power, last, open_end = 1, 1, "", False
    for token in tokens:
        word = token.lower()
        if word in ("/", "per", "of"):
            sign, open_end = (sign if word == "of" else -1), True
        elif word in ("(", ")", "a", "an", "the"):
            continue
        elif word in ("square", "sq", "cubic"):
            power = 3 if word == "cubic" else 2
        elif word in ("squared", "cubed") and last:
            powers[last] += sign * (2 if word == "cubed" else 1)
        elif len(token) > 1 and token[0] == "^" and last:
            powers[last] += sign * (int(token[1:]) - 1)
        elif name := _name(token):
            if last == "deg" and name not in "CF":  # 30 degrees N
                return None
            last, powers[name], power = name, powers[name] + sign * power, 1
        elif _CHANGES.fullmatch(word) or word.removesuffix("s") in _SCALES or not word.isalpha():
            return None
        elif last and not open_end:
            return None
        else:
            powers[word.removesuffix("s")] += sign * power
            power = 1
            if one or open_end or _is_plural(word):
                last = word
    return " ".join(f"{name}^{power}" for name, power in sorted(powers.items())).replace("^1", "") if last else None


def _belongs_to(value: str, tail: str) -> bool:
    r"""Degrees of an angle inside sin, and m or \Omega in a formula of unknowns, are no units.

    >>> _belongs_to(r"2 \sin 30", r"^\circ"), _belongs_to("3 m^{2} + 2", " m^{2}"), _belongs_to("12", " m^{2}")
    (True, True, False)
    """
    if "circ" in tail or "degree" in tail:
        return bool(re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])", value))
    if re.match(r" ?(?:m(?![a-zA-Z])|\\Omega)", tail):
        return bool(re.search(r"(?<![\\a-zA-Z])[a-zA-Z]|\\(?!frac|times|cdot|pi|sqrt)", value))
    return False


@functools.lru_cache(4096)
def split(text: str) -> Measured:
    r"""A tidy answer and the words behind it.

    >>> split(r"60\frac{\text{km}}{\text{h}}").unit, split("60 km/h").unit, split(r"5\text{ red marbles}").unit
    ('h^-1 km', 'h^-1 km', 'marble red')
    >>> split("7 tenths").scale, split(r"44\text{ BC}").unit, split("2ab")
    (Fraction(1, 10), None, Measured(value='2ab', scale=Fraction(1, 1), unit='', words=''))
    """
    match = None if text[-1:].isdigit() else _TAIL.search(text, max(0, len(text) - 100))
    value, tail = (text[: match.start()].strip(), match[0]) if match else (text, "")
    if not value or not tail.replace(r"\cdot", "").strip() or _belongs_to(value, tail):
        return Measured(text, Fraction(1), "", "")
    for pattern, replacement in _FLAT:
        tail = pattern.sub(replacement, tail)
    tokens = _TOKEN.findall(tail)
    words, scale = " ".join(_name(token) or token.lower() for token in tokens), Fraction(1)
    while tokens and (size := _SCALES.get(tokens[0].lower()) or _SCALES.get(tokens[0].lower().removesuffix("s"))):
        scale, tokens = scale * size, tokens[1:]
    while scale != 1 and tokens and tokens[0] in ("of", "a", "an", "the"):
        tokens = tokens[1:]
    return Measured(value, scale, _unit(tokens, value == "1") if tokens else "", words)


def same_words(answer: str, reference: str) -> tuple[str, str] | None:
    r"""Both without their words where these are the same, both as they are where one has none, None if they differ.

    >>> same_words("5.0 units left", "5 units left"), same_words("5 cm", "5 kg"), same_words("5 cm", "5")
    (('5.0', '5'), None, ('5 cm', '5'))
    """
    one, other = split(answer), split(reference)
    if one.words and one.words == other.words:
        return one.value, other.value
    return None if one.unit and other.unit and one.unit != other.unit else (answer, reference)
