r"""One spelling for LaTeX that says the same: two tables of rewriting rules.

>>> tidy(r"$\left( \dfrac{1}{2},\ 3 \right)$."), canonical("$x + 1$")
('( \\frac{1}{2}, 3 )', 'x+1')
"""

from __future__ import annotations

import functools
import itertools
import math
import re
import unicodedata

# --- rewriting: (pattern, replacement, an example, what the rule alone makes of it) ----------------------------------

_ARG = r"((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})+?)"  # what may stand between a pair of braces
_WORD, _END = r"(?<![\\a-zA-Z])", r"(?![a-zA-Z])"
_DEGREE = r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-zA-Z]))"
_TEXT_OPEN, _TEXT_CLOSE = r"(?i:^ ?(?:\\text ?\{)? ?", r" ?\}? ?$)"
_SAID = r"(?i:(?:the )?(?:(?:final|correct) )?(?:answer|ans|solution|result|option|choice)\.?|答案?)"
_SWITCHES = (  # commands that change what follows them
    r"[bB]igg?[lrm]?|displaystyle|textstyle|script(?:script)?style|(?:no)?limits|bf(?:series)?|it(?:shape)?|rm|sf|tt|sc"
    r"|em|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|nonumber|notag|mathstrut|strut"
    r"|noindent|centering|textdollar"
)
_WRAPPERS = (  # commands that change what is in their braces
    r"bm|boldsymbol|pmb|underline|boxed|fbox|framebox|bbox|underbrace|ensuremath|smash"
    r"|math(?:op|ord|bin|rel|open|close|inner|normal)"
)
_BLANKS = (
    r"q?quad|en(?:space|skip)|(?:thin|med|thick)space|hfill|newline|hskip ?[\d.]+ ?[a-z][a-z]"
    r"|(?:[hv]space|h?phantom) ?\*? ?\{[^{}]*\}"
)
_GREEK = "pi|alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega|Gamma|Delta|Sigma|Phi|Omega"
_GREEK_WORDS = "alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|tau|phi|omega"
_EVERY = "(?:real|rational|complex|natural|integers?|positive|non-?negative|numbers?|values|of)"  # not even, not large
_FOR_ALL = r"(?:\\forall(?![a-zA-Z])|(?:\\text ?\{ ?)?for (?:all|any|every|each)(?![a-z]))"
_IN_A_NAME = str.maketrans({"+": "p", "-": "m", "(": "", ")": "", " ": ""})
_GAP = r"(?:[ }]|\\text ?\{)*"  # between two words, one of which may stand in \text
_WHOLE = (  # where k is an integer; for any integer k; k \in Z; k = 0, \pm 1, \ldots
    rf"(?:\\text ?\{{ ?)?(?:(?:where|for|with|and){_GAP})?(?:"
    rf"(?:an?|any|all|every|each|some)?{_GAP}integers?{_GAP}{_WORD}[a-z]|{_WORD}[a-z]{_GAP}(?:(?:is|an|any|arbitrary){_GAP})*integer"
    rf"|[a-z]{_GAP}\\in ?(?:\\mathbb ?)?\{{? ?Z|[a-z] ?= ?0(?: ?, ?\\pm ?\d)+ ?, ?\\ldots)"
)
_LETTERS = rf"((?:{_WORD}[a-zA-Z]{_END}(?: ?_ ?(?:\{{ ?\d ?\}}|\d))?(?:, ?|{_GAP}and{_GAP})?)+)"
_ANY, _REAL = rf"(?:(?:an?|any|all|every|each|some|the|arbitrary|real){_GAP})*", r"\\in ?(?:\\mathbb ?)?\{? ?R"
_ARBITRARY = (  # where C_1 and C_2 are arbitrary constants; for any constant k; C \in R
    rf"(?:\\text ?\{{ ?)?(?:(?:where|for|with|and){_GAP})?{_ANY}(?:constants?{_GAP}{_LETTERS}(?:{_GAP}{_REAL})?"
    rf"|{_LETTERS}{_GAP}(?:{_REAL}|(?:is|are){_GAP}{_ANY}(?:constants?|numbers?)))"
)
_VALUE = r"-?(?:[\d./]+|\\frac ?\{[^{}]*\} ?\{[^{}]*\})"
_COUNT = r"\{? ?(\d+) ?\}?"
_BASES = "one two three four five six seven eight nine ten eleven twelve".split()
_EQUATIONS = r"aligned|align|alignedat|gathered|gather|split|eqnarray|equation|array|matrix|cases|center"


def _rows(match: re.Match) -> str:
    r"""Equations below each other as a list. A matrix stays, and so do values with a condition beside each.

    >>> tidy(r"\begin{aligned} x &= 2+3 \\ &= 5 \\ y &= 1 \end{aligned}")
    'x= 2+3= 5, y= 1'
    """
    rows = [re.sub(r"^ ?&| ?& ?(?==)|(?<==) ?&", "", row).strip().rstrip(" ,;.") for row in match[2].split(r"\\")]
    rows = [row for row in rows if row]
    if any("&" in row for row in rows) or len(rows) > 1 and not all(re.search(r"[=<>]|\\[lgn]e", row) for row in rows):
        return match[0]
    items: list[str] = []
    for row in rows:
        if row[0] == "=" and items:
            items[-1] += row
        else:
            items.append(row)
    return ", ".join(items)


def _matrix(items: str, next_row: str) -> str:
    """The items of a program's matrix, with a comma between two of a row."""
    rows = re.split(next_row, items)
    return r"\begin{pmatrix}" + r"\\".join(row.replace(",", "&") for row in rows) + r"\end{pmatrix}"


def _items(text: str) -> list[str]:
    """Split at the commas outside of all brackets."""
    items, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        items[-1] += char
        if char == "," and depth == 0:
            items[-1] = items[-1][:-1]
            items.append("")
    return items


