r"""Do two answers say the same? Strings in, True or False out.

    >>> quick(r"\dfrac{1}{2}", "0.5"), quick("seven", "7"), quick("x+x", "2x")
    (True, False, None)
    >>> same("x+x", "2x")
    True

`quick` knows text, plain numbers (as exact fractions) and plain words; most answers of a training run are decided there,
in microseconds. Where it says None, `same` reads both answers with math-verify's LaTeX parser and compares the sympy
objects. That may take for ever, so callers leave it to a worker (support/sandbox.py); only `same` and `parse` import sympy.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

# --- rewriting: (pattern, replacement, an example, what the rule alone makes of it) ----------------------------------

_ARG = r"((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})+?)"  # what may stand between a pair of braces
_WORD, _END = r"(?<![\\a-zA-Z])", r"(?![a-zA-Z])"
_TEXT_OPEN, _TEXT_CLOSE = r"(?i:^(?:\\text ?\{)? ?", r" ?\}? ?$)"

LAYOUT = [  # what changes the looks of an answer, not the answer
    (r"(?<=\d) ?– ?(?=\d)", r"\\text{ to }", "10–12", r"10\text{ to }12"),  # a range is no difference
    (r"\s+", " ", "a \n b", "a b"),
    (r"\\{4}", r"\\\\", r"1\\\\2", r"1\\2"),  # escaped twice on its way into a file
    (r"(?<!\\)\\\\(?=[a-zA-Z]{2,})", r"\\", r"\\frac{1}{2}", r"\frac{1}{2}"),
    (r"(\\\\) ?\[[^\]]*\]", r"\1", r"1\\[2pt] 2", r"1\\ 2"),
    (r"(?<!\\)(?:\\\$|\$|\\[()\[\]])", " ", "$5$", " 5 "),
    (r"\.\.\.", r"\\ldots ", "0.33...", r"0.33\ldots "),
    (r"(,)\\! ?| ?\{ ?([,:]) ?\} ?", r"\1\2", "1{,}000", "1,000"),
    (r"((?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])| )+", " ", r"1,\ 2", "1, 2"),
    (r"\\!|\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])\.?", "", r"\left(5\right)", "(5)"),
    (r"\\tag ?\*? ?\{[^{}]*\}", "", r"5\tag{1}", "5"),
    (rf"\\textcolor ?\{{[^{{}}]*\}} ?\{{{_ARG}\}}", r"\1", r"\textcolor{red}{x_{1}}", "x_{1}"),
    (r"\\color ?\{[^{}]*\}", "", r"\color{red} 5", " 5"),
    (rf"\\(?:bm|boldsymbol|pmb|underline|boxed|fbox) ?\{{{_ARG}\}}", r"\1", r"\bm{v}", "v"),
    (r"\\math(?:bf|it|sf) ?\{ ?([a-zA-Z]) ?\}", r"\1", r"\mathbf{j}", "j"),
    (r"\\(?:text(?:bf|it|rm|sf|tt|normal)|math(?:rm|bf|it|sf)|[mh]box|operatorname)\*? ?(?=\{|[a-zA-Z](?![a-zA-Z]))", r"\\text",
     r"\mathrm{cm}", r"\text{cm}"),
    (r"\\text ?([a-zA-Z])(?![a-zA-Z])", r"\\text{\1}", r"k_{\text B}", r"k_{\text{B}}"),
    (r"\\text ?\{ ?(-?\d[\d.,]*) ?\}", r"\1", r"\text{101}_2", "101_2"),
    (r"\\text ?\{ ?(-?\d[\d.,]*) ", r"\1\\text{", r"\text{5 apples}", r"5\text{apples}"),
    (r"([_^]) ?\{ ?\\text ?\{ ?(\w*) ?\} ?\}", r"\1{\2}", r"k_{\text{B}}", "k_{B}"),
    (r"_ ?\{ ?\\(max|min) ?\}", r"_{\1}", r"I_{\max}", "I_{max}"),
    (r"\\text ?\{ ?(arc(?:sin|cos|tan)|sinh?|cosh?|tanh?|cot|csc|ln|log|exp|gcd|lcm|det) ?\}", r"\\\1 ",
     r"\text{sin}x", r"\sin x"),
    (r"\\text ?\{ ?([ie]) ?\}", r"\1 ", r"\text{e}^2", "e ^2"),
    (rf"{_WORD}(arc(?:sin|cos|tan)|sinh?|cosh?|tanh?|cot|csc|ln|log|exp|sqrt|pi){_END}", r"\\\1 ", "2*pi", r"2*\pi "),
    (rf"{_WORD}(?:infinity|inf){_END}|\+ ?\\infty", r"\\infty ", "(1,+infinity)", r"(1,+\infty )"),
    (r"\+ ?\\infty", r"\\infty", r"(1,+\infty)", r"(1,\infty)"),
    (rf"{_TEXT_OPEN}(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?\.?{_TEXT_CLOSE}|\\varnothing",
     r"\\emptyset ", r"\text{no solution}", r"\emptyset "),
    (rf"{_TEXT_OPEN}all real (?:numbers|values)(?: of)?{_TEXT_CLOSE}|\\(?:mathbb|Bbb|text) ?\{{? ?R ?\}}?$",
     r"\\mathbb{R}", "all real numbers", r"\mathbb{R}"),
    (r"(?:, ?|\\text ?\{ ?(?:for|where) ?\} ?)(?:\\text ?\{ ?(?:for|where) ?\} ?)?[a-z] ?\\in ?\\mathbb ?\{? ?Z ?\}?$", "",
     r"n\pi, n\in\mathbb Z", r"n\pi"),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", r"\dfrac12", r"\frac12"),
    (r"\\([lgn]e)(?:q|qslant)(?![a-zA-Z])", r"\\\1", r"x \leq 2", r"x \le 2"),
    (r"<=|=<", r"\\le ", "x<=2", r"x\le 2"),
    (r">=", r"\\ge ", "x>=2", r"x\ge 2"),
    (r"!=", r"\\ne ", "x!=2", r"x\ne 2"),
    (r"\\([lg])t(?![a-zA-Z])", lambda match: "<>"[match[1] == "g"], r"x \lt 2", "x < 2"),
    (r"\*\*", "^", "x**2", "x^2"),
    (r"\*", r"\\cdot ", "2*x", r"2\cdot x"),
    (r"\\varphi(?![a-zA-Z])", r"\\phi", r"\varphi", r"\phi"),
    (r",? ?& ?(?:\\text ?\{ ?(?:if|for|when) ?\})?", "&", r"1, & \text{if } x>0", "1& x>0"),
    (r"^(?: |=|\\approx|\\therefore|\\Rightarrow|\\implies)+(?![a-zA-Z])", "", "= 5", "5"),
    (r"(?:\\\\|\\|[.,;:]| )+$", "", r"5\\", "5"),
    (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}", r"{5\choose 2}", r"\binom{5}{ 2}"),
    (r"^\{([^{},]*)\}$", r"\1", "{5}", "5"),
    (r"\\log ?_ ?(\d+)", r"\\log_{\1}", r"\log_10 x", r"\log_{10} x"),
    (r"([\^_]) ?(-\d+|[0-9a-zA-Z])", r"\1{\2}", "x^2", "x^{2}"),
    (r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", r"\sqrt(2)", r"\sqrt{2}"),
    (r"\\sqrt ?([0-9a-zA-Z])", r"\\sqrt{\1}", r"\sqrt2", r"\sqrt{2}"),
    (r"\\frac ?(\\(?:pi|theta|alpha|beta))(?![a-zA-Z])", r"\\frac{\1}", r"\frac\pi2", r"\frac{\pi}2"),
    (r"\\langle(?![a-zA-Z])([^<>]*)\\rangle", r"(\1)", r"\langle 1,2\rangle", "( 1,2)"),
    (r"^\\\{ ?[a-z] ?(?:\\in ?\\mathbb ?\{? ?R ?\}? ?)?(?:\\(?:mid|vert)(?![a-zA-Z])|\||:)(.*)\\\}$", r"\1", r"\{x:x>1\}", "x>1"),
    (r"\\mathbb ?\{? ?R ?\}? ?- ?\\\{", r"\\mathbb{R}\\setminus\\{", r"\mathbb{R}-\{0\}", r"\mathbb{R}\setminus\{0\}"),
    (r"\\lg(?![a-zA-Z])", r"\\log_{10} ", r"\lg 5", r"\log_{10}  5"),
    (r"\\frac ?([0-9a-zA-Z])", r"\\frac{\1}", r"\frac12", r"\frac{1}2"),
    (rf"(\\frac ?\{{{_ARG}\}}) ?([0-9a-zA-Z])", r"\1{\3}", r"\frac{1}2", r"\frac{1}{2}"),
]  # fmt: skip

SPELLING = [  # what the parser would misread: applied to what goes to sympy only
    (r"\\?%", "", r"x\%", "x"),
    (r"(\\(?:sin|cos|tan|cot|sec|csc)[^=,]*?)\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-zA-Z]))", r"\1\\frac{\\pi}{180}",
     r"\sin 30^\circ", r"\sin 30\frac{\pi}{180}"),  # elsewhere degrees are a unit
    (r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-zA-Z]))(?: ?[CF](?![a-zA-Z]))?", "", r"90^\circ-x", "90-x"),
    (r",? ?(?:\\text ?\{ ?(?:and|or) ?\}|(?<![\\a-zA-Z])(?:and|or)(?![a-z])) ?", ",", r"5 \text{ or } 6", "5,6"),
    (r"(\d)[eE]([-+]?\d+)", r"\1\\cdot 10^{\2}", "1e-5", r"1\cdot 10^{-5}"),
    (r"(\d+) ?_ ?(?:\{ ?(\d+) ?\}|(\d))", r"b_{\1b\2\3}", "204_5", "b_{204b5}"),  # its digits without its base are no number
    (r"([0-9)}])''", r"\1 b_{qq}", "5''", "5 b_{qq}"),  # inches; all these would be dropped
    (r"([0-9)}])'", r"\1 b_{q}", "5'", "5 b_{q}"),
    (r"([a-zA-Z])''", r"\1_{qq}", "f''(x)", "f_{qq}(x)"),
    (r"([a-zA-Z])(?:'|\^ ?\{ ?\\prime ?\}|\^ ?\\prime)", r"\1_{q}", "f'(x)", "f_{q}(x)"),
    (r"([A-Za-z])\^ ?(?:T(?![a-zA-Z])|\{ ?T ?\}|\\top)", r"\1_{T}", "A^T", "A_{T}"),
    (r"\\gamma(?![a-zA-Z])(?: ?_ ?\{ ?(\w+) ?\})?", r"\\lambda_{g\1}", r"\gamma_{1}", r"\lambda_{g1}"),  # no function
    (r"\\Gamma(?![a-zA-Z ]|\()", r"\\Lambda_{g}", r"2\Gamma", r"2\Lambda_{g}"),
    (r"I(?!m|ff)", r"\\iota ", "I_{1}", r"\iota _{1}"),  # no imaginary unit
    (r"\\bmod(?![a-zA-Z])", r"\\mod", r"17\bmod 5", r"17\mod 5"),
    (rf"\\frac ?\{{ ?\\(pm|mp){_ARG}\}}", r"\\\1\\frac{\2}", r"\frac{\pm 1}{2}", r"\pm\frac{ 1}{2}"),
    (rf"\\frac ?\{{{_ARG}\\(?:pm|mp){_ARG}\}} ?\{{{_ARG}\}}", r"\\frac{\1}{\3}\\pm\\frac{\2}{\3}",
     r"\frac{1\pm\sqrt5}{2}", r"\frac{1}{2}\pm\frac{\sqrt5}{2}"),
    (r"(?<![\\a-zA-Z])([a-zA-Z]?)([a-zA-Z])(?= ?\^)", r"\1{\2}", "xy^{2}", "x{y}^{2}"),  # four times as fast to parse
    (r"\^ ?\(([^()]*)\)", r"^{(\1)}", "2^(n+1)", "2^{(n+1)}"),
    (r"(?<=[\s(\[,+-])\.(?=\d)|^\.(?=\d)", "0.", "(.5)", "(0.5)"),
]  # fmt: skip


def _compiled(table):
    return [(re.compile(pattern), replacement) for pattern, replacement, *_ in table]


_LAYOUT, _SPELLING = _compiled(LAYOUT), _compiled(SPELLING)


def rewrite(text: str, rules) -> str:
    """The text after all rules.

    >>> table = LAYOUT + SPELLING  # the examples of the tables
    >>> [before for row, (_, _, before, after) in zip(_compiled(table), table) if rewrite(before, [row]) != after]
    []
    """
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


_UNICODE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms
_UNICODE |= dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0xAD], "")  # invisible
_UNICODE |= str.maketrans("−’。、\xa0\u2009\u202f\u3000", "-'.,    ")
_UNICODE |= {
    ord(pair[0]): pair[1:] + " "
    for pair in r"×\times ·\cdot ⋅\cdot ÷/ π\pi ∞\infty ∅\emptyset ≤\le ≥\ge ≠\ne ≈\approx ±\pm ∪\cup ∩\cap ∈\in "
    r"²^2 ³^3 °^\circ √\sqrt ½\frac{1}{2} ℝ\mathbb{R} …\ldots".split()
}
_SPACE = re.compile(r" (?=[^\w\s])|(?<=[^\w\s,]) |(?<=,) (?!\d{3}(?!\d))")  # not in "3 1/2"; "1, 200" is a list
_SPACE_IN_LIST = re.compile(r" (?=[^\w\s])|(?<=[^\w\s]) ")


@functools.lru_cache(4096)  # references come back with every rollout and every epoch
def tidy(text: str) -> str:
    r"""The same LaTeX without layout and with one spelling of each common command.

    >>> tidy(r"$\left( \dfrac{1}{2},\ 3 \right)$.")
    '( \\frac{1}{2}, 3 )'
    """
    return rewrite(text.translate(_UNICODE), _LAYOUT).strip()


def canonical(text: str) -> str:
    """Equal for answers that differ in layout only.

    >>> canonical("$x + 1$") == canonical("x+1"), canonical("3 1/2") == canonical("31/2")
    (True, False)
    """
    text = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", tidy(text))
    text = re.sub(" +", " ", text).strip(" .")
    return (_SPACE_IN_LIST if text.count(",") > 1 else _SPACE).sub("", text)


# --- numbers: one way from text to a Fraction -------------------------------------------------------------------------

_D = r"(?:[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?:\.[0-9]+)?|[0-9]+[.,]?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(rf"([-+]?) ?(?:([0-9]+) (?=[0-9]+ ?/))?([-+]?{_D})(?: ?/ ?(-?{_D}))?(?:[eE]([-+]?[0-9]{{1,3}}))?")
_THOUSANDS = re.compile(r"[-+]?[1-9][0-9]{0,2}(?:([, ])[0-9]{3})(?:\1[0-9]{3})*(?:\.[0-9]+)?")
_FRACTION = re.compile(rf"\\frac ?(?:\{{ ?([-+]?{_D}) ?\}}|([0-9])) ?(?:\{{ ?(-?{_D}) ?\}}|([0-9]))")
_REPEATING = re.compile(
    r"([0-9]*)\.(?:([0-9]*)\\(?:overline|bar|dot) ?\{([0-9]+)\}"
    r"|([0-9]*?)(?:([0-9])\5{2,}|([0-9]{2,})\6+) ?(?:\\[lc]?dots|\.\.\.))"
)
_POWER = re.compile(r"(?:(^[-+]?)|(?<=[0-9]) ?(?:\\times|\\cdot|x) ?)10 ?\^ ?(?:\{ ?([-+]?[0-9]{1,3}) ?\}|([0-9]))$")
_PERCENT = re.compile(r" ?(?:\\?%|(?:\\text ?\{)? ?(?:percent(?:age)?|pct) ?\}?)$", re.IGNORECASE)
_UNIT = re.compile(
    r" ?(?:\^ ?\{? ?\\circ ?\}?(?: ?[CF])?|\\degree"
    r"|((?<![\^_])(?: ?(?:/ ?|\\cdot ?)?\\text ?\{[^{}]*\}(?: ?\^ ?\{?-?[1-9]\}?)?)+"
    r"|(?<=[0-9} ])(?:[ckm]m|[km]g|ml|ft|lbs?|mph|km/hr?|m/s|hrs?|mins?|secs?|[a-z]{4,})(?: [a-z]{4,})*(?: ?\^ ?\{?[23]\}?)?))$"
)
_NOT_A_UNIT = re.compile(
    r"(?i)\b(?:or|and|to|more|less|fewer|than|least|most|not|half|thirds?|quarters?|squared|cubed|factorial|dozen|hundred"
    r"|thousand|[mbtr]+illion|times|plus|minus|axis|[ap]\.? ?m|infinity|sqrt|sinh|cosh|tanh|over|choose|base|each"
    r"|alpha|beta|theta|[ie])\b"
)


@dataclass(frozen=True)
class Number:
    value: Fraction
    percent: bool = False  # it had a percent sign
    decimals: int = 0  # as written; a fraction and a whole number have none


def _without_unit(text: str) -> str:
    match = _UNIT.search(text, max(0, len(text) - 60))
    if not match or not match.start() or _NOT_A_UNIT.search(match[1] or ""):
        return text
    return text[: match.start()].strip()


def _decimal(digits: str) -> Fraction:
    """ "1,000.5" and "1 000.5" -> 2001/2; "2,5" -> 5/2"""
    return Fraction((re.sub("[, ]", "", digits) if _THOUSANDS.fullmatch(digits) else digits).replace(",", "."))


def _repeating(match: re.Match) -> str:
    """0.1\\overline{6} and 0.1666... -> 15/90"""
    whole, fixed, period = match[1], match[2] or match[4] or "", match[3] or match[5] or match[6]
    return f" {int(whole + fixed + period) - int(whole + fixed or 0)}/{(10 ** len(period) - 1) * 10 ** len(fixed)}"


def number(text: str) -> Number | None:
    r"""A tidy plain number, None for anything else.

    >>> number(r"1\frac{1}{2}"), number(r"12.50\%"), number("x")
    (Number(value=Fraction(3, 2), percent=False, decimals=0), Number(value=Fraction(25, 2), percent=True, decimals=2), None)
    """
    bare = _PERCENT.sub("", text)
    percent = bare != text
    bare = _without_unit(bare).strip("$€£¥₹ " + "()" * ("," not in bare))  # (2,128) is a point
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
    value = (value + int(whole or 0)) * (-1 if sign == "-" else 1) * Fraction(10) ** int(exponent or 0)
    written = re.search("[.,](.*)", top) if not bottom and value.denominator > 1 else None
    return Number(value, percent, len(written[1]) - int(exponent or 0) if written else 0)


def _terminates(denominator: int) -> bool:
    """3/8 is 0.375, and nobody would write it as 0.3750001."""
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


def words(text: str) -> tuple[str, bool] | None:
    r"""Plain words without case and `\text{}`, and whether they can only be words; None if there is more than words.

    >>> words(r"\text{Evelyn}"), words("ab"), words("HTH"), words("x+1")  # ab may be a product
    (('evelyn', True), ('ab', False), ('hth', True), None)
    """
    bare = re.sub(r"\\text ?\{ ?([^{}]*?) ?\}", r"\1", text).strip("() .")
    if not re.fullmatch(r"[a-zA-Z]+(?:,? [a-zA-Z]+)*", bare):
        return None
    only = len(bare) == 1 or text.startswith(r"\text") or bool(re.search("[a-zA-Z]{4}|^[A-Z]{3,}$", bare))
    return bare.casefold(), only


def _choice(text: str) -> str | None:
    """The letter of a choice and its text: "(C) 12" and "c. 3" -> "c" """
    match = re.match(r"(?:\\text ?\{)? ?(?:\(([A-Ha-h])\)|([A-Ha-h])[.)]) ?\}? ?\S", text)
    return match and (match[1] or match[2]).lower()


_ATTACHED = re.compile(r"[_^] ?(?:\{[^{}]*\}|\w)|(?<=[A-Zf-hp-w}])\([^()]*\)")  # indices, powers and arguments
_WORK = re.compile(
    r"\\(int|lim|sum|prod|det|gcd|lcm|max|min|bmod|mod|pmod)(?![a-zA-Z])|(vmatrix)|\\frac ?\{ ?(d|\\partial) ?[a-z]?\}"
)


_SIGN = re.compile(r"=|\\(?:approx|equiv|in)(?![a-zA-Z])")
_MODULUS = re.compile(r" ?(?:\\pmod ?\{[^{}]*\}|\( ?\\?b?mod [^()]*\))$")
_LIST = re.compile(r"[,;]|(?<![\\a-zA-Z])(?:and|or)(?![a-z])")
_RELATION = re.compile(r"[<>]|\\[lgn]e(?![a-zA-Z])")


def _named(text: str) -> tuple[str, str]:
    r"""(left side, last member) of one equation or of `x \in A`; ("", text) of anything else, as a list of equations.

    >>> _named("f(x) = 2x"), _named("x = 1+1 = 2"), _named("x=1, y=2")
    (('f(x)', '2x'), ('x', '2'), ('', 'x=1, y=2'))
    """
    sign = _SIGN.search(text)
    if not sign:
        return "", text
    name, value = text[: sign.start()].strip(), text[sign.end() :]
    several = (
        _LIST.search(value) and _SIGN.search(value) or _LIST.search(re.sub(r"\([^()]*\)", "", _ATTACHED.sub("", name)))
    )
    if several or _RELATION.search(text):
        return "", text
    *members, value = value.split(r"\approx")[0].split("=")
    return next(
        (m.strip() for m in (name, *members) if not re.search("[0-9]", _ATTACHED.sub("", m))), name
    ), value.strip()


def unnamed(answer: str, reference: str) -> tuple[str, str]:
    r"""Both without what stands left of `=`, where only one has a name or both have the same.

    >>> unnamed("x=5", "5"), unnamed("x=5", "x = 5.0"), unnamed("x=5", "y=5"), unnamed("5", "2x+z=5")
    (('5', '5'), ('5', '5.0'), ('x=5', 'y=5'), ('5', '2x+z=5'))
    """
    if bool(_MODULUS.search(answer)) != bool(_MODULUS.search(reference)):
        answer, reference = _MODULUS.sub("", answer), _MODULUS.sub("", reference)
    (name, value), (target_name, target) = _named(answer), _named(reference)
    bare, target_bare = _ATTACHED.sub("", name), _ATTACHED.sub("", target_name)
    if name and target_name:
        return (value, target) if canonical(name) == canonical(target_name) else (answer, reference)
    if target_name and not re.search(r"[-+0-9]", target_bare):
        return answer, target
    # of an answer also `a+b = 5` and `17 \bmod 5 = 2`, but no equation that may still have to be solved: `2x+3 = 5`
    if name and not (re.search("[0-9]", bare) and re.search(r"(?<![\\a-zA-Z])[a-zA-Z]", bare)):
        return value, reference
    return answer, reference


def _unworked(answer: str, reference: str) -> bool:
    """Is there an integral, a limit, a determinant that nobody worked out? A copy of the question is no answer."""
    kinds = [{"".join(filter(None, match.groups())) for match in _WORK.finditer(text)} for text in (answer, reference)]
    return not kinds[0] <= kinds[1]


def quick(answer: str, reference: str) -> bool | None:
    """The verdict where text, numbers and words can tell, else None."""
    if canonical(answer) == canonical(reference):
        return bool(re.search("[a-zA-Z0-9]", canonical(reference)))
    answer, reference = unnamed(tidy(answer), tidy(reference))
    if not answer or not reference or _unworked(answer, reference):
        return False
    if canonical(answer) == canonical(reference):
        return True
    a, b = number(answer), number(reference)
    if a and b:  # two commas may also be two lists
        return _same_number(a, b) or (None if "," in answer and "," in reference else False)
    if re.fullmatch("[e-zE-Z]{2}", answer + reference):  # no choices: as unknowns their case counts
        return answer == reference
    one, other = words(answer), words(reference)
    if one and other and (one[0] == other[0] or one[1] or other[1]):
        return one[0] == other[0]
    for text, letter in ((answer, other), (reference, one)):
        if letter and len(letter[0]) == 1 and (choice := _choice(text)):
            return choice == letter[0]
    return False if one and one[1] and b or other and other[1] and a else None  # a word is not a number


# --- sympy: reading ---------------------------------------------------------------------------------------------------


def exact(digits: str):
    """A decimal as the fraction it is; with six or more decimals it may have been rounded and stays a Float.

    >>> exact("0.25"), exact("0.333333")
    (1/4, 0.333333000000000)
    """
    from sympy import Float, Rational

    return Float(digits) if len(digits.partition(".")[2]) >= 6 else Rational(digits)


@functools.cache
def _reader():
    """math-verify's LaTeX reader with exact decimals, and in the faster of its parser's two modes if that can do it."""
    from antlr4.atn.PredictionMode import PredictionMode
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy

    class Reader(_Latex2Sympy):
        def parse_number(self, text):
            return exact(text.replace(",", ""))

        def create_parser(self, text):
            parser = super().create_parser(text)
            parser._interp.predictionMode = self.mode
            return parser

    def read(text: str):
        reader = Reader(config=ConversionConfig(lowercase_symbols=False))
        for reader.mode in (PredictionMode.SLL, PredictionMode.LL):  # whatever SLL can parse, LL parses alike
            try:
                return reader.parse(text)
            except Exception:
                if reader.mode == PredictionMode.LL:
                    raise

    return read


@dataclass(frozen=True)
class Equation:
    left: object
    right: object


def _plain(thing):
    """What was read, in six types: list (in any order), tuple, Equation, and sympy's Expr, Matrix, Relational or Set."""
    import sympy
    from sympy.core.function import AppliedUndef
    from sympy.logic.boolalg import BooleanAtom

    if isinstance(thing, sympy.FiniteSet):
        items = [_plain(item) for item in getattr(thing, "_unsorted_args", thing.args)]
        flat = [Equation(i.left, value) if value is not i else i for i in items for value in _values(i)]
        return flat[0] if len(flat) == 1 else flat
    if isinstance(thing, sympy.Tuple):
        return tuple(_plain(item) for item in thing)
    if isinstance(thing, sympy.Eq):
        return Equation(_plain(thing.lhs), _plain(thing.rhs))
    if isinstance(thing, sympy.And) and all(isinstance(part, sympy.Eq) for part in thing.args):
        return Equation(_plain(thing._unsorted_args[0].lhs), _plain(thing._unsorted_args[-1].rhs))
    names = {call: sympy.Symbol(str(call)) for call in thing.atoms(AppliedUndef)}
    names |= {symbol: sympy.I for symbol in thing.free_symbols if symbol.name == "i"}
    thing = thing.xreplace(names) if names else thing
    if isinstance(thing, sympy.Set | sympy.MatrixExpr):
        done = thing.doit()
        return _plain(done) if isinstance(done, sympy.FiniteSet) else done
    if isinstance(thing, BooleanAtom):  # 1 < 2
        raise ValueError("a statement, not an answer")
    return thing


