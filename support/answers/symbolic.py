r"""Do two formulas say the same? math-verify's LaTeX parser reads them, named rules compare the sympy objects.

    >>> same("x+x", "2x"), same("x<1", "x<2")
    (True, False)

This may take for ever and raise anything, so only a worker imports it (support/answers/sandbox.py).
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import sympy
from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, _Latex2Sympy
from sympy import And, Eq, Expr, FiniteSet, Float, Interval, MatrixBase, Rational, Set, Symbol, Tuple, Union
from sympy.core.function import AppliedUndef
from sympy.core.relational import Relational
from sympy.logic.boolalg import BooleanAtom

from support.answers.equivalence import RELATION, bare, number
from support.answers.latex import canonical, spelled, tidy
from support.answers.units import split

# --- reading ----------------------------------------------------------------------------------------------------------


def exact(digits: str):
    """A decimal as the fraction it is; with six or more decimals it may have been rounded and stays a Float.

    >>> exact("0.25"), exact("0.333333")
    (1/4, 0.333333000000000)
    """
    return Float(digits) if len(digits.partition(".")[2]) >= 6 else Rational(digits)


class _Reader(_Latex2Sympy):
    """With exact decimals, and in one of the parser's two modes."""

    def __init__(self, mode):
        super().__init__(config=ConversionConfig(lowercase_symbols=False))
        self.mode = mode

    def parse_number(self, text):
        return exact(text.replace(",", ""))

    def convert_interval(self, expr):
        """A point (x+1, x-7) would be an empty interval."""
        interval, text = super().convert_interval(expr), expr.getText()
        is_point = interval is sympy.EmptySet and text[0] + text[-1] == "()"
        return Tuple(*map(self.convert_expr, expr.expr())) if is_point else interval

    def handle_gcd_lcm(self, f, args):
        """Of letters it has no value: sympy would say that gcd(m, n) is 1."""
        has_letters = any(arg.free_symbols for arg in args)
        return sympy.Function(f)(*sorted(args, key=str)) if has_letters else super().handle_gcd_lcm(f, args)

    def convert_postfix_list(self, parts, i=0):
        r"""Side by side is a product: 5\binom{4}{2} is 30. The library would read a mixed number and say 11."""
        left = self.convert_postfix(parts[i])
        if isinstance(left, list) and len(left) == 1:  # d/dx of what follows
            return sympy.Derivative(self.convert_postfix_list(parts, i + 1), left[0])
        if i + 1 == len(parts) or not isinstance(left, Expr | sympy.Matrix):
            return left
        right = self.convert_postfix_list(parts, i + 1)
        has_matrix = any(getattr(side, "is_Matrix", False) for side in (left, right))
        return (self.mat_mul_flat if has_matrix else self.mul_flat)(left, right)

    def create_parser(self, text):
        parser = super().create_parser(text)
        parser._interp.predictionMode = self.mode
        return parser


def _read(latex: str):
    """The faster mode first: whatever it can parse, the other parses alike."""
    try:
        return _Reader(PredictionMode.SLL).parse(latex)
    except Exception:
        return _Reader(PredictionMode.LL).parse(latex)


@dataclass(frozen=True)
class Equation:
    left: object
    right: object