def _each_sign(text: str) -> str:
    r"""Each item with \pm as two, and with \mp linked to it: the parser takes them in a few places only.

    >>> _each_sign(r"0,\frac{1\pm x}{2}"), _each_sign(r"\{(\pm 1,\mp 2)\}"), _each_sign(r"\pm 1\pm 2")
    ('0,\\frac{1+ x}{2},\\frac{1- x}{2}', '\\{(+ 1,- 2),(- 1,+ 2)\\}', '+ 1+ 2,+ 1- 2,- 1+ 2,- 1- 2')
    """
    if r"\pm" not in text or ";" in text:
        return text
    if one_set := re.fullmatch(r"\\\{((?:(?!\\[{}]).)*)\\\}", text):
        return rf"\{{{_each_sign(one_set[1])}\}}"
    items = []
    for item in _items(text):
        parts = re.split(r"\\pm(?![a-zA-Z])", item)
        if r"\{" in item or len(parts) > 4:
            items.append(item)
        elif r"\mp" in item:
            items += [item.replace(r"\pm", one).replace(r"\mp", other) for one, other in ("+-", "-+")]
        else:
            for signs in itertools.product("+-", repeat=len(parts) - 1):
                items.append("".join(sign + part for sign, part in zip(("", *signs), parts, strict=True)))
    return ",".join(items)


def _improper(match: re.Match) -> str:
    r"""A mixed number as one fraction; a whole number before any other fraction is a factor."""
    whole, top, bottom = (int(digits.replace(",", "")) for digits in match.groups())
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}" if 0 < top < bottom else match[0]


def _line(match: re.Match) -> str:
    """A point and a multiple of a direction as one point."""
    direction = match[4].split(",")
    start = match[1].split(",") if match[1] else ["0"] * len(direction)
    if len(start) != len(direction):
        return match[0]
    return "(" + ",".join(rf"{a}+{match[2] or match[3]}\cdot({b})" for a, b in zip(start, direction, strict=True)) + ")"


def _without_tail(match: re.Match) -> str:
    r"""What a formula says of its own letters goes: k \in R. But x = 1, y \in R says more than x = 1."""
    formula = re.sub(r"\\[a-zA-Z]+", "", match.string[: match.start()])
    letters = re.findall(rf"{_WORD}[a-zA-Z]{_END}", match[1] or match[2])
    return "" if all(letter in formula for letter in letters) else match[0]


def _parts(match: re.Match) -> str:
    """(a) 5; (b) 7 as a point: its parts have an order."""
    parts = re.split(r"[,;.]? ?\((?:[a-e]|[1-5]|i{1,3}|iv|v)\) ", match[0].rstrip(" .\\"))[1:]
    return match[0] if "," in "".join(parts) else f"({','.join(parts)})"


_COMMANDS = {  # another name for each
    **{"lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lvert": "|", "rvert": "|", "vert": "|"},
    **{"lVert": r"\|", "rVert": r"\|", "Vert": r"\|", "lnot": r"\neg", "rightarrow": r"\to", "longrightarrow": r"\to"},
    **{"ell": "l", "backslash": r"\setminus", "smallsetminus": r"\setminus", "lg": r"\log_{10}", "imath": " i"},
    **{"jmath": " j", "varphi": r"\phi", "varepsilon": r"\epsilon", "vartheta": r"\theta", "varrho": r"\rho"},
}