def _values(item) -> list:
    r"""x = \pm 2 is two equations."""
    return item.right if isinstance(item, Equation) and isinstance(item.right, list) else [item]


_OR = re.compile(r",? ?\\text ?\{ ?or ?\}|(?<![\\a-zA-Z]),? ?or(?![a-z])")


@functools.lru_cache(4096)
def parse(text: str):
    """The answer as `_plain` has it; raises an exception if it cannot be read."""
    text = tidy(text)
    parts = _OR.split(text)
    if len(parts) > 1 and all(map(_RELATION.search, parts)):  # x < 1 or x > 2
        from sympy import Union

        return Union(*(_solutions(parse(part)) for part in parts))
    return _plain(_reader()(_without_unit(rewrite(text, _SPELLING))))


# --- sympy: comparing -------------------------------------------------------------------------------------------------


def same(answer: str, reference: str) -> bool:
    """May take for ever and raise anything: for a worker."""
    return _equal(*map(parse, unnamed(tidy(answer), tidy(reference))))


def _equal(x, y) -> bool:
    """The first rule that knows the two types decides: x of the answer, y of the reference."""
    return next((verdict for rule, _ in RULES if (verdict := rule(x, y)) is not None), False)


def _all_equal(xs, ys) -> bool:
    return len(xs) == len(ys) and all(map(_equal, xs, ys))