def _plain(thing):
    """What was read as a list (in any order), a tuple, an Equation, or sympy's Expr, Matrix, Relational, And or Set."""
    if isinstance(thing, FiniteSet):
        items = [_inner(item) for item in getattr(thing, "_unsorted_args", thing.args)]
        if items and isinstance(items[0], sympy.Ne) and not any(map(_is_relation, items[1:])):  # x \ne -1, 4
            items[1:] = [sympy.Ne(items[0].lhs, item) for item in items[1:]]
        flat = [Equation(i.left, value) if value is not i else i for i in items for value in _values(i)]
        return flat[0] if len(flat) == 1 and flat[0] is not sympy.EmptySet and not isinstance(flat[0], list) else flat
    if isinstance(thing, Tuple):
        return tuple(_plain(item) for item in thing)
    if isinstance(thing, Eq):
        return Equation(_plain(thing.lhs), _plain(thing.rhs))
    if isinstance(thing, And) and all(isinstance(part, Eq) for part in thing.args):
        return Equation(_plain(thing._unsorted_args[0].lhs), _plain(thing._unsorted_args[-1].rhs))
    if (vector := _vector(thing)) is not None:
        return vector
    names = {call: Symbol(str(call)) for call in thing.atoms(AppliedUndef)}
    names |= {
        part: Symbol(f"{part.func}{part.args[0].expand()}{part.args[1:]}")
        for part in thing.atoms(sympy.Derivative, sympy.Limit, sympy.Integral, sympy.Sum, sympy.Product)
        if _is_unknown(part)
    }
    names |= {call: sympy.zeta(*call.args) for call in names if str(call.func).endswith("zeta") and len(call.args) == 1}
    if not thing.has(sympy.I, Symbol("i")):  # the real root: (-8)^{1/3} is -2
        powers = [p for p in thing.atoms(sympy.Pow) if p.base.is_negative and p.exp.is_Rational and p.exp.q % 2]
        names |= {p: (-1) ** p.exp.p * (-p.base) ** p.exp for p in powers if p.exp.q > 1}
    names |= {symbol: sympy.I for symbol in thing.free_symbols if symbol.name == "i"}
    thing = thing.xreplace(names) if names else thing
    if isinstance(thing, sympy.MatrixExpr) and not thing.has(sympy.MatrixSymbol):
        return thing.as_explicit()  # t times a column
    if isinstance(thing, Set | sympy.MatrixExpr):
        done = thing.doit()
        return _plain(done) if isinstance(done, FiniteSet) else done
    if isinstance(thing, BooleanAtom):  # 1 < 2
        raise ValueError("a statement, not an answer")
    return thing


def _is_unknown(part) -> bool:
    """dx/dt is no zero: x depends on t, without saying so. And f(x) and a_n are no numbers to be summed."""
    inside, names = part.args[0], {str(symbol) for symbol in part.atoms(Symbol)}
    depends = isinstance(part, sympy.Derivative) and not inside.free_symbols & set(part.variables)
    return depends or inside.has(AppliedUndef) or any(name.partition("_")[2] in names for name in names)


def _vector(thing) -> tuple | None:
    r"""2i + 3j - k, in any font, as (2, 3, -1). It has a j and one more of the three; 3 + 4i has none.

    >>> _vector(sympy.sympify("2*i+3*j")), _vector(sympy.sympify("i+j+1"))
    ((2, 3), None)
    """
    fonts = {Symbol(f"{mark}{{{letter}}}"): Symbol(letter) for mark in ("hat", "vec") for letter in "ijk"}
    axes = [Symbol(letter) for letter in "ijk"]
    if not isinstance(thing, Expr) or len({str(fonts.get(s, s)) for s in thing.free_symbols} & {"i", "j", "k"}) < 2:
        return None
    thing = thing.xreplace(fonts).expand()
    i, j, k = values = [thing.coeff(axis) for axis in axes]
    rest = thing - sum(value * axis for value, axis in zip(values, axes, strict=True))
    if not j or rest.expand() != 0 or any(value.has(*axes) for value in values):
        return None
    return (i, j, k) if k else (i, j)


def _inner(item):
    """A set in a set stays one: {{1}, {2}} is not {1, 2}."""
    plain = _plain(item)
    return [plain] if isinstance(item, FiniteSet) and item.args and not isinstance(plain, list) else plain


def _values(item) -> list:
    r"""x = \pm 2 is two equations."""
    return item.right if isinstance(item, Equation) and isinstance(item.right, list) else [item]


_OR = re.compile(r",? ?\\text ?\{ ?or ?\}|(?<![\\a-zA-Z]),? ?or(?![a-z])")
_MEMBER = re.compile(r"^ ?([a-z]) ?\\in(?![a-z])(.*)$")
_INNER_UNIT = re.compile(  # of an item of a list: (3 cm, 4 cm)
    r"(?<=[0-9}]) ?\\text ?\{[^{}]*\}(?: ?\^ ?\{[23]\})?(?= ?(?:[,;)\]]|\\\}|\\text ?\{ ?(?:and|or)))"
)

_NO_PRODUCT = re.compile(r"\\\{[^{}]*(?::|\\mid(?![a-zA-Z]))|E\}? ?(?:\[|\( ?[XYZ])")  # \{x : x > 1\} and E[X^2]