LAYOUT = [  # what changes the looks of an answer, not the answer
    (r"(?<=\d) ?– ?(?=\d)", r"\\text{ to }", "10–12", r"10\text{ to }12"),  # a range is no difference
    ("–", "-", "–7", "-7"),
    (r"\s+", " ", "a \n b", "a b"),
    (r"(=[^=]*[^=,;\s$])(?<!and\})(?<!or\})"
     r" ?(?:(?:\\q?quad(?![a-zA-Z])|\$) ?)+(?=[a-zA-Z](?:_ ?\{?\w+\}?)?(?:\([a-z]\))? ?=)",
     r"\1, ", r"x=1\quad y=2", "x=1, y=2"),
    (r"(?<![\d.,])([1-9]\d{0,2}(?:(?:\{,\}|,\\!) ?\d{3})+)(?!\d)", lambda match: re.sub(r"\D", "", match[1]),
     r"1{,}000\pi", r"1000\pi"),  # such a comma separates no list
    (r"\\{4}", r"\\\\", r"1\\\\2", r"1\\2"),  # escaped twice on its way into a file
    (r"(?<!\\)\\\\(?=[a-zA-Z]{2,})", r"\\", r"\\frac{1}{2}", r"\frac{1}{2}"),
    (r"^\\\\\{(.*)\\\\\}$", r"\\{\1\\}", r"\\{1,2\\}", r"\{1,2\}"),
    (r"(\\\\) ?\[[^\]]*\]", r"\1", r"1\\[2pt] 2", r"1\\ 2"),
    (r"(?<=\\\$)(\d[\d.,]*) ?(?:\\text ?\{ ?)?[kK] ?\}?$", r"\1\\text{ thousand}", r"\$5K", r"\$5\text{ thousand}"),
    (r"(?<!\\)(?:\\\$|\$|\\[()\[\]])", " ", "$5$", " 5 "),
    (r"\.\.\.|\\[ch]?dots[bcmio]?(?![a-zA-Z])", r"\\ldots ", "0.33...", r"0.33\ldots "),
    (r"(,)\\! ?| ?\{ ?([,:]) ?\} ?", r"\1\2", "1{,}000", "1,000"),
    (rf"((?<!\\)\\[,;:> ]|~|\\(?:{_BLANKS}){_END}| )+", " ", r"1,\ \quad 2", "1, 2"),
    (rf"\{{ ?\\rm(?![a-zA-Z]) ?{_ARG}\}}", r"\\text{\1}", r"{\rm cm}", r"\text{cm}"),
    (rf"\\!|\\(?:left|right|middle){_END}\.?|\\(?:{_SWITCHES}){_END}", "", r"\left(\bf 5\right)", "( 5)"),
    (rf"\\({'|'.join(_COMMANDS)}){_END}", lambda match: _COMMANDS[match[1]], r"\lVert v\rVert", r"\| v\|"),
    (r"\^ ?(?:\{ ?((?:\\prime ?)+)\}|(\\prime)(?![a-zA-Z]))",
     lambda match: "'" * match[0].count("prime"), r"30^{\prime\prime}", "30''"),
    (r"\\(?:tag|label) ?\*? ?\{[^{}]*\}", "", r"5\tag{1}", "5"),
    (r"\\textcircled ?\{ ?(\w+) ?\}", r"(\1)", r"\textcircled{1}", "(1)"),
    (rf"\\(?:textcolor|colorbox) ?\{{[^{{}}]*\}} ?\{{{_ARG}\}}", r"\1", r"\textcolor{red}{x_{1}}", "x_{1}"),
    (r"\\color ?\{[^{}]*\}", "", r"\color{red} 5", " 5"),
    (rf"\\(?:{_WRAPPERS}) ?(?:\[[^\]]*\])?\{{{_ARG}\}}", r"\1", r"\bm{v}", "v"),
    (r"\\mathbf ?\{ ?([a-z]) ?\} ?\\times ?\\mathbf ?\{ ?([a-z]) ?\}", r"\\vec{\1}\\times\\vec{\2}",
     r"\mathbf{a}\times\mathbf{b}", r"\vec{a}\times\vec{b}"),  # a product of vectors is not one of numbers
    (r"\\math(?:bf|it|sf|tt) ?\{ ?([a-zA-Z]) ?\}", r"\1", r"\mathbf{j}", "j"),
    (r"\\(?:text(?:bf|it|rm|sf|tt|sc|up|normal)|math(?:rm|bf|it|sf|tt)|[mh]box|emph|operatorname)\*? ?"
     r"(?=\{|[a-zA-Z](?![a-zA-Z]))", r"\\text", r"\mathrm{cm}", r"\text{cm}"),
    (r"\\text ?([a-zA-Z])(?![a-zA-Z])", r"\\text{\1}", r"k_{\text B}", r"k_{\text{B}}"),
    (rf"^\\text ?\{{(?=[^{{}}]*[\\=^_<>]){_ARG}\}}$", r"\1", r"\text{x=5}", "x=5"),
    (r"(?<=\S) ?(?:\\(?:(?:black)?square|Box|qed\w*)(?![a-zA-Z])|(?:\\text ?\{| ) ?Q\.?E\.?D\.? ?\}?)[ .]*$",
     "", r"5\,\blacksquare", r"5\,"),
    (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}", r"{5\choose 2}", r"\binom{5}{ 2}"),
    (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}", r"{1\over 2}", r"\frac{1}{ 2}"),
    (rf"^\{{{_ARG}\}}$|\\text ?\{{ *\}}", r"\1", "{ 5}", " 5"),
    (rf"^ ?\\text ?\{{ ?(?:(?i:therefore|thus|hence|so),? ?)?(?:{_SAID}(?: is|是)? ?:?)? ?\}} ?[:=]?", "",
     r"\text{The answer is }5", "5"),
    (rf"^ ?(\\text ?\{{ ?)?{_SAID}(?: is(?: ?:)?|是| ?[:=]) ?", r"\1", "Answer: 5", "5"),
    (r"(^|[,;]) ?\\text ?\{ ?(?:([a-zA-Z ]{4,}) ?:|([tT]he [a-zA-Z ]+) is) ?\}", r"\1 \\text{\2\3}=",
     r"\text{Total: }5", r" \text{Total}=5"),
    (r"(?<=[0-9a-zA-Z)}\]]) ?(?:\\text ?\{ ?)?([或且和与])(?: ?\})? ?(?=[-+0-9a-zA-Z(\[\\])",
     lambda match: rf"\text{{ {'or' if match[1] == '或' else 'and'} }}", "x=1或x=2", r"x=1\text{ or }x=2"),
    (r"^ ?(?:\\text ?\{ ?)?(?i:about|approximately|approx\.?|exactly) ?\}? ?(?=[-\d\\$])", "", r"\text{about }7", "7"),
    (r"^ ?\\text ?\{ ?(?i:minus|negative) ?\} ?(?=\d|\\[dt]?frac|\\sqrt)", "-", r"\text{minus }7", "-7"),
    (r"\\text ?\{ ?([€£¥₹¢]) ?\}|^ ?(?:\\text ?\{ ?)?(?:Rs\.?|USD?) ?\}? ?(?=[\d ])", r"\1", r"\text{€}5", "€5"),
    (r"\\AA(?![a-zA-Z])", r"\\text{Å}", r"7.5\ \AA", r"7.5\ \text{Å}"),
    (r"^ ?(\\text ?\{ ?)?(?:(?i:option|choice|answer) |故?选项?)(?=\(?[a-hA-H](?![a-zA-Z]))", r"\1", "Option C", "C"),
    (r"\\text ?\{ ?([^{}]+?),? (and|or) ?\}(?= ?[-\d\\.(])", r"\\text{\1}\\text{ \2 }", r"3\text{ cm and }4",
     r"3\text{cm}\text{ and }4"),
    (r" ?\\text ?\{ ?\( ?(?:about|approx[a-z.]*) ?\}? ?", r" \\approx ", r"\pi\text{ (about }3.14\text{)}",
     r"\pi \approx 3.14\text{)}"),
    (r"^ ?(-?\d[\d.,/]*) ?\(([a-zA-Z]{2}[a-zA-Z. ]*)\)$", r"\1\\text{ \2}", "9 (apples)", r"9\text{ apples}"),
    (r"^ ?(?:12(?::00)?)? ?(?:\\text ?\{ ?)?(?:12 )?(noon|midnight) ?\}?$",
     lambda match: r"12\text{ pm}" if match[1] == "noon" else r"12\text{ am}", r"12\text{ noon}", r"12\text{ pm}"),
    (r" ?(?:\\text ?\{ ?)?o'clock ?\}?$", "", r"9\text{ o'clock}", "9"),
    (r"(con|di)vergent\b", r"\1verges", "convergent", "converges"),
    (r"^ ?(?:\\text ?\{ ?)?(\d+)(?:st|nd|rd|th) ?\}?$", r"\1", r"\text{6th}", "6"),
    (r"(?<=\d)(?: ?\^ ?\{ ?)?\\text ?\{ ?(?:st|nd|rd|th) ?\}(?: ?\})?", "", r"5^{\text{th}}", "5"),
    (r"\\text ?\{ ?(-?\d[\d.,]*|[0-9A-F]+(?= ?\} ?_)) ?\}", r"\1", r"\text{A1}_{16}", "A1_{16}"),
    (r"\\text ?\{ ?(-?\d[\d.,]*),? (and|or|to) (-?\d[\d.,]*) ?\}", r"\1\\text{ \2 }\3", r"\text{3 and 7}",
     r"3\text{ and }7"),
    (r"\\text ?\{ ?(-?\d[\d.,:]*) ", r"\1\\text{", r"\text{5 apples}", r"5\text{apples}"),
    (r"(:\d\d|\d(?= |\\)|^\d\d?(?=[ap]m$)) ?(?:\\text ?\{ ?)?(?:([ap])(?:\. ?)?m|([AP])(?:\. ?)?M)\.?(?![a-zA-Z]) ?\}?",
     lambda match: rf"{match[1]}\text{{ {(match[2] or match[3]).lower()}m}}", "3:30 P.M.", r"3:30\text{ pm}"),
    (r"([_^]) ?\{ ?\\text ?\{ ?(\w*) ?\} ?\}", r"\1{\2}", r"k_{\text{B}}", "k_{B}"),
    (r"_ ?\{? ?\\(max|min|odot|oplus|perp|parallel|infty|star|ast)(?![a-zA-Z]) ?\}?", r"_{\1}", r"I_{\max}", "I_{max}"),
    (rf"(?<=[0-9A-F)]) ?_ ?\{{ ?({'|'.join(_BASES)}) ?\}}", lambda match: f"_{{{_BASES.index(match[1]) + 1}}}",
     "101_{two}", "101_{2}"),
    (r"(?<=[0-9A-F)]) ?(?:_ ?\{)?(?: |\\text ?\{|\()*(?:in )?base(?: |\})*(\d+)[ )}]*$|_ ?\{ ?\( ?(\d+) ?\) ?\}",
     r"_{\1\2}", r"101\text{ base }2", "101_{2}"),
    (r"\(([0-9A-F]+)\) ?(?=_ ?\{? ?\d)", r"\1", "(101)_2", "101_2"),
    (rf"(?<![\w}}])(?:\{{ ?\}} ?)?[_^] ?{_COUNT} ?C ?_ ?{_COUNT}|{_WORD}C ?_ ?{_COUNT} ?\^ ?{_COUNT}",
     lambda match: rf"\binom{{{match[1] or match[3]}}}{{{match[2] or match[4]}}}"
     if int(match[2] or match[4]) <= int(match[1] or match[3]) else match[0], "{}_{10}C_4", r"\binom{10}{4}"),
    (r"\\text ?\{ ?(arc(?:sin|cos|tan|cot|csc)|sinh?|cosh?|tanh?|cot|csc|ln|log|exp|gcd|lcm|det) ?\}", r"\\\1 ",
     r"\text{sin}x", r"\sin x"),
    (r"\\text ?\{ ?([ie]) ?\}", r"\1 ", r"\text{e}^2", "e ^2"),
    (r"\\text ?\{ ?d ?\} ?(?=[a-z](?![a-z])|\})", "d", r"\text{d}x", "dx"),
    (rf"(?:{_WORD}|(?<=\d))({_GREEK_WORDS}){_END}(?= ?[-+*/^_=)])|(?<=[-+*/(=\d])({_GREEK_WORDS}){_END}",
     lambda match: f"\\{match[0]} ", "2*theta^2", r"2*\theta ^2"),  # alone it may be a word
    (rf"{_WORD}(arc(?:sin|cos|tan)|sinh?|cosh?|tanh?|cot|csc|ln|log|exp|sqrt|pi){_END}", r"\\\1 ", "2*pi", r"2*\pi "),
    (rf"(?:\+ ?)?\\text ?\{{ ?(?i:infinity|infinitely many(?: solutions)?) ?\}}|{_WORD}inf(?:inity)?{_END}|\+ ?\\infty",
     r"\\infty ", "(1,+infinity)", r"(1,+\infty )"),
    (rf"{_TEXT_OPEN}(?:(?:there [a-z]+ )?no (?:such |real |integer )*(?:solution|root|value|number|integer)s?"
     rf"(?: exists?)?|(?:the )?empty set|无解)\.?{_TEXT_CLOSE}|\\varnothing(?![a-zA-Z])",
     r"\\emptyset ", r"\text{no solution}", r"\emptyset "),
    (rf"^ ?(?:\\text ?\{{ ?)?(?i:all real numbers)(?: [a-z])? except ?\}}? ?(?:[a-z] ?= ?)?({_VALUE})[ }}]*$",
     r"\\mathbb{R}\\setminus\\{\1\\}", r"\text{all real numbers except }1", r"\mathbb{R}\setminus\{1\}"),
    (rf"{_TEXT_OPEN}all real (?:numbers|values)(?: of)?{_TEXT_CLOSE}|\\(?:mathbb|Bbb|text) ?\{{? ?R ?\}}?$",
     r"\\mathbb{R}", "all real numbers", r"\mathbb{R}"),
    (rf"{_TEXT_OPEN}all positive integers{_TEXT_CLOSE}|\\mathbb ?\{{? ?Z ?\}}? ?\^ ?\{{? ?\+ ?\}}?", r"\\mathbb{Z}^+",
     "all positive integers", r"\mathbb{Z}^+"),
    (r"\\mathbb ?\{? ?R ?\}? ?(?:\^ ?\{? ?\+ ?\}?|_ ?\{ ?(?:>|\\gt) ?0 ?\})$", r"(0,\\infty)",
     r"\mathbb{R}^+", r"(0,\infty)"),
    (rf",? ?{_FOR_ALL}(?:[ }}]*{_EVERY})*[ }}]*[a-z]"
     r"(?: ?\\in ?\\mathbb ?\{? ?[RQZNC] ?\}?)?(?: ?\^ ?\{? ?\+ ?\}?| ?_ ?\{ ?> ?0 ?\})?[ }]*$", "",
     r"f(x)=2x\text{ for all real }x", "f(x)=2x"),
    (rf"^ ?([a-zA-Z] ?[_(] ?\{{? ?([kmn]) ?[}})]? ?=.*?)[ ,(]*(?:\\text ?\{{ ?)?(?:(?:for|where|all|integers?){_GAP})*"
     r"\2 ?(?:\\geq? ?[01]|\\in ?\\mathbb ?\{? ?[NZ][ {}_^+*>0]*)[ })]*$", r"\1", r"a_{n}=2n, n\ge 1", r"a_{n}=2n"),
    (r"^ ?(?:\\text ?\{ ?)?all (?:integers )?\}? ?(?=[kmn] ?(?:[<>]|\\[lg]e))", "", r"\text{all }n>2", "n>2"),
    (r"^ ?(?:[a-zA-Z] ?: ?)?\(?[a-z]\)? ?\\mapsto(?![a-zA-Z])", "", r"f:x\mapsto 2x", " 2x"),
    (r"\\text ?\{ ?\( ?mod ([^{}()]*)\) ?\}", r"\\pmod{\1}", r"3\text{ (mod 7)}", r"3\pmod{7}"),
    (r"\( ?(?:\\text ?\{ ?)?\\?b?mod(?![a-zA-Z]) ?\}? ?([^(){}]*)\)|\\pmod ?(\d+|[a-zA-Z])(?![a-zA-Z])",
     r"\\pmod{\1\2}", r"3 (mod 7)", r"3 \pmod{7}"),
    (r"(?:\\b?|(?<![a-zA-Z\\]))mod ?\{? ?(\d+) ?\}?$|\\text ?\{ ?mod ?\} ?(\d+)$", r"\\bmod{\1\2}",
     r"3\bmod 7", r"3\bmod{7}"),
    (r"\\(?:[dtcs]|nice)(frac|binom)(?![a-zA-Z])", r"\\\1", r"\dfrac12", r"\frac12"),
    (r"\\(?:text ?\{ ?)?(arc)?(c?)tg(?![a-zA-Z])(?: ?\})?",
     lambda match: f"\\{match[1] or ''}{'cot' if match[2] else 'tan'} ", r"\tg x", r"\tan  x"),
    (r"\b(p)er (?=cent(?:age)?\b)", r"\1er", "5 per cent", "5 percent"),
    (r"\\([lgn]e)(?:q|qslant|qq)(?![a-zA-Z])", r"\\\1", r"x \leq 2", r"x \le 2"),
    (r"(?<!\d)!=|\\not ?=", r"\\ne ", "x!=2", r"x\ne 2"),  # 5!=120 has a factorial
    (r"\\not ?\\in(?![a-zA-Z])", r"\\notin", r"x\not\in A", r"x\notin A"),
    (r"\\(min|max|gcd|lcm) ?\\\{([^{}]*)\\\}", r"\\\1(\2)", r"\min\{a,b\}", r"\min(a,b)"),
    (r"([=<>][^=<>]*?)\\(?:land|wedge)(?![a-zA-Z])", r"\1\\text{ and }", r"x=1\land y=2", r"x=1\text{ and } y=2"),
    (r"([=<>][^=<>]*?)\\(?:lor|vee)(?![a-zA-Z])", r"\1\\text{ or }", r"x=1\lor x=2", r"x=1\text{ or } x=2"),
    (r"^ ?(\*\*?|__)([^*_]+)\1 ?$", r"\2", "**5**", "5"),  # bold, in Markdown
    (r"\*\*", "^", "x**2", "x^2"),
    (r"\\\*", "*", r"2\*x", "2*x"),
    (r"(?<![a-zA-Z])(?:np|numpy|math)\.(?=[a-z\\])", "", "np.arcsin(x)", "arcsin(x)"),
    (r"(?<=[,}]) ?\([a-z](?:, ?[a-z])+\) ?= ?(?=\()", "", "(x,y)=(1,2),(x,y)=(3,4)", "(x,y)=(1,2),(3,4)"),
    (r"^ ?\((?:a|1|i)\) [-\w(\\].+\((?:b|2|ii)\) [-\w(\\].*$", _parts, "(a) 5; (b) 7", "(5,7)"),
    (r"^ ?((?:\( ?\d\d? ?\) ?){2,})$", lambda match: ", ".join(re.findall(r"\d+", match[1])), "(1)(3)", "1, 3"),
    (r"^ ?\[([^][;,]+,[^][;]*(?:;[^][;,]+,[^][;]*)+)\]$", lambda match: _matrix(match[1], ";"),
     "[1,2;3,4]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"([][(])([^][(),;]+);([^][(),;]+)([][)])", r"\1\2,\3\4", "[0;1]", "[0,1]"),
    (r"^\[ ?(\[[^][]*\](?:, ?\[[^][]*\])+) ?\]$", lambda match: _matrix(match[1][1:-1], "] ?, ?."),
     "[[1,2],[3,4]]", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}"),
    (r"\\(hat|vec|bar|tilde|widehat|mathbb) ([a-zA-Z])(?![a-zA-Z])", r"\\\1{\2}", r"\hat i", r"\hat{i}"),
    (r"(\[|\() ?([^][(),]+),([^][(),]+)(?<!sqrt)\[", r"\1\2,\3)", "[1,2[", "[1,2)"),  # open ends as in France
    (r"(?<!sqrt\[.)\]([^][(),]*[^][(), ][^][(),]*),([^][(),]+)(?:(\))|(\])|\[)",
     lambda match: f"({match[1]},{match[2]}{match[4] or ')'}", "]1,2[", "(1,2)"),
    (rf"{_TEXT_OPEN}(?:DNE|(?:the [a-z]+ )?does not exist)\.?{_TEXT_CLOSE}", r"\\text{does not exist}", "DNE",
     r"\text{does not exist}"),
    (r"\\dot ?\{?(\d)\}?(\d*)\\dot ?\{?(\d)\}?|(?<=\d\.)\((\d+)\)", r"\\overline{\1\2\3\4}", r"0.\dot{2}\dot{7}",
     r"0.\overline{27}"),
    (rf"(?:\\\{{ ?)?\\begin ?\{{((?:{_EQUATIONS})\*?)\}} ?(?:\{{[lcr|@ ]*\}})?(.*?)\\end ?\{{\1\}}", _rows,
     r"\begin{aligned}x&=1\\y&=2\end{aligned}", "x=1, y=2"),
    (r",? ?& ?(?:\\text ?\{ ?(?:if|for|when) ?\})?", "&", r"1, & \text{if } x>0", "1& x>0"),
    (r"^(?: |=|\\approx|\\therefore|\\Rightarrow|\\implies)+(?![a-zA-Z])", "", "= 5", "5"),
    (r"[\\.,;: ]+$", "", r"5\\", "5"),
    (r"""^ ?(?:"|'|``?)([^"'`]+)(?:"|''?|`)$""", r"\1", '"yes"', "yes"),
    (r"\^ ?(-?\d+(?:\.\d+)?|[a-zA-Z*])", r"^{\1}", "2^10", "2^{10}"),  # TeX takes one digit; who writes two means both
    (r"_ ?(-\d+|[0-9a-zA-Z])", r"_{\1}", r"\log_28", r"\log_{2}8"),
    (r"[(\[]([^][(),]+(?:,[^][(),]+)+)[)\]] ?\^ ?\{? ?(?:T|\\top)(?![a-zA-Z]) ?\}?", r"(\1)", "(1,2)^T", "(1,2)"),
    (r"\\sqrt ?\(([^()]*)\)", r"\\sqrt{\1}", r"\sqrt(2)", r"\sqrt{2}"),
    (r"\\(sqrt(?: ?\[[^][]*\])?|overline|(?:dot|bar)(?= ?\d)) ?([0-9a-zA-Z])", r"\\\1{\2}", r"\sqrt2", r"\sqrt{2}"),
    (rf"\\(sqrt|frac) ?(\\(?:{_GREEK}))(?![a-zA-Z])", r"\\\1{\2}", r"\frac\pi2", r"\frac{\pi}2"),
    (r"\\langle(?![a-zA-Z])([^<>]*?)\\rangle", r"(\1)", r"\langle 1,2\rangle", "( 1,2)"),
    (r"^\\\{ ?[a-z] ?(?:\\in ?\\mathbb ?\{? ?R ?\}? ?)?(?:\\mid(?![a-zA-Z])|\||:)(.*)\\\}$",
     r"\1", r"\{x:x>1\}", "x>1"),
    (r"^\\\{(.*)(?:\\mid(?![a-zA-Z])|\||:) ?[a-z] ?\\in ?(?:\\mathbb ?)?\{? ?Z ?\}? ?\\\}$", r"\1",
     r"\{2k\pi\mid k\in\mathbb Z\}", r"2k\pi"),
    (rf"(?:(?<=[^ ,(])[ ,(]+|(?<=[^ ])(?=\\text)){_WHOLE}[ }})]*$", "", r"n\pi, n\text{ is an integer}", r"n\pi"),
    (rf"(?:(?<=[^ ,(=])[ ,(]+|(?<=[^ ])(?=\\text)){_ARBITRARY}[ }})]*$", _without_tail, r"x+C, C\in\mathbb R", "x+C"),
    (r"^ ?([a-z]) ?(?:\\mid(?![a-zA-Z])|\||:)(?=[^|:]*\1)(?=[^|:]*(?:[<>]|\\[lg]e))", "", r"x \mid -1<x<2", " -1<x<2"),
    (r"^ ?((?:[-+\d., /{}]|\\frac)+)(?:>|\\gt)((?:[-+\d., /{}]|\\frac)+)$", r"\2<\1", r"\frac{1}{2}>\frac{1}{3}",
     r"\frac{1}{3}<\frac{1}{2}"),  # two numbers compared
    (r"^\\\{([^{}]*\\ldots[^{}]*)\\\}$", r"\1", r"\{1,2,\ldots\}", r"1,2,\ldots"),
    (r"\\mathbb ?\{? ?R ?\}? ?- ?\\\{", r"\\mathbb{R}\\setminus\\{", r"\mathbb{R}-\{0\}", r"\mathbb{R}\setminus\{0\}"),
    (r"\\(frac|binom) ?([0-9a-zA-Z])", r"\\\1{\2}", r"\frac12", r"\frac{1}2"),
    (rf"(\\(?:frac|binom) ?\{{{_ARG}\}}) ?([0-9a-zA-Z]|\\(?:{_GREEK})(?![a-zA-Z]))", r"\1{\3}",
     r"\frac{1}2", r"\frac{1}{2}"),
]  # fmt: skip

SPELLING = [  # what the parser would misread: applied to what goes to sympy only
    (r"\\(begin|end) ?\{ ?(?:small|B)matrix ?\}", r"\\\1{pmatrix}", r"\begin{Bmatrix}", r"\begin{pmatrix}"),
    (r"\\?%(?! ?\d)", "", r"x\%", "x"),
    (r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z]).*", lambda match: re.sub(_DEGREE, r"\\frac{\\pi}{180}", match[0]),
     r"\sin 30^\circ", r"\sin 30\frac{\pi}{180}"),  # elsewhere degrees are a unit
    (r",? ?(?:\\text ?\{ ?(?:and|or) ?\}|(?<![\\a-zA-Z])(?:and|or)(?![a-z])) ?", ",", r"5 \text{ or } 6", "5,6"),
    (r"(?<=\d) (?=\d{3}(?!\d))", "", "1 000x", "1000x"),
    (r"(?<=\d) (?=\d)", ",", "5 6", "5,6"),  # no product
    (r"(\d)[eE]([-+]?\d+)", r"\1\\cdot 10^{\2}", "1e-5", r"1\cdot 10^{-5}"),
    (r"(\d[0-9A-F]*|[A-F]+\d[0-9A-F]*) ?_ ?\{ ?(\w+) ?\}",
     lambda match: f"b_{{{match[1]}b{match[2]}}}"
     if match[1].isdigit() or match[2].isdigit() and int(max(match[1]), 16) < int(match[2]) else match[0],
     "204_{5}", "b_{204b5}"),  # with its base; 2E_{1} has none
    (rf"(?<![\\a-zA-Z])([a-zA-Z]|\\(?:{_GREEK})) ?(\^ ?\{{[^{{}}]*\}}) ?(_ ?\{{[^{{}}]*\}})", r"\1\3\2",
     "x^{2}_{1}", "x_{1}^{2}"),  # the parser would drop the index
    (rf"(\\(?:ln|log)(?: ?_ ?\{{\w+\}})? ?(?:\d+|[a-zA-Z]|\|[^|]*\|)(?= ?(?:/|\\cdot|\\times))"
     rf"|\\(?:sin|cos|tan)(?: ?\^ ?\{{\w+\}})? ?([a-z]|\\(?:{_GREEK}))(?= ?(?:/ ?\2|\\cdot|\\times)))(?![a-zA-Z])",
     r"(\1)", r"\ln 3/2", r"(\ln 3)/2"),  # the parser would divide and multiply inside
    (rf"\^ ?(\\frac ?\{{{_ARG}\}} ?\{{{_ARG}\}})", r"^{\1}", r"2^\frac{1}{3}", r"2^{\frac{1}{3}}"),
    (r"(?<![\d.])(\d{1,3}(?:,\d{3})+|\d+) ?\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}",
     _improper, r"2\frac{1}{3}x", r"\frac{7}{3}x"),
    (r"(?<![\w.}/^])(?:(\d+(?:\.\d+)?) ?/ ?(\d+(?:\.\d+)?)(?![\d.]| ?[_^!])|\((\d+)\) ?/ ?\((\d+)\)(?! ?[_^!]))",
     lambda match: rf"\frac{{{match[1] or match[3]}}}{{{match[2] or match[4]}}}", r"4/3\pi", r"\frac{4}{3}\pi"),
    (r"(^|[,;])([^=<>,;]*(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])[^=<>,;]*)\\approx(?![a-zA-Z])", r"\1\2=",
     r"2x\approx 5, y\approx 6", "2x= 5, y= 6"),  # the parser would drop what stands left of it
    (r"(\\pi|(?<![a-zA-Z\\])[ie]) ?\(", r"\1\\cdot (", r"\pi(x+1)", r"\pi\cdot (x+1)"),  # no functions
    (r"\\angle ?(?:\{ ?)?([A-Z]) ?([A-Z]) ?([A-Z])(?![A-Z]) ?\}?",
     lambda match: f"b_{{{min(match[1], match[3])}{match[2]}{max(match[1], match[3])}}}", r"\angle CBA", "b_{ABC}"),
    (r"\\vec ?\{(\w)\} ?\\times ?\\vec ?\{(\w)\}", r"b_{\1x\2}", r"\vec{a}\times\vec{b}", "b_{axb}"),  # not b x a
    (r"^(?!.*\\int).*d ?\\[a-zA-Z].*",
     lambda match: re.sub(r"(\\[a-zA-Z]+)|d ?(?=\\[a-zA-Z])", lambda part: part[1] or "{d}", match[0]),
     r"2d\sin x", r"2{d}\sin x"),  # a distance; the parser knows differentials
    (r"([0-9)}]) ?''", r"\1 b_{qq}", "5''", "5 b_{qq}"),  # inches; all these would be dropped
    (r"([0-9)}]) ?'", r"\1 b_{q}", "5'", "5 b_{q}"),
    (r"([a-zA-Z]) ?''", r"\1_{qq}", "f''(x)", "f_{qq}(x)"),
    (r"([a-zA-Z]) ?'", r"\1_{q}", "f'(x)", "f_{q}(x)"),
    (r"(?<!matrix\}) ?\^ ?(?:\{ ?T ?\}|\\top(?![a-zA-Z]))", "^{1T}", "2^{T}", "2^{1T}"),  # 2 would be its transpose
    (r"\\gamma(?![a-zA-Z])(?: ?_ ?\{ ?(\w+) ?\})?", r"\\lambda_{g\1}", r"\gamma_{1}", r"\lambda_{g1}"),  # no function
    (r"I(?!m|ff)", r"\\iota ", "I_{1}", r"\iota _{1}"),  # no imaginary unit
    (r"(E|(?<![a-zA-Z\\])e) ?_ ?\{([\w +-]*)\}", lambda match: f"b_{{q{match[1]}{match[2].translate(_IN_A_NAME)}}}",
     "2E_{n+1}", "2b_{qEnp1}"),  # an energy, not 2.718
    (r"(?<![\\a-zA-Z])(?![ckm]m ?\^)([a-zA-Z]?)([a-zA-Z])(?= ?\^)", r"\1{\2}", "xy^{2}", "x{y}^{2}"),  # faster to parse
    (r"(?:\(([^()]*,[^()]*)\) ?\+ ?([a-z])|^([ckt])) ?\(([^()]*,[^()]*)\)$", _line,
     "(1,2)+t(3,4)", r"(1+t\cdot(3),2+t\cdot(4))"),
    (r"\^ ?\(([^()]*)\)", r"^{(\1)}", "2^(n+1)", "2^{(n+1)}"),
    (r"(\^ ?\{[^{}]*)\} ?(\^ ?\{[^{}]*\})", r"\1\2}", "2^{3}^{2}", "2^{3^{2}}"),  # a tower, from the top
    (r"(?<![\d.!])(\d{1,3})!!(?!!)", lambda match: str(math.prod(range(int(match[1]), 1, -2))), "5!!", "15"),
    (r"(\d+|[a-zA-Z]|\([\w +-]*\)) ?!!(?!!)",  # no factorial of a factorial
     lambda match: f"b_{{qf{match[1].translate(_IN_A_NAME)}}}", "(2n-1)!!", "b_{qf2nm1}"),
    (r"(\d+|[a-zA-Z]|\([^()]*\)) ?!(?= ?\^)", r"(\1!)", "n!^{2}", "(n!)^{2}"),
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