def _point(thing) -> tuple | None:
    """A tuple, and (1, 2), which is read as an interval; (x=1, y=2) are its values in the order of the names."""
    from sympy import Interval

    if isinstance(thing, Interval) and thing.left_open and thing.right_open:
        return thing.start, thing.end
    if not isinstance(thing, tuple):
        return None
    return _by_name(thing) or thing


def _by_name(items) -> tuple | None:
    """The values of x = 2, y = 3 in the order of the names; None for roots (x_1 = 2, x_2 = 3) and if there are no names."""
    if not all(isinstance(item, Equation) for item in items):
        return None
    names = [str(item.left) for item in items]
    if len({name.split("_")[0] for name in names}) < len(names):
        return None
    return tuple(item.right for _, item in sorted(zip(names, items, strict=True), key=lambda pair: pair[0]))


def _points(x, y) -> bool | None:
    """Brackets keep the order. A list without brackets answers a point in the order written, or in that of its names."""
    if any(isinstance(side, list) and any(map(_is_relation, side)) for side in (x, y)):
        return None
    if isinstance(x, list) and (point := _point(y)):
        return _all_equal(_by_name(x) or x, point)
    if isinstance(y, list) and (point := _point(x)):
        return _all_equal(point, _by_name(y) or y)
    if (isinstance(x, tuple) or isinstance(y, tuple)) and (one := _point(x)) and (other := _point(y)):
        return _all_equal(one, other)
    return None