@functools.lru_cache(4096)
def parse(text: str):
    """The answer as `_plain` has it; raises an exception if it cannot be read."""
    text = tidy(text)
    parts = _OR.split(text)
    if len(parts) > 1 and any(map(RELATION.search, parts)):  # x < 1 or x > 2, x < 1 or x \in [2, 3]
        pieces = [parse(_MEMBER.sub(r"\2", part)) for part in parts]
        unknowns = {member[1] for member in map(_MEMBER.match, parts) if member}
        unknowns |= {str(letter) for piece in pieces for letter in _unknowns(piece)}
        if None not in (sets := list(map(_solutions, pieces))):
            if len(unknowns) > 1:
                raise ValueError("solutions for several unknowns")
            return Union(*sets)
    if len(parts) > 1 and all(len(re.findall("=[^=]*,|=", part)) > 1 and "," in part for part in parts):
        text = ";".join(parts)  # x = 1, y = 2 or x = 3, y = 4
    if _NO_PRODUCT.search(text):
        raise ValueError("the parser would take the colon for a division and E for a factor")
    return _plain(_read(_without_units(text)))


def _without_units(text: str) -> str:
    """A tidy text as the parser is given it."""
    text = _INNER_UNIT.sub(lambda match: match[0] if split("2" + match[0]).unit is None else "", spelled(text))
    measured = split(text)
    if measured.scale != 1:
        raise ValueError("numbers of tens or tenths are not for sympy")
    return measured.value if measured.unit is not None else text


_WORD = re.compile(  # of what is measured, as in \text{mean} = 5, no word counts
    r"(?:\\text ?\{ ?[^{}]*[a-zA-Z]{2}[^{}]*\}|(?<![\\a-zA-Z_{])[a-zA-Z]{3,}(?![a-zA-Z]))(?![ }]*=)"
)


def _has_other_words(answer: str, reference: str) -> bool:
    r"""Has it words that the reference does not have? The parser takes them for letters, and 0 times a letter is 0.

    >>> _has_other_words(r"\text{not }0", "0"), _has_other_words(r"0\text{ cm}", "0"), _has_other_words("0x", "0")
    (True, False, False)
    """
    ours, theirs = (set(_WORD.findall(_without_units(text))) for text in (answer, reference))
    has_letters = re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", reference))
    return any(word.startswith("\\") or not has_letters for word in ours - theirs)


# --- comparing -------------------------------------------------------------------------------------------------------


def same(answer: str, reference: str) -> bool:
    """May take for ever and raise anything: for a worker."""
    answer = tidy(answer)
    if not _is_rounding(answer):  # then these are two answers, of which the first one counts
        answer = answer.partition(r"\approx")[0]
    pair = bare(answer, tidy(reference))
    if not pair:
        return False
    if any(text.count(":") > 1 for text in pair):
        return _same_ratio(*(text.split(":") for text in pair))
    cases = [_CASES.fullmatch(text) for text in pair]
    if all(cases):
        return _same_cases(*([row.split("&") for row in re.split(r" ?\\\\ ?", match[1]) if row] for match in cases))
    if _has_other_words(*pair):
        return False
    pair = _in_one_letter(*_in_one_logarithm(*pair), reference)
    if all(map(_ADDED.search, pair)):
        added = [_ADDED.sub(f"+{_NUMBER}", text) for text in pair]
        # in b + c, c + a it is a letter as any other
        if not any("," in text and re.search("[cCK]", re.sub(r"\\[a-zA-Z]+|b_\{qc\}", "", text)) for text in added):
            pair = added
    if any(_equal(*map(parse, (one, pair[1]))) for one in _with_other_constants(*pair)):
        return True
    # The parser drops the sign: 50\%, 25\% is 50, 25. It is 0.5, 0.25, too.
    values = [_SHARE.sub(r"\\frac{\1}{100}", text) for text in pair]
    return (
        ("%" in pair[0]) != ("%" in pair[1])
        and values != pair
        and "%" not in "".join(values)
        and _equal(*map(parse, values))
    )


_SHARE = re.compile(r"(?<![^([{,= ])(-?[0-9.]+) ?\\?%(?=[])},\\ ]|$)")  # a plain number in a list or a point