# --- characters beyond ASCII -----------------------------------------------------------------------------------------

_SYMBOLS = {
    pair[0]: pair[1:] + " "
    for pair in r"×\times ·\cdot ⋅\cdot ∙\cdot ∞\infty ∅\emptyset ≤\le ≥\ge ⩽\le ⩾\ge ≦\le ≧\ge ≠\ne ≈\approx ≡\equiv "
    r"±\pm ∓\mp ∪\cup ∩\cap ∈\in ∉\notin ⊂\subset ⊆\subseteq ∖\setminus °^\circ º^\circ ˚^\circ ∠\angle △\triangle "
    r"ℝ\mathbb{R} ℤ\mathbb{Z} ℕ\mathbb{N} ℚ\mathbb{Q} ℂ\mathbb{C} …\ldots ∑\sum ∏\prod ∫\int ∂\partial √\sqrt →\to "
    r"∧\land ∨\lor ¬\neg ∀\forall ∃\exists ∥\parallel ⊥\perp ⌊\lfloor ⌋\rfloor ⌈\lceil ⌉\rceil ‖\| "
    r"■\blacksquare ∎\blacksquare □\square".split()
}
_SYMBOLS |= dict(zip("−÷⁄∕∗∣。、", "-///*|.,", strict=True)) | dict.fromkeys("’‘′", "'")
_CAPITALS = "gamma delta theta lambda xi pi sigma upsilon phi psi omega".split()  # the others look like Latin ones
_ROOT = re.compile(r"([√∛∜]) ?(?:\(([^()]*)\)|((?:[0-9]+(?:\.[0-9]+)?|\w)[²³¹⁰-⁹ⁿ]*))")