def _lists(x, y) -> bool | None:
    """Each item has a partner. Names count where both have them; roots have none, and nor has the other side then."""
    if not isinstance(x, list) or not isinstance(y, list):
        return None
    named = [[isinstance(item, Equation) for item in items] for items in (x, y)]
    if not (all(named[0]) and all(named[1]) and {str(i.left) for i in x} == {str(i.left) for i in y}):
        if (_by_name(x) is None) != (_by_name(y) is None):  # x = 2, y = 3 for 2, 3: in the order written
            return _all_equal(*([getattr(item, "right", item) for item in items] for items in (x, y)))
        x, y = (
            [getattr(item, "right", item) for item in items] if _by_name(items) is None else items for items in (x, y)
        )
    return all(any(_equal(a, b) for b in y) for a in x) and all(any(_equal(a, b) for a in x) for b in y)


def _matrices(x, y) -> bool | None:
    from sympy import MatrixBase

    if isinstance(x, MatrixBase) and isinstance(y, MatrixBase):
        return x.shape == y.shape and _all_equal(x.flat(), y.flat())
    return None


def _is_solved(relation) -> bool:
    """Do all its parts compare a name with a value?"""
    from sympy.core.relational import Relational

    sides = [(part.lhs, part.rhs) for part in relation.atoms(Relational)]
    return all(a.is_Symbol and not b.free_symbols or b.is_Symbol and not a.free_symbols for a, b in sides)