def _is_rounding(answer: str) -> bool:
    r"""Is the number behind \approx what stands before it, to about its last digit? If not, they are two answers.

    >>> _is_rounding(r"\frac{40}{3} \approx 13.33"), _is_rounding(r"12 \approx 5"), _is_rounding(r"x \approx 5")
    (True, False, True)
    """
    exact, sign, rounded = answer.partition(r"\approx")
    if not sign or not (shown := number(rounded.strip())):
        return True
    value = parse(exact.rpartition("=")[2])
    if not isinstance(value, Expr):
        return False
    if value.free_symbols:  # a name, or a formula
        return True
    near = Fraction(10) ** -shown.decimals if "10^" not in rounded else abs(shown.value) / 100
    gaps = [abs(value.evalf(30) - Rational(written)) for written in (shown.value, shown.value / 100)]
    return bool(gaps[0] <= near or shown.percent and gaps[1] <= near / 100)


_CASES = re.compile(r"\\begin ?\{cases\} ?(.*?)(?: ?\\\\)? ?\\end ?\{cases\}")


def _same_cases(xs: list[list[str]], ys: list[list[str]]) -> bool:
    """Has each row a partner with an equal value and an equal condition? The conditions may also be the same text."""

    def same_row(one: list[str], other: list[str]) -> bool:
        (value, condition), (other_value, other_condition) = one, other
        same_condition = canonical(condition) == canonical(other_condition) or same(condition, other_condition)
        same_condition = same_condition or "otherwise" in condition  # all that is left
        return same_condition and _equal(parse(value), parse(other_value))

    return len(xs) == len(ys) and all(any(same_row(x, y) for y in ys) for x in xs)


def _same_ratio(xs: list[str], ys: list[str]) -> bool:
    """1:2:3 is 2:4:6, and not 1/2/3 = 1/6, which 1:3:2 would be, too."""
    xs, ys = [parse(text) for text in xs], [parse(text) for text in ys]
    return len(xs) == len(ys) and all(_equal(x * ys[0], y * xs[0]) for x, y in zip(xs, ys, strict=True))


def _in_one_logarithm(answer: str, reference: str) -> tuple[str, str]:
    r"""A log without a base is the natural one where the other side has \ln: \log 2 for \ln 2."""
    if r"\ln" in answer + reference and not (r"\ln" in answer and r"\ln" in reference):
        return tuple(re.sub(r"\\log(?![a-zA-Z]| ?_)", r"\\ln", text) for text in (answer, reference))
    return answer, reference


# A constant of integration takes in any number. It stands at the end, or behind items of a list, but in no point.
_NUMBER, _ADDED = "b_{qc}", re.compile(r"\+ ?[cCK] ?(?=$|,(?![^(\[]*[)\]]))")
_CONSTANT = re.compile(r"\+ ?[cC] ?$|(?<![a-zA-Z\\])[cC] ?(?:_|e ?\^)")
_ARBITRARY = re.compile(r"(?<![a-zA-Z\\])(?:[cC] ?_ ?\{ ?\d ?\}|[cCABDK](?![a-df-zA-Z_]))")


def _with_other_constants(answer: str, reference: str) -> Iterator[str]:
    """The answer, and with the names that the reference gives the constants of integration: c e^x + K is C_2 e^x + C_1.

    They may change places where each stands once: c_1 + (c_2 - c_1) e^{-kt} may be of two given amounts.
    """
    yield answer
    found = [_ARBITRARY.findall(text) for text in (answer, reference)]
    found = [sorted([name for name in names if name[0] in "cC"] or names) for names in found]
    ours, theirs = (sorted(set(names)) for names in found)
    marked = [bool(_CONSTANT.search(text)) for text in (answer, reference)]
    if len(ours) != len(theirs) or not any(marked):
        return
    value = _without_name(parse(reference))
    letters = [letter for letter in getattr(value, "free_symbols", ()) if letter.name[0] in "cCABDK"]
    free = letters and len(letters) < 4 and found == [ours, theirs]
    free = free and re.search(r"e ?\^|\\(?:sin|cos|ln)|[a-z] ?\^", reference)
    free = free and not any(value.diff(letter).has(*letters) for letter in letters)
    by_case = all(marked) and [name.lower() for name in ours] == [name.lower() for name in theirs]
    for names in itertools.permutations(theirs) if free else [theirs] * by_case:
        other = dict(zip(ours, names, strict=True))
        yield _ARBITRARY.sub(lambda match, other=other: other.get(match[0], match[0]), answer)


_WHOLE = "b_{qk}"  # the name of any whole number