@functools.lru_cache(1024)
def _latex_of(char: str) -> str:
    r"""One character as LaTeX.

    >>> [_latex_of(char) for char in "½𝟏７π℃〈"]
    ['\\frac{1}{2}', '1', '7', '\\pi ', '^\\circ C', '(']
    """
    if char.isascii() or char in _SYMBOLS:
        return _SYMBOLS.get(char, char)
    name, category = unicodedata.name(char, ""), unicodedata.category(char)
    plain = unicodedata.normalize("NFKC", char)
    greek = re.fullmatch("GREEK (SMALL|CAPITAL) LETTER ([A-Z]+)", name)
    letter = greek[2].lower().replace("lamda", "lambda") if greek else ""
    if greek and greek[1] == "SMALL":
        return f"\\{letter} "
    if letter in _CAPITALS:
        return f"\\{letter.capitalize()} "
    if "<circle>" in unicodedata.decomposition(char):  # the number of a statement
        return f"({plain})"
    if "<fraction>" in unicodedata.decomposition(char):
        return "\\frac{" + plain.replace("⁄", "}{") + "}"
    if plain != char:
        return "".join(map(_latex_of, plain))
    if category == "Nd":  # digits of other scripts
        return str(unicodedata.decimal(char))
    if category in ("Ps", "Pe") and re.search("ANGLE BRACKET|PARENTHESIS", name):
        return "(" if category == "Ps" else ")"
    if name.endswith("QUOTATION MARK"):
        return '"'
    return {"Cf": "", "Zs": " ", "Pd": "–"}.get(category, char)