def _is_relation(thing) -> bool:
    from sympy import And, Or
    from sympy.core.relational import Relational

    return isinstance(thing, Relational | And | Or)


def _solutions(thing):
    """A set, an inequality in one unknown or several that hold at once: the set of numbers; None for anything else."""
    from sympy import Intersection, Set

    if isinstance(thing, Set):
        return thing
    if isinstance(thing, list) and all(map(_is_relation, thing)):
        return Intersection(*map(_solutions, thing))
    return thing.as_set() if _is_relation(thing) and len(thing.free_symbols) == 1 else None


def _inequalities(x, y) -> bool | None:
    """Both sides moved to the left differ by a positive factor."""
    from sympy import And
    from sympy.core.relational import Relational

    if isinstance(x, And) and isinstance(y, And) and _all_equal(x._unsorted_args, y._unsorted_args):
        return True
    if not isinstance(x, Relational) or not isinstance(y, Relational):
        return None
    x, y = (part.reversed if part.rel_op in (">", ">=") else part for part in (x, y))
    if x.rel_op == y.rel_op and _factor(x.lhs - x.rhs, y.lhs - y.rhs, positive=x.rel_op != "!="):
        return True
    return None if _solutions(x) is not None and _solutions(y) is not None else False


def _sets(x, y) -> bool | None:
    """The same numbers. An answer that is still to be solved answers only a reference that is, too."""
    from sympy import Complement, Interval, Union

    unsolved = [not all(_is_solved(r) for r in (t if isinstance(t, list) else [t]) if _is_relation(r)) for t in (x, y)]
    one, other = _solutions(x), _solutions(y)
    if one is None or other is None:
        return None
    if unsolved[0] and not unsolved[1] or _is_relation(x) and _is_relation(y) and x.free_symbols != y.free_symbols:
        return False
    if isinstance(one, Interval) and isinstance(other, Interval):
        ends = one.left_open == other.left_open and one.right_open == other.right_open
        return ends and _equal(one.start, other.start) and _equal(one.end, other.end)
    if isinstance(one, Union) and isinstance(other, Union):
        pieces = [sorted(union.args, key=lambda piece: float(piece.inf)) for union in (one, other)]
        return _all_equal([_plain(piece) for piece in pieces[0]], [_plain(piece) for piece in pieces[1]])
    return one == other or Complement(one, other).is_empty is True and Complement(other, one).is_empty is True