def _in_one_letter(answer: str, reference: str, said: str) -> tuple[str, str]:
    r"""Any whole number has any name: \frac\pi2+k\pi is \frac\pi2+n\pi. The reference may have said k \in Z."""
    found = [set(re.findall(r"(?<![a-zA-Z\\])[a-zA-Z](?![a-zA-Z])", text)) for text in (answer, reference)]
    one, other = ("".join(letters) for letters in found)
    whole = re.search("integer|[Zℤ]|dots", said) and not re.search("integer|Z|dots", reference)
    turns = all(re.search(r"[kmn] ?\\pi|\\pi ?[kmn]", text) and "^" not in text for text in (answer, reference))
    if len(one) == len(other) == 1 and (whole or turns and one != other and re.fullmatch("[kmn]{2}", one + other)):
        both = ((one, answer), (other, reference))
        name = _WHOLE if whole else other
        answer, reference = (re.sub(rf"(?<![a-zA-Z\\]){letter}(?![a-zA-Z])", name, text) for letter, text in both)
    return answer, reference


def _equal(x, y) -> bool:
    """The first rule that knows the two types decides: x of the answer, y of the reference."""
    return next((verdict for rule, _ in RULES if (verdict := rule(x, y)) is not None), False)


def _all_equal(xs, ys) -> bool:
    return len(xs) == len(ys) and all(map(_equal, xs, ys))


def _point(thing) -> tuple | None:
    """A tuple, and (1, 2), which is read as an interval; (x=1, y=2) are its values in the order of the names."""
    if isinstance(thing, Interval) and thing.left_open and thing.right_open:
        return thing.start, thing.end
    if not isinstance(thing, tuple):
        return None
    return _by_name(thing) or thing


def _has_name(item) -> bool:
    """Is it an equation that names a value: AB = 5, a + b = 5? What has numbers on its left is still to be solved."""
    if not isinstance(item, Equation) or not isinstance(item.left, Expr) or not item.left.free_symbols:
        return isinstance(item, Equation)
    parts = [part for part in sympy.preorder_traversal(item.left) if part.is_Add or part.is_Mul]
    return not any(arg.is_Number and (part.is_Add or arg != -1) for part in parts for arg in part.args)


def _by_name(items) -> tuple | None:
    """The values of x = 2, y = 3 in the order of the names; None for roots (x_1 = 2, x_2 = 3) and without names."""
    if not all(map(_has_name, items)):
        return None
    names = [str(item.left) for item in items]
    if len({name.split("_")[0] for name in names}) < len(names):
        return None
    return tuple(item.right for _, item in sorted(zip(names, items, strict=True), key=lambda pair: pair[0]))


def _without_name(item):
    """The value of an equation. An interval has a `right`, too: its end."""
    return item.right if _has_name(item) else item


def _points(x, y) -> bool | None:
    """Brackets keep the order. A list without any answers a point in the order written, or in that of its names."""
    if any(isinstance(side, list) and any(map(_is_relation, side)) for side in (x, y)):
        return None
    if isinstance(x, list) and (point := _point(y)):
        return _all_equal(_by_name(x) or x, point)
    if isinstance(y, list) and (point := _point(x)):
        return _all_equal(point, _by_name(y) or y)
    if (isinstance(x, tuple) or isinstance(y, tuple)) and (one := _point(x)) and (other := _point(y)):
        return not _other_names(x, y) and _all_equal(one, other)
    return None


def _other_names(x, y) -> bool:
    """x = 2 for y = 2, or a_1 = 2, a_3 = 3 for a_1 = 2, a_2 = 3. Roots, x = 2, x = 3, may also be x_1 and x_2."""
    if not all(isinstance(items, list | tuple) and all(map(_has_name, items)) for items in (x, y)):
        return False
    one, other = ([str(item.left) for item in items] for items in (x, y))
    if len(set(one)) == 1 or len(set(other)) == 1:
        one, other = ({re.split("[_(]", name)[0] for name in names} for names in (one, other))
    return sorted(one) != sorted(other)