def _index(char: str) -> str:
    """^ for a raised character, _ for a lowered one."""
    tag = unicodedata.decomposition(char).partition(">")[0]
    return {"<super": "^", "<sub": "_"}.get(tag, "") if char not in _SYMBOLS else ""


def _ascii(text: str) -> str:
    r"""Unicode's mathematics as LaTeX.

    >>> _ascii("x⁻¹⁰+a₁"), _ascii("√12"), _ascii("∛(x+1)"), _ascii("2½")
    ('x^{-10}+a_{1}', '\\sqrt{12}', '\\sqrt[3]{x+1}', '2\\frac{1}{2}')
    """
    degrees = {"√": "", "∛": "[3]", "∜": "[4]"}
    text = _ROOT.sub(lambda match: rf"\sqrt{degrees[match[1]]}{{{match[2] or match[3]}}}", text)
    parts = []
    for index, chars in itertools.groupby(text, _index):
        plain = "".join(map(_latex_of, chars))
        parts.append(f"{index}{{{plain}}}" if index else plain)
    return "".join(parts)


# --- one spelling -----------------------------------------------------------------------------------------------------

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
    return _rewrite(text if text.isascii() else _ascii(text), _LAYOUT).strip()


def spelled(text: str) -> str:
    r"""A tidy text as the parser reads it right.

    >>> spelled(r"f'(x) \text{ or } 2\gamma")
    'f_{q}(x),2\\lambda_{g}'
    """
    return _each_sign(_rewrite(text, _SPELLING))


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
    text = re.sub(" +", " ", text).strip().rstrip(" .")  # not from .5
    text = re.sub(r"(?<![\\a-zA-Z])[A-Z](?=[a-z]{3})", lambda match: match[0].lower(), text)  # a word, as in words
    text = re.sub(r"(\\[a-zA-Z]+) (?![a-zA-Z])", r"\1", text)  # \le 0 is \le0
    return (_SPACE_IN_LIST if text.count(",") > 1 else _SPACE).sub("", text)