def _equations(x, y) -> bool | None:
    """The same name and value, proportional sides, or the same solutions for the first unknown."""
    if not isinstance(x, Equation) or not isinstance(y, Equation):
        return None
    from sympy import Expr, Symbol, solve

    if isinstance(x.left, Symbol) and x.left == y.left:
        return _equal(x.right, y.right)
    if not all(isinstance(side, Expr) for side in (x.left, x.right, y.left, y.right)):
        return False
    one, other = x.left - x.right, y.left - y.right
    if _factor(one, other):
        return True
    if one.free_symbols != other.free_symbols or isinstance(y.left, Symbol) and not y.right.free_symbols:
        return False
    unknown = min(one.free_symbols, key=str)
    roots = [solve(side, unknown) for side in (one, other)]
    return bool(roots[0]) and _lists(*roots)


def _expressions(x, y) -> bool | None:
    """Equal at four points: exactly where both are fractions, to 25 digits elsewhere (to six decimals if one is rounded).
    Points where only one side is real do not count: log(x^2) is 2 log(x)."""
    from sympy import Expr, Float

    if not isinstance(x, Expr) or not isinstance(y, Expr):
        return None
    unknowns = x.free_symbols | y.free_symbols
    rounded = not unknowns and x.has(Float) != y.has(Float) and not (x.is_Integer or y.is_Integer)
    verdicts = []
    for point in _test_points(unknowns):
        a, b = _value(x, point), _value(y, point)
        if a.is_extended_real == b.is_extended_real:
            verdicts.append(_close(a, b, rounded))
            if not verdicts[-1]:
                return False
    return bool(verdicts)