def _lists(x, y) -> bool | None:
    """Each item has a partner. Names count where both have them; roots have none, and nor has the other side then."""
    for several, single in ((x, y), (y, x)):
        if isinstance(several, list) and len(several) > 1 and isinstance(single, Expr):
            # 1/2 is 1/2 or 2/4, but neither the double root 1/2, 1/2 nor {1/2}, in a set of sets
            return several.count(several[0]) == 1 and all(_equal(item, single) for item in several)
    if not isinstance(x, list) or not isinstance(y, list):
        return None
    if any(sum(_equal(a, b) for a in x) < y.count(b) for b in y if y.count(b) > 1):
        return False  # a double root of the reference
    if _other_names(x, y):
        return False
    named = [all(map(_has_name, items)) for items in (x, y)]
    equations = all(isinstance(item, Equation) for item in (*x, *y))  # also y = 3x, y = -3x for 3x \pm y = 0
    if not equations or all(named) and {str(item.left) for item in x} != {str(item.left) for item in y}:
        if (_by_name(x) is None) != (_by_name(y) is None):  # x = 2, y = 3 for 2, 3: in the order written
            return _all_equal(*([_without_name(item) for item in items] for items in (x, y)))
        x, y = ([_without_name(item) for item in items] if _by_name(items) is None else items for items in (x, y))
    return all(any(_equal(a, b) for b in y) for a in x) and all(any(_equal(a, b) for a in x) for b in y)


def _matrices(x, y) -> bool | None:
    """Of one shape, item by item. A column is a vector, and so is a point."""
    for column, other in ((x, y), (y, x)):
        if isinstance(column, MatrixBase) and column.cols == 1 < column.rows and (point := _point(other)):
            return _all_equal(column.flat(), point)
    if isinstance(x, MatrixBase) and isinstance(y, MatrixBase):
        return x.shape == y.shape and _all_equal(x.flat(), y.flat())
    return None


def _is_solved(relation) -> bool:
    """Do all its parts compare a name with a value?"""
    sides = [(part.lhs, part.rhs) for part in relation.atoms(Relational)]
    return all(a.is_Symbol and not b.free_symbols or b.is_Symbol and not a.free_symbols for a, b in sides)


def _is_relation(thing) -> bool:
    return isinstance(thing, Relational | And | sympy.Or)


def _unknowns(thing) -> set:
    return {thing.left} if isinstance(thing, Equation) else thing.free_symbols if _is_relation(thing) else set()


def _solutions(thing):
    """The set of numbers that a set, x = 2, an inequality in one unknown or several of these say; None for the rest."""
    if isinstance(thing, Set):
        return thing
    if isinstance(thing, Equation):
        is_value = isinstance(thing.left, Symbol) and isinstance(thing.right, Expr) and not thing.right.free_symbols
        return FiniteSet(thing.right) if is_value else None
    if isinstance(thing, list) and any(map(_is_relation, thing)):
        pieces = list(map(_solutions, thing))
        if None in pieces or len(set().union(*map(_unknowns, thing))) != 1:
            return None
        # x > 0, x < 2 hold at once; x < 0, x = 4 are two cases
        return sympy.Intersection(*pieces) if all(map(_is_relation, thing)) else Union(*pieces)
    return _numbers_where(thing) if _is_relation(thing) and len(thing.free_symbols) == 1 else None


@functools.lru_cache(1024)
def _numbers_where(relation) -> Set:
    """The numbers for which it holds. sympy needs up to a tenth of a second, and several rules ask."""
    return relation.as_set()


def _inequalities(x, y) -> bool | None:
    """Both sides moved to the left differ by a positive factor."""
    if isinstance(x, And) and isinstance(y, And):
        one, other = x._unsorted_args, y._unsorted_args
        if _all_equal(one, other) or _all_equal(one, other[::-1]):  # x < y < z is z > y > x
            return True
    if not isinstance(x, Relational) or not isinstance(y, Relational):
        return None
    x, y = (part.reversed if part.rel_op in (">", ">=") else part for part in (x, y))
    if x.rel_op == y.rel_op and _factor(x.lhs - x.rhs, y.lhs - y.rhs, positive=x.rel_op != "!="):
        return True
    return None if _solutions(x) is not None and _solutions(y) is not None else False


def _sets(x, y) -> bool | None:
    """The same numbers. An answer that is still to be solved answers only a reference that is, too."""
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
    return (
        one == other or sympy.Complement(one, other).is_empty is True and sympy.Complement(other, one).is_empty is True
    )


