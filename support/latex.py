r"""One spelling for LaTeX that says the same: two tables of rewriting rules.

>>> tidy(r"$\left( \dfrac{1}{2},\ 3 \right)$."), canonical("$x + 1$")
('( \\frac{1}{2}, 3 )', 'x+1')
"""

from __future__ import annotations

import functools
import re

# --- rewriting: (pattern, replacement, an example, what the rule alone makes of it) ----------------------------------

_ARG = r"((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})+?)"  # what may stand between a pair of braces
_WORD, _END = r"(?<![\\a-zA-Z])", r"(?![a-zA-Z])"
_DEGREE = r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-zA-Z]))"
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
    (r"\\(?:text(?:bf|it|rm|sf|tt|normal)|math(?:rm|bf|it|sf)|[mh]box|operatorname)\*? ?(?=\{|[a-zA-Z](?![a-zA-Z]))",
     r"\\text", r"\mathrm{cm}", r"\text{cm}"),
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
    (rf"{_TEXT_OPEN}(?:there (?:is|are) )?no (?:real )?(?:solutions?|roots?)(?: exists?)?\.?{_TEXT_CLOSE}|\\varnothing",
     r"\\emptyset ", r"\text{no solution}", r"\emptyset "),
    (rf"{_TEXT_OPEN}all real (?:numbers|values)(?: of)?{_TEXT_CLOSE}|\\(?:mathbb|Bbb|text) ?\{{? ?R ?\}}?$",
     r"\\mathbb{R}", "all real numbers", r"\mathbb{R}"),
    (r"(?:, ?|\\text ?\{ ?(?:for|where) ?\} ?)(?:\\text ?\{ ?(?:for|where) ?\} ?)?[a-z] ?\\in ?\\mathbb ?\{? ?Z ?\}?$",
     "", r"n\pi, n\in\mathbb Z", r"n\pi"),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", r"\dfrac12", r"\frac12"),
    (r"\\([lgn]e)(?:q|qslant)(?![a-zA-Z])", r"\\\1", r"x \leq 2", r"x \le 2"),
    (r"!=", r"\\ne ", "x!=2", r"x\ne 2"),
    (r"\*\*", "^", "x**2", "x^2"),
    (r"\\varphi(?![a-zA-Z])", r"\\phi", r"\varphi", r"\phi"),
    (r",? ?& ?(?:\\text ?\{ ?(?:if|for|when) ?\})?", "&", r"1, & \text{if } x>0", "1& x>0"),
    (r"^(?: |=|\\approx|\\therefore|\\Rightarrow|\\implies)+(?![a-zA-Z])", "", "= 5", "5"),
    (r"[\\.,;: ]+$", "", r"5\\", "5"),
    (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}", r"{5\choose 2}", r"\binom{5}{ 2}"),
    (r"([\^_]) ?(-\d+|[0-9a-zA-Z])", r"\1{\2}", "x^2", "x^{2}"),
    (r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", r"\sqrt(2)", r"\sqrt{2}"),
    (r"\\sqrt ?([0-9a-zA-Z])", r"\\sqrt{\1}", r"\sqrt2", r"\sqrt{2}"),
    (r"\\frac ?(\\(?:pi|theta|alpha|beta))(?![a-zA-Z])", r"\\frac{\1}", r"\frac\pi2", r"\frac{\pi}2"),
    (r"\\langle(?![a-zA-Z])([^<>]*)\\rangle", r"(\1)", r"\langle 1,2\rangle", "( 1,2)"),
    (r"^\\\{ ?[a-z] ?(?:\\in ?\\mathbb ?\{? ?R ?\}? ?)?(?:\\(?:mid|vert)(?![a-zA-Z])|\||:)(.*)\\\}$",
     r"\1", r"\{x:x>1\}", "x>1"),
    (r"\\mathbb ?\{? ?R ?\}? ?- ?\\\{", r"\\mathbb{R}\\setminus\\{", r"\mathbb{R}-\{0\}", r"\mathbb{R}\setminus\{0\}"),
    (r"\\lg(?![a-zA-Z])", r"\\log_{10} ", r"\lg 5", r"\log_{10}  5"),
    (r"\\frac ?([0-9a-zA-Z])", r"\\frac{\1}", r"\frac12", r"\frac{1}2"),
    (rf"(\\frac ?\{{{_ARG}\}}) ?([0-9a-zA-Z])", r"\1{\3}", r"\frac{1}2", r"\frac{1}{2}"),
]  # fmt: skip

