r"""Do two answers say the same? What text, plain numbers and plain words can tell, in microseconds.

    >>> quick(r"\dfrac{1}{2}", "0.5"), quick("seven", "7"), quick("x+x", "2x")
    (True, False, None)

Most answers of a training run are decided here. Where `quick` says None, `support.answers.symbolic` compares formulas.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from fractions import Fraction

from support.answers.latex import canonical, tidy
from support.answers.units import same_words, split

# --- numbers: one way from text to a Fraction -------------------------------------------------------------------------

_EUROPEAN = r"[0-9]{1,3}(?:(?:\.[0-9]{3}){2,}(?:,[0-9]+)?|(?:[. ][0-9]{3})+,[0-9]+)"  # 1.234.567, 1.234,5 and 1 234,5
_D = r"(?:[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?:\.[0-9]+)?|[0-9]+[.,]?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(rf"([-+]?) ?(?:([0-9]+) (?=[0-9]+ ?/))?([-+]?{_D})(?: ?/ ?(-?{_D}))?(?:[eE]([-+]?[0-9]{{1,3}}))?")
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:([, ])[0-9]{3})(?:\1[0-9]{3})*(?:\.[0-9]+)?")
_FRACTION = re.compile(rf"\\frac ?(?:\{{ ?([-+]?{_D}) ?\}}|([0-9])) ?(?:\{{ ?(-?{_D}) ?\}}|([0-9]))(?! ?[0-9])")
_REPEATING = re.compile(
    r"([0-9]*)\.(?:([0-9]*)\\(?:overline|bar|dot) ?\{([0-9]+)\}"
    r"|([0-9]*?)(?:([0-9])\5{2,}|([0-9]{2,})\6+) ?(?:\\[lc]?dots|\.\.\.))"
)
_POWER = re.compile(r"(?:(^[-+]?)|(?<=[0-9]) ?(?:\\times|\\cdot|x) ?)10 ?\^ ?(?:\{ ?([-+]?[0-9]{1,3}) ?\}|([0-9]))$")
_EUROPEAN_NUMBER = re.compile(rf"(?<![0-9.,]){_EUROPEAN}(?![0-9.,])")
_PERCENT = re.compile(r" ?(?:\\?%|(?:\\text ?\{)? ?(?:percent(?:age)?|pct) ?\}?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Number:
    value: Fraction
    percent: bool = False  # it had a percent sign
    decimals: int = 0  # as written; a fraction and a whole number have none


def _decimal(digits: str) -> Fraction:
    """ "1,000.5" and "1 000.5" -> 2001/2; "2,5" -> 5/2"""
    return Fraction((re.sub("[, ]", "", digits) if _THOUSANDS.fullmatch(digits) else digits).replace(",", "."))


def _repeating(match: re.Match) -> str:
    """0.1\\overline{6} and 0.1666... -> 15/90"""
    whole, fixed, period = match[1], match[2] or match[4] or "", match[3] or match[5] or match[6]
    return f" {int(whole + fixed + period) - int(whole + fixed or 0)}/{(10 ** len(period) - 1) * 10 ** len(fixed)}"


def number(text: str) -> Number | None:
    r"""A tidy plain number, None for anything else.

    >>> number(r"1\frac{1}{2}"), number("x"), number("_5")
    (Number(value=Fraction(3, 2), percent=False, decimals=0), None, None)
    >>> number("1 2/2"), number("1 0/2")  # no mixed numbers
    (None, None)
    >>> number(r"12.50\%")
    Number(value=Fraction(25, 2), percent=True, decimals=2)
    >>> number(r"1.2345\times10^{2}"), number("-10^3").value
    (Number(value=Fraction(2469, 20), percent=False, decimals=2), Fraction(-1000, 1))
    >>> number("12.00")  # exact: nobody rounded to an integer and wrote zeros behind it
    Number(value=Fraction(12, 1), percent=False, decimals=0)
    """
    bare = _PERCENT.sub("", text)
    percent = bare != text
    measured = split(bare)
    if measured.unit is None:
        return None
    bare = measured.value.strip("$€£¥₹ " + "()" * ("," not in bare))  # (2,128) is a point
    bare = _EUROPEAN_NUMBER.sub(lambda match: re.sub("[. ]", "", match[0]).replace(",", "."), bare)
    bare = re.sub("(?<=[0-9])'(?=[0-9]{3}(?![0-9]))", "", bare)  # 1'000, as the Swiss write it
    bare = _REPEATING.sub(_repeating, bare)
    bare = _FRACTION.sub(lambda match: f" {match[1] or match[2]}/{match[3] or match[4]}", bare)
    bare = _POWER.sub(lambda match: ("" if match[1] is None else match[1] + "1") + "e" + (match[2] or match[3]), bare)
    if not (match := _NUMBER.fullmatch(bare.strip())):
        return None
    sign, whole, top, bottom, exponent = match.groups()
    try:
        value = _decimal(top) / _decimal(bottom or "1")
    except (ValueError, ZeroDivisionError):  # "1,00,0", "1/0"
        return None
    if whole and not 0 < value < 1:
        return None
    value = (value + int(whole or 0)) * (-1 if sign == "-" else 1) * Fraction(10) ** int(exponent or 0) * measured.scale
    written = re.search("[.,](.*)", top) if not bottom and value.denominator > 1 else None
    return Number(value, percent, len(written[1]) - int(exponent or 0) if written else 0)


def _terminates(denominator: int) -> bool:
    """3/8 is 0.375, and nobody would write it as 0.3750001.

    >>> _terminates(8), _terminates(80), _terminates(3)
    (True, True, False)
    """
    return 10 ** denominator.bit_length() % denominator == 0


def _same_number(one: Number, other: Number) -> bool:
    """Exactly, or to the sixth decimal if one is written to six or more; a percentage is its number or its value."""
    (few, exact_one), (many, _) = sorted((n.decimals, n.value) for n in (one, other))
    rounded = few != many >= 6 and (few >= 6 or not _terminates(exact_one.denominator))

    def close(x: Fraction, y: Fraction) -> bool:
        return x == y or rounded and abs(x - y) <= Fraction(min(1, 10 * max(abs(x), abs(y)))) / 2_000_000

    x, y = one.value, other.value
    return close(x, y) or one.percent != other.percent and (close(x / 100, y) if one.percent else close(x, y / 100))


# --- words, names, and what is not worked out -------------------------------------------------------------------------

_ONLY_WORDS = re.compile(  # four letters, HTH, IV, and short words (nobody calls an unknown o): no is not on, ab is ba
    r"[a-zA-Z]{4}|^[A-Z]{3,}$|^[IVXL]{2,}$|(?i:\b(?:[a-z]?o[a-z]|[a-z]{1,2}o|yes|up|all|any|six|ten|net|end|den|man|men|day|was|saw)\b)"
)

_ARTICLE = re.compile(r"(?:\b(?:an?|An?|[Tt]he)|^[Aa]ll) (?=(?!and\b|or\b)[a-zA-Z]{3,})")
_ONE_TEXT = re.compile(r"\\text ?\{[^{}]*\}")


def words(text: str) -> tuple[str, bool] | None:
    r"""Plain words without case and `\text{}`, and whether they can only be words; None if there is more than words.

    >>> words(r"\text{ab}"), words("ab"), words("HTH"), words("Evelyn"), words("x+1")  # ab may be a product
    (('ab', True), ('ab', False), ('hth', True), ('evelyn', True), None)
    >>> words("no"), words(r"\text{I and III only}"), words("I, III")
    (('no', True), ('i, iii', True), ('i, iii', False))
    >>> words(r"\text{An ellipse}"), words(r"\text{Circle of radius 2}"), words("e")  # e may be the number
    (('ellipse', True), ('circle of radius 2', True), ('e', False))
    """
    bare = re.sub(r"\\text ?\{ ?([^{}]*?) ?\}", r"\1", text).strip("() .")
    bare = re.sub(r",? (?:and|&) |, ?", ", ", bare.removesuffix(" only"))
    bare = _ARTICLE.sub("", bare)
    numerals = "0-9" if _ONE_TEXT.fullmatch(text) else ""  # "circle of radius 2"
    if not re.fullmatch(rf"[a-zA-Z]+(?:,? [a-zA-Z{numerals}]+)*", bare):
        return None
    only = len(bare) == 1 and bare != "e" or text.startswith(r"\text") or bool(_ONLY_WORDS.search(bare))
    return bare.casefold(), only


def _same_words(one: str, other: str, joined: bool) -> bool:
    """The same words. What is joined by `and`, and names of one letter, are in no order; 'Dan, Ann' may be a ranking.

    >>> _same_words("bob, ann", "ann, bob", True), _same_words("bob, ann", "ann, bob", False)
    (True, False)
    >>> _same_words("ii, i", "i, ii", False), _same_words("c, a", "a, c", False)
    (True, True)
    """
    if one == other:
        return True
    items, others = one.split(", "), other.split(", ")
    joined = joined or all(re.fullmatch("[a-h]|[ivx]+", item) for item in items)
    return joined and sorted(items) == sorted(others)


_CHOICE = re.compile(
    r"(?:\\text ?\{)? ?"
    r"(?:\(([A-Ha-h])\)|([A-Ha-h])[.)](?![A-Z]\b)|([A-H]): (?=[^ ]{2}|[0-9])|(?<=\{)([A-H]) ?- ?(?=[a-zA-Z][a-z]))"
    r" ?\}? ?"
    # no choices: (A) or (B), (A)(B), (b)^2-4ac
    r"(?!(?:\\text ?\{ ?)?(?:and|or|[,;/&])(?![a-zA-Z])|\(?[A-H]\)|[*/^_=!<>']|[-+](?!\d))(\S.*)",
    re.DOTALL,
)


def choice(text: str) -> tuple[str, str] | None:
    """The letter of a choice and its text. What has the next letter, too, is an answer in parts.

    >>> choice("(C) 12"), choice("c. 3"), choice(r"\\text{B: the sun}"), choice("12")
    (('c', '12'), ('c', '3'), ('b', 'the sun'), None)
    >>> choice("(A) or (B)"), choice("(a) 5; (b) 7"), choice("(b)^2-4ac")
    (None, None, None)
    """
    if not (match := _CHOICE.match(text)):
        return None
    *letters, said = match.groups()
    letter = "".join(filter(None, letters)).lower()
    in_parts = re.search(rf"(?<![a-zA-Z])\(?{chr(ord(letter) + 1)}[).:]", said, re.IGNORECASE)
    return None if in_parts else (letter, said.removesuffix("}") if text.startswith(r"\text") else said)


def _choices(text: str) -> list[str] | None:
    r"""The letters of several choices: a list in any order, or the letters alone in that of the alphabet.

    >>> _choices(r"\text{(A) and (C)}"), _choices("AC"), _choices("CA"), _choices("C")
    (['A', 'C'], ['A', 'C'], None, None)
    """
    letters = re.sub(r"\\text|\band\b|[(){} ,;.&]", "", text)
    in_order = sorted(set(letters)) == list(letters)
    return sorted(letters) if re.fullmatch("[A-H]{2,}", letters) and (in_order or letters not in text) else None


def same_choice(answer: str, reference: str) -> bool | None:
    """The verdict on the letter of a choice against a letter with its text; None for anything else."""
    for text, letter in ((answer, words(reference)), (reference, words(answer))):
        if letter and len(letter[0]) == 1 and (option := choice(text)):
            return option[0] == letter[0]
    return None


_ATTACHED = re.compile(r"[_^] ?(?:\{[^{}]*\}|\w)|(?<=[A-Zf-hp-w}])\([^()]*\)")  # indices, powers and arguments
_WORK = re.compile(
    r"\\(int|lim|sum|prod|det|gcd|lcm|max|min|bmod|mod|pmod)(?![a-zA-Z])|(vmatrix)|\\frac ?\{ ?(d|\\partial) ?[a-z]?\}"
)
_SIGN = re.compile(r"=|\\(?:approx|equiv|in)(?![a-zA-Z])")
_MODULUS = re.compile(r" ?\\([pb])mod ?\{([^{}]*)\}$")
_REMAINDERS = re.compile(
    r"((?:[^=,]*(?:=|\\equiv))?)((?: ?-?[0-9]+ ?,(?![0-9]{3}))* ?-?[0-9]+) ?\\[pb]mod ?\{ ?([1-9][0-9]*) ?\}"
)
_LIST = re.compile(r"[,;]|(?<![\\a-zA-Z])(?:and|or)(?![a-z])")
RELATION = re.compile(r"[<>]|\\(?:[lgn]e|[lg]t)(?![a-zA-Z])")
_DENIED = re.compile(r"\\(?:not|neg)|\b(?:not|never|false|wrong|than|twice)\b")  # such a text names no value
_INNER = re.compile(  # the conditions of cases, what braces hold, and the event in P(X = 4)
    r"\\begin.*\\end|\{(?:[^{}]|\{[^{}]*\})*\}|(?<=[A-Zf-hp-w}])\([^()]*\)"
)


def _named(text: str) -> tuple[str, str]:
    r"""(left side, last member) of one equation or of `x \in A`; ("", text) of anything else, as a list of equations.

    >>> _named("f(x) = 2x"), _named("x = 1+1 = 2"), _named("x=1, y=2")
    (('f(x)', '2x'), ('x', '2'), ('', 'x=1, y=2'))
    """
    hidden = _INNER.sub(lambda match: match[0].replace("=", "\0"), text)  # the k = 1 of a sum names nothing
    sign = _SIGN.search(hidden)
    name, value = (hidden[: sign.start()].strip(), hidden[sign.end() :]) if sign else ("", "")
    several = (
        _LIST.search(value) and _SIGN.search(value) or _LIST.search(re.sub(r"\([^()]*\)", "", _ATTACHED.sub("", name)))
    )
    if not sign or several or RELATION.search(_INNER.sub("", hidden)) or _DENIED.search(_ATTACHED.sub("", name)):
        return "", text
    *members, value = value.split(r"\approx")[0].split("=")
    name = next((m.strip() for m in (name, *members) if not re.search("[0-9]", _ATTACHED.sub("", m))), name)
    return name.replace("\0", "="), value.strip().replace("\0", "=")


def _exact_part(answer: str, reference: str) -> str:
    r"""What stands left of `\approx`, where the reference is no decimal: 2\pi \approx 6.28 says 2\pi.

    >>> _exact_part(r"2\pi \approx 6.28", r"2\pi"), _exact_part(r"x \approx 5", "5")
    ('2\\pi ', 'x \\approx 5')
    >>> _exact_part(r"\pi \approx 3.1", "3.1")
    '\\pi \\approx 3.1'
    """
    exact, sign, _ = answer.partition(r"\approx")
    if not sign or r"\approx" in reference or re.fullmatch("[a-zA-Z]", exact.strip()):
        return answer
    asked, said = number(reference), number(exact.strip())
    fraction = asked and said and not asked.decimals and not said.decimals
    return exact if fraction or not asked else answer


def _asked_part(answer: str, reference: str) -> str:
    r"""Of a reference that gives a value and its rounding: the rounding for a decimal, the value for anything else.

    >>> _asked_part("13.33", r"\frac{40}{3} \approx 13.33"), _asked_part("40/3", r"\frac{40}{3} \approx 13.33")
    ('13.33', '\\frac{40}{3}')
    >>> _asked_part("5", r"x \approx 5")
    'x \\approx 5'
    """
    exact, sign, rounded = (part.strip() for part in reference.partition(r"\approx"))
    if not sign or r"\approx" in answer or not number(rounded) or re.fullmatch("[a-zA-Z]?", exact):
        return reference
    said = number(answer)
    return rounded if said and 0 < said.decimals < 6 else exact


def _name_first(text: str) -> str:
    r"""A number and the letter it is the value of: 3 = x is x = 3.

    >>> _name_first(r"\frac12 = x"), _name_first("2y = x")
    ('x=\\frac12 ', '2y = x')
    """
    value, _, name = text.rpartition("=")
    is_number = re.search("[0-9]", value) and not re.search("[=<>,;a-zA-Z]", re.sub(r"\\(?:frac|sqrt|pi)", "", value))
    return f"{name.strip()}={value}" if is_number and re.fullmatch(" ?[a-zA-Z]", name) else text


_UNKNOWN = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]")


def _same_name(one: str, other: str) -> bool:
    """y is y(x).

    >>> _same_name("y(x)", "y"), _same_name("f(1)", "f"), _same_name("f(x)", "f(y)"), _same_name("|AB|", "AB")
    (True, False, False, True)
    """
    one, other = (name.replace("[", "(").replace("]", ")") for name in (one, other))  # E[X] is E(X)
    one, other = (re.sub(r"\|([A-Z]{2})\||\\overline\{([A-Z]{2})\}", r"\1\2", name) for name in (one, other))
    return one == other or re.sub(r"\([a-z]\)$", "", one) == other or re.sub(r"\([a-z]\)$", "", other) == one


def _without_modulus(answer: str, reference: str) -> tuple[str, str]:
    r"""Both without their modulus, if it is the same one or only one side has it.

    >>> _without_modulus(r"x \equiv -1\pmod{4}", r"3\pmod{4}"), _without_modulus(r"3\pmod{4}", r"3\pmod{5}")
    (('x \\equiv3', '3'), ('3\\pmod{4}', '3\\pmod{5}'))
    """
    one, other = _MODULUS.search(answer), _MODULUS.search(reference)
    if one and other:
        if canonical(one[2]) != canonical(other[2]):
            return answer, reference
        lists = [_REMAINDERS.fullmatch(text) for text in (answer, reference)]
        if all(lists):  # 9, 5 is 2, 5
            answer, reference = (f"{m[1]}{','.join(str(int(n) % int(m[3])) for n in m[2].split(','))}" for m in lists)
    elif not any(m and (m[1] == "p" or r"\equiv" in m.string) for m in (one, other)):
        return answer, reference  # 17 \bmod 5 may be a number that nobody worked out
    return _MODULUS.sub("", answer), _MODULUS.sub("", reference)


def unnamed(answer: str, reference: str) -> tuple[str, str]:
    r"""Both without what stands left of `=`, where only one has a name or both have the same.

    >>> unnamed("x=5", "5"), unnamed("x=5", "x = 5.0"), unnamed("x=5", "y=5"), unnamed("5", "2x+z=5")
    (('5', '5'), ('5', '5.0'), ('x=5', 'y=5'), ('5', '2x+z=5'))
    """
    answer, reference = _without_modulus(answer, reference)
    answer, reference = _name_first(answer), _name_first(reference)
    answer, reference = _exact_part(answer, reference), _asked_part(answer, reference)
    (name, value), (target_name, target) = _named(answer), _named(reference)
    bare, target_bare = _ATTACHED.sub("", name), _ATTACHED.sub("", target_name)
    if name and target_name:  # 0 = x - y may be 0 = y - x
        if number(name):
            return answer, reference
        return (value, target) if _same_name(canonical(name), canonical(target_name)) else (answer, reference)
    if target_name and not re.search(r"[-+0-9]", target_bare):
        return answer, target
    if target_name and not _UNKNOWN.search(target_name) and not number(target_name):
        return answer, target  # \log_2 \sqrt{2} = 1/2; but 12 = 2^2 \cdot 3 asks for more than the value
    # of an answer also `a+b = 5` and `17 \bmod 5 = 2`, but no equation that may still have to be solved: `2x+3 = 5`
    is_work = re.match(r"\\(?:sum|prod|int|lim|begin ?\{vmatrix)(?![a-z])", name)
    if name and not bare.startswith("-") and (is_work or not (re.search("[0-9]", bare) and _UNKNOWN.search(bare))):
        return value, reference
    return answer, reference


def _unworked(answer: str, reference: str) -> bool:
    """Is there an integral, a limit, a determinant that nobody worked out? A copy of the question is no answer."""
    kinds = [{"".join(filter(None, match.groups())) for match in _WORK.finditer(text)} for text in (answer, reference)]
    return not kinds[0] <= kinds[1]


def _rounded(match: re.Match) -> str:
    """0.30000000000000004 and, of a float of 32 bits, 3.299999952316284 -> 0.3 and 3.3; any other text as it is."""
    digits = match[0]
    value, is_long = float(digits), 16 <= len(digits.replace(".", "").lstrip("0")) <= 17
    short = f"{value:.12g}"
    if is_long and abs(float(short) - value) <= 1e-15 * value:
        return short
    if value < 1e30 and _in_32_bits(value) == value and Fraction(value) != Fraction(digits):
        return next(short for n in range(6, 10) if _in_32_bits(float(short := f"{value:.{n}g}")) == value)
    return digits


def _in_32_bits(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def _without_noise(text: str) -> str:
    return re.sub(r"[0-9]+\.[0-9]{10,}", _rounded, text)


_RATIO = re.compile(r"[0-9]+ ?: ?[0-9]+")
_TO = re.compile(r"^([0-9]+) ?(?:\\text ?\{ ?)?to(?: ?\})? ?([0-9]+)$")


def bare(answer: str, reference: str) -> tuple[str, str] | None:
    """Two tidy answers without names, words that they share and a float's noise; None if their units differ.

    >>> bare("3.3", "3.3000000000000003"), bare("0.333", "0.3333333333333333"), bare("3.3", "3.299999952316284")
    (('3.3', '3.3'), ('0.333', '0.3333333333333333'), ('3.3', '3.3'))
    """
    if _RATIO.fullmatch(answer) or _RATIO.fullmatch(reference):  # 3 to 4 is 3:4; elsewhere it may be a range
        answer, reference = (_TO.sub(r"\1:\2", text) for text in (answer, reference))
    named = words(answer)
    if (option := choice(reference)) and not choice(answer) and not (named and len(named[0]) == 1):
        reference = option[1]  # 12 answers (C) 12
    if (exact := _without_noise(reference)) != reference:  # a reference that a program has computed
        answer, reference = _without_noise(answer), exact
    return same_words(*unnamed(answer, reference))


_CLOCK = re.compile(r"(\d{1,2})(?::([0-5]\d))?(?: ?\\text ?\{ ?([ap])m ?\})?")


def _clock(text: str) -> int | None:
    r"""The minutes since midnight, None if it is no time of day. A number alone is none.

    >>> _clock("18:45"), _clock(r"6:45\text{ pm}"), _clock(r"12\text{ am}"), _clock("6"), _clock("6:75")
    (1125, 1125, 0, None, None)
    """
    match = _CLOCK.fullmatch(text)
    if not match or not match[2] and not match[3]:
        return None
    hour = int(match[1]) % 12 + 12 * (match[3] == "p") if match[3] else int(match[1])
    return 60 * hour + int(match[2] or 0)


_QUANTITY = re.compile(r"(-?[0-9][0-9.,/]*) ?(\^ ?\{?\\circ ?\}?|''?|[a-zA-Z]+) ?(?:, ?|and )*")


def quantities(text: str) -> dict[str, Number] | None:
    r"""The numbers of a measure in several units, by unit; None of anything else.

    >>> quantities("5 feet 3 inches") == quantities(r"5\text{ ft and }3\text{ in}"), quantities("5 feet")
    (True, None)
    """
    flat = re.sub(" +", " ", re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", text))
    found = _QUANTITY.findall(flat)
    if len(found) < 2 or _QUANTITY.sub("", flat).strip(" ."):
        return None
    measured = {}
    for digits, unit in found:
        name = re.sub("[{} ]", "", unit) if unit[0] in "'^" else split(f"1\\text{{{unit}}}").unit
        if not name or name in measured or not (value := number(digits.strip(","))):
            return None
        measured[name] = value
    return measured


_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec".split()


def _date(text: str) -> tuple[str, ...] | None:
    r"""The month and the numbers of a date in some order; None if it is no date.

    >>> _date(r"\text{March 15th, 2024}") == _date("15 Mar 2024"), _date("march"), _date("2 pears")
    (True, None, None)
    """
    parts = re.findall("[a-z]+|[0-9]+", re.sub(r"\\text|(?<=[0-9])(?:st|nd|rd|th)\b|\bof\b", "", text.lower()))
    named = [word[:3] for word in parts if word.isalpha()]
    if len(named) != 1 or named[0] not in _MONTHS or not 2 <= len(parts) <= 3 or re.search(r"[-+=^/]|\\(?!text)", text):
        return None
    return named[0], *sorted(part.lstrip("0") for part in parts if part.isdigit())


_SIDE = re.compile(r" *([0-9]+(?:\.[0-9]+)?) *([a-zA-Z]*) *")


def _sizes(text: str) -> list[tuple[Fraction, str]] | None:
    r"""The sides of a size, or of several, in their order; None of anything else.

    >>> _sizes(r"4\text{ft} \times 12\text{ft}") == _sizes(r"4.0\text{feet by }12\text{feet}")
    True
    >>> len(_sizes(r"2\times 3, 3\times 3")), _sizes("12"), _sizes(r"6\times 10^{3}"), _sizes(r"2\times3\times5\times7")
    (4, None, None, None)
    """
    flat = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", text)
    items = [
        [_SIDE.fullmatch(side) for side in re.split(r"\\times| x |(?<=\d)x(?=\d)| by ", item)]
        for item in flat.split(",")
    ]
    sides = [side for item in items for side in item]
    if not all(len(item) in (2, 3) for item in items) or not all(sides):  # 5 \times 4 \times 3 \times 2 is a product
        return None
    units = [split(f"1\\text{{{side[2]}}}").unit if side[2] else "" for side in sides]
    return None if None in units else [(Fraction(side[1]), unit) for side, unit in zip(sides, units, strict=True)]


def _same_sizes(answer: str, reference: str) -> bool | None:
    r"""The verdict on a reference that is a size: 7 \times 9 is neither 63 nor 3 \times 21. None for any other one."""
    if (asked := _sizes(reference)) is None:
        return None
    said = _sizes(answer) or []
    return len(said) == len(asked) and all(
        one == other and (unit == other_unit or "" in (unit, other_unit))
        for (one, unit), (other, other_unit) in zip(said, asked, strict=True)
    )


def _same_measure(answer: str, reference: str) -> bool | None:
    """The verdict on two times of day, two dates, or two measures in several units; None for anything else."""
    for reading in (_clock, _date, quantities):
        if (one := reading(answer)) is not None and (other := reading(reference)) is not None:
            return one == other
    return None


_MONEY = re.compile(
    r"(?P<dollar>\\\$|\bdollars?\b|\bUSD\b)|(?P<cent>¢|(?<!per )\bcents?\b)"
    r"|(?P<euro>€|\beuros?\b)|(?P<pound>£)|(?P<yen>¥|\byen\b)"
)


def _money(text: str) -> set[str]:
    """The currencies of an answer as it was written: layout drops the dollar sign.

    >>> _money("$5"), _money(r"\\$5"), _money("5 cents")
    (set(), {'dollar'}, {'cent'})
    """
    return {match.lastgroup for match in _MONEY.finditer(text)}


def quick(answer: str, reference: str) -> bool | None:
    """The verdict where text, numbers and words can tell, else None."""
    verdict = _by_text(answer, reference)
    # 12 \approx 5 would answer 12 and 5: whether one is the other's rounding, sympy has to say
    unsure = verdict and r"\approx" in tidy(answer) and canonical(answer) != canonical(reference)
    return None if unsure else verdict


def _by_text(answer: str, reference: str) -> bool | None:
    if (one := _money(answer)) and (other := _money(reference)) and not one & other:
        return False
    for share, other in ((answer, reference), (reference, answer)):
        if _PERCENT.search(tidy(share)) and (_money(other) or split(tidy(other)).unit):
            return False  # 5% is neither $5 nor 5 cm
    if canonical(answer) == canonical(reference):
        return bool(re.search(r"[^\W_]", canonical(reference)))
    if (verdict := _same_measure(tidy(answer), tidy(reference))) is not None:
        return verdict
    if (verdict := _same_sizes(tidy(answer), tidy(reference))) is not None:
        return verdict
    if (chosen := same_choice(tidy(answer), tidy(reference))) is not None:
        return chosen
    if not (pair := bare(tidy(answer), tidy(reference))) or not all(pair) or _unworked(*pair):
        return False
    answer, reference = pair
    if canonical(answer) == canonical(reference):
        return True
    a, b = number(answer), number(reference)
    if a and b:  # two commas may also be two lists
        return _same_number(a, b) or (None if "," in answer and "," in reference else False)
    if re.fullmatch("[e-zE-Z]{2}", answer + reference):
        return False  # letters that are no choices are unknowns and their case counts
    if (said := _choices(answer)) and (asked := _choices(reference)):
        return said == asked
    one, other = words(answer), words(reference)
    if one and other and (one[0] == other[0] or one[1] or other[1]):
        return _same_words(one[0], other[0], bool(re.search(r"\band\b", answer + " " + reference)))
    return False if one and one[1] and b or other and other[1] and a else None  # a word is not a number