def _equations(x, y) -> bool | None:
    """The same name and value, proportional sides, or the same solutions for each unknown."""
    if not isinstance(x, Equation) or not isinstance(y, Equation):
        return None

    if isinstance(x.left, Symbol) and x.left == y.left:
        return _equal(x.right, y.right)
    if not all(isinstance(side, Expr) for side in (x.left, x.right, y.left, y.right)):
        return False
    one, other = x.left - x.right, y.left - y.right
    if not other.free_symbols:  # \cos 0 = 1
        return _equal(x.left, y.left) and _equal(x.right, y.right)
    if isinstance(y.left, Symbol) and not y.right.free_symbols:  # x - 2 = 0 is a line, 4x - 8 = 0 is to be solved
        return x.right == 0 and len(x.left.args) == 2 and 0 in ((one - other).expand(), (one + other).expand())
    if _factor(one, other):
        return True
    if one.free_symbols != other.free_symbols:
        return False
    roots = [(sympy.solve(one, unknown), sympy.solve(other, unknown)) for unknown in one.free_symbols]
    return all(xs and _lists(xs, ys) for xs, ys in roots)


def _expressions(x, y) -> bool | None:
    """Equal at the test points: exactly if both are fractions, else to 25 digits, or 6 decimals if one is rounded."""
    if not isinstance(x, Expr) or not isinstance(y, Expr):
        return None
    series = isinstance(x, sympy.Sum) and isinstance(y, sympy.Sum) and x.limits == y.limits
    if series and _equal(x.function, y.function):  # it may converge at no test point
        return True
    unknowns = x.free_symbols | y.free_symbols
    if {str(letter) for letter in unknowns} == {_WHOLE} and not (step := y.diff(*unknowns)).free_symbols:
        # a + bk and c - bk are the same numbers if b divides a - c
        gap = (x - y).subs(dict.fromkeys(unknowns, 0)) / step
        return (x.diff(*unknowns) ** 2 - step**2).expand() == 0 and sympy.simplify(gap).is_integer is True
    rounded = not unknowns and x.has(Float) != y.has(Float) and not (x.is_Integer or y.is_Integer)
    shift = None if x.coeff(Symbol(_NUMBER)) == y.coeff(Symbol(_NUMBER)) == 1 else 0
    points_seen = 0
    for a, b in _samples(x, y):
        points_seen += 1
        shift = a - b if shift is None else shift
        if not _close(a - shift, b, rounded):
            return False
    return points_seen >= (2 if unknowns else 1)


RULES = [  # in this order; an example for each
    (_points, r"x=2, y=3 | (2,3)"),
    (_lists, r"\{1, \sqrt4\} | 2, 1"),
    (_matrices, r"\begin{pmatrix}1&x+x\end{pmatrix} | \begin{bmatrix}1&2x\end{bmatrix}"),
    (_equations, r"2x+4y-3=0 | y=-\frac12x+\frac34"),
    (_inequalities, r"-x>-y | x<y"),
    (_sets, r"x<1 \text{ or } x>\sqrt4 | (-\infty,1)\cup(2,\infty)"),
    (_expressions, r"\sin^2 x | 1-\cos^2 x"),
]

_WHOLE_LINE = (
    *(sympy.sin, sympy.cos, sympy.tan, sympy.cot, sympy.sec, sympy.csc, sympy.sinh, sympy.cosh, sympy.tanh),
    *(sympy.exp, sympy.factorial, sympy.binomial),
)


def _partial_parts(thing) -> list:
    """The roots, logarithms and the like in it: what is real in some places only, or has a case for each sign."""
    powers = [p for p in thing.atoms(sympy.Pow) if not p.exp.is_Integer and not p.base.is_positive]
    return powers + [f for f in thing.atoms(sympy.Function, sympy.Max, sympy.Min) if not isinstance(f, _WHOLE_LINE)]