SPELLING = [  # what the parser would misread: applied to what goes to sympy only
    (r"\\?%", "", r"x\%", "x"),
    (r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z]).*", lambda match: re.sub(_DEGREE, r"\\frac{\\pi}{180}", match[0]),
     r"\sin 30^\circ", r"\sin 30\frac{\pi}{180}"),  # elsewhere degrees are a unit
    (r",? ?(?:\\text ?\{ ?(?:and|or) ?\}|(?<![\\a-zA-Z])(?:and|or)(?![a-z])) ?", ",", r"5 \text{ or } 6", "5,6"),
    (r"(?<=\d) (?=\d{3}(?!\d))", "", "1 000x", "1000x"),
    (r"(?<=\d) (?=\d)", ",", "5 6", "5,6"),  # no product
    (r"(\d)[eE]([-+]?\d+)", r"\1\\cdot 10^{\2}", "1e-5", r"1\cdot 10^{-5}"),
    (r"(\d+) ?_ ?(?:\{ ?(\d+) ?\}|(\d))", r"b_{\1b\2\3}", "204_5", "b_{204b5}"),  # no number without its base
    (r"([0-9)}])''", r"\1 b_{qq}", "5''", "5 b_{qq}"),  # inches; all these would be dropped
    (r"([0-9)}])'", r"\1 b_{q}", "5'", "5 b_{q}"),
    (r"([a-zA-Z])''", r"\1_{qq}", "f''(x)", "f_{qq}(x)"),
    (r"([a-zA-Z])(?:'|\^ ?\{ ?\\prime ?\}|\^ ?\\prime)", r"\1_{q}", "f'(x)", "f_{q}(x)"),
    (r"([A-Za-z])\^ ?(?:T(?![a-zA-Z])|\{ ?T ?\}|\\top)", r"\1_{T}", "A^T", "A_{T}"),
    (r"\\gamma(?![a-zA-Z])(?: ?_ ?\{ ?(\w+) ?\})?", r"\\lambda_{g\1}", r"\gamma_{1}", r"\lambda_{g1}"),  # no function
    (r"I(?!m|ff)", r"\\iota ", "I_{1}", r"\iota _{1}"),  # no imaginary unit
    (rf"\\frac ?\{{ ?\\(pm|mp){_ARG}\}}", r"\\\1\\frac{\2}", r"\frac{\pm 1}{2}", r"\pm\frac{ 1}{2}"),
    (rf"\\frac ?\{{{_ARG}\\(?:pm|mp){_ARG}\}} ?\{{{_ARG}\}}", r"\\frac{\1}{\3}\\pm\\frac{\2}{\3}",
     r"\frac{1\pm\sqrt5}{2}", r"\frac{1}{2}\pm\frac{\sqrt5}{2}"),
    (r"(?<![\\a-zA-Z])([a-zA-Z]?)([a-zA-Z])(?= ?\^)", r"\1{\2}", "xy^{2}", "x{y}^{2}"),  # four times as fast to parse
    (r"\^ ?\(([^()]*)\)", r"^{(\1)}", "2^(n+1)", "2^{(n+1)}"),
]  # fmt: skip


def _compiled(table):
    return [(re.compile(pattern), replacement) for pattern, replacement, *_ in table]


_LAYOUT, _SPELLING = _compiled(LAYOUT), _compiled(SPELLING)


def _rewrite(text: str, rules) -> str:
    """The text after all rules.

    >>> table = LAYOUT + SPELLING  # the examples of the tables
    >>> [before for row, (_, _, before, after) in zip(_compiled(table), table) if _rewrite(before, [row]) != after]
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


_SETTLED = re.compile(r"[-+]?(?:[0-9,./]*[0-9]|\\frac\{[0-9]+\}\{[0-9]+\})")  # most answers: nothing to rewrite


@functools.lru_cache(4096)  # references come back with every rollout and every epoch
def tidy(text: str) -> str:
    r"""The same LaTeX without layout and with one spelling of each common command.

    >>> tidy(r"$\left( \dfrac{1}{2},\ 3 \right)$.")
    '( \\frac{1}{2}, 3 )'
    """
    if _SETTLED.fullmatch(text):
        return text
    return _rewrite(text.translate(_UNICODE), _LAYOUT).strip()


def spelled(text: str) -> str:
    r"""A tidy text as the parser reads it right.

    >>> spelled(r"f'(x) \text{ or } 2\gamma")
    'f_{q}(x),2\\lambda_{g}'
    """
    return _rewrite(text, _SPELLING)


def canonical(text: str) -> str:
    r"""Equal for answers that differ in layout only.

    >>> canonical("$x + 1$") == canonical("x+1"), canonical("3 1/2") == canonical("31/2")
    (True, False)
    >>> canonical(r"5\text{ cm}"), canonical("x  + 1 .")
    ('5 cm', 'x+1')
    >>> canonical("1, 200"), canonical("1, 200, 3")  # the first is a list because of its space alone
    ('1, 200', '1,200,3')
    """
    text = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", tidy(text))
    text = re.sub(" +", " ", text).strip(" .")
    return (_SPACE_IN_LIST if text.count(",") > 1 else _SPACE).sub("", text)