RULES = [  # in this order; an example for each
    (_points, r"x=2, y=3 | (2,3)"),
    (_lists, r"\{1, \sqrt4\} | 2, 1"),
    (_matrices, r"\begin{pmatrix}1&x+x\end{pmatrix} | \begin{bmatrix}1&2x\end{bmatrix}"),
    (_equations, r"2x+4y-3=0 | y=-\frac12x+\frac34"),
    (_inequalities, r"-x>-y | x<y"),
    (_sets, r"x<1 \text{ or } x>\sqrt4 | (-\infty,1)\cup(2,\infty)"),
    (_expressions, r"\sin^2 x | 1-\cos^2 x"),
]


def _test_points(symbols) -> list[dict]:
    """Four points of fractions, large and small, of either sign, that no answer singles out; one if there is no unknown."""
    from sympy import Rational

    order = sorted(symbols, key=str)
    numbers = [(7, 11), (-13, 7), (137, 17), (-229, 19)]
    return [
        {
            symbol: Rational(top + (-1) ** k * 6 * j * bottom + j, bottom) * (-1) ** (j * k)
            for j, symbol in enumerate(order)
        }
        for k, (top, bottom) in enumerate(numbers if order else numbers[:1])
    ]


def _value(thing, point: dict):
    """Its value there: a Rational if it is one, else to 40 digits."""
    from sympy import Float, Rational

    floats = {number: Rational(str(number)) for number in thing.atoms(Float)}
    value = thing.xreplace(floats).xreplace(point).doit()
    return value if value.is_Rational else value.evalf(40)


def _close(x, y, rounded: bool = False) -> bool:
    if x.is_Rational and y.is_Rational and not rounded:
        return bool(x == y)
    if not x.is_finite or not y.is_finite:
        return bool(x == y and x.is_extended_real)  # nothing equals 1/0
    # an exact zero evaluates to a number without any digit that counts
    gap, *sizes = (max(abs(p) if p.is_Rational or p._prec > 1 else 0 for p in z.as_real_imag()) for z in (x - y, x, y))
    scale = max(sizes)
    return bool(gap <= scale / 10**25 or rounded and gap <= min(1, 10 * scale) / 2_000_000)


def _factor(x, y, positive: bool = False) -> bool:
    """Is x a multiple of y, and is neither constant?"""
    points = _test_points(x.free_symbols | y.free_symbols)
    values = [(_value(x, point), _value(y, point)) for point in points]
    (a, b), *others = values
    if len({value for value, _ in values}) < 2 or not b or positive and not (a / b).is_positive:
        return False
    return all(_close(a * d, b * c) for c, d in others)