def _samples(x, y) -> Iterator[tuple]:
    """The values of both where both are real. That takes every root and logarithm in them to be real, too: at -1 and
    -2, sqrt(a) sqrt(b) would be -sqrt(2) by way of i.

    A point where one side is real says nothing, log(x^2) is 2 log(x), unless only one side has bars: log|x|. Formulas
    with i are compared everywhere, and so are two that are nowhere real.
    """
    parts = [_partial_parts(thing) for thing in (x, y)]
    complex_ones = x.has(sympy.I) or y.has(sympy.I)
    bars = x.has(sympy.Abs) != y.has(sympy.Abs)
    real, elsewhere = 0, []
    unknowns = x.free_symbols | y.free_symbols
    whole, far = _own_points(x, y, partial=any(parts))
    is_counter = {str(letter) for letter in unknowns} in ({"k"}, {"m"}, {"n"})  # with a floor it is a whole number
    others = () if whole and is_counter else _test_points(unknowns)
    enough = len(whole) + len(far) + (4 * max(3, len(unknowns)) if any(parts) else 4)  # more where few are real
    for index, point in enumerate(itertools.chain(whole, far, others)):
        if real >= 4 and index >= enough:
            return
        is_whole = index < len(whole)
        a, b = (_value(side, point, exact=is_whole or not own) for side, own in zip((x, y), parts, strict=True))
        if point and a.is_finite is False and b.is_finite is False:
            continue  # a pole of both tells nothing
        sides = [
            value.is_extended_real and all(_value(part, point, exact=False).is_extended_real for part in its_parts)
            for value, its_parts in ((a, parts[0]), (b, parts[1]))
        ]
        if all(sides) or complex_ones or bars and any(sides):
            real += 1
            yield a, b
        elif not any(sides):
            elsewhere.append((a, b))
    if not real:
        yield from elsewhere


_SIZES = [(64, 5), (862, 642), (160, 41), (7, 2), (13001, 9001)]  # about 0.6, 8, 1.5, 0.06, 100


def _test_points(symbols) -> Iterator[dict]:
    """Points of odd fractions, six for each unknown; one that is empty if there is none.

    Each letter is small and large, positive and negative, and above and below each other one, whatever its name. Every
    second point is positive: most roots are real there. No coordinate is a whole number or a common fraction:
    1 / (y - 18) has its pole there.
    """
    letters = sorted(symbols, key=str)
    many = len(letters)
    for index in range(6 * max(many, 6) if letters else 1):
        (top, step), bottom = _SIZES[index % len(_SIZES)], 101 + 2 * index
        ranks = list(range(many))  # which letter is the smallest
        if index >= 4:
            random.Random(index).shuffle(ranks)
        elif index >= 2:
            ranks.reverse()
        signs = [-1 if index % 4 == 1 else 1] * many
        if index % 4 == 3:
            signs[index // 4 % many] = -1  # one letter after the other
        yield {
            letter: sign * Rational(top + step * rank, bottom)
            for letter, rank, sign in zip(letters, ranks, signs, strict=True)
        }


def _own_points(x, y, partial: bool) -> tuple[list[dict], list[dict]]:
    r"""Points that the numbers in the formulas ask for: |x - 2024| is not 2024 - x, but only far off.

    If there is a floor or a ceiling, also whole numbers, and all remainders: between them \lfloor x \rfloor + 1 is
    \lceil x \rceil.
    """
    letters = list(enumerate(sorted(x.free_symbols | y.free_symbols, key=str)))
    own = sorted({n for number in x.atoms(Rational) | y.atoms(Rational) for n in (abs(number.p), number.q) if n > 13})
    jumps = any(thing.has(sympy.floor, sympy.ceiling) for thing in (x, y))
    numbers = [*range(-2, 14), 27, 50, *(n for n in own if n < 3000)] if jumps else []
    whole = [{letter: sympy.Integer(n + 5 * rank) for rank, letter in letters} for n in numbers]
    ends = [times * own[-1] for times in (2, -2, 3, -3)] if letters and partial and own and own[-1] > 40 else []
    return whole, [{letter: sympy.Integer(end * (rank + 1)) for rank, letter in letters} for end in ends]


def _value(thing, point: dict, exact: bool):
    """Its value there: a Rational if it is one, else to 40 digits. Not exact: at once to 40 digits, where sympy would
    try to simplify the roots of large fractions."""
    floats = {decimal: Rational(str(decimal)) for decimal in thing.atoms(Float)}
    if point and not exact:
        return thing.xreplace(floats).evalf(40, subs=point)
    value = thing.xreplace(floats | point).doit()
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
    values = list(_samples(x, y))
    if len({value for value, _ in values}) < 2:
        return False
    (a, b), *others = values
    if not b or positive and not (a / b).is_positive:
        return False
    return all(_close(a * d, b * c) for c, d in others)
