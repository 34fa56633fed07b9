r"""Is the answer right? Extraction, equivalence, reward and feedback. Strings in, verdicts out.

    >>> grade(r"7 ; 16 ; 24 . \boxed{24}", "24")
    Grade(reward=1.0, correct=True, well_formed=True, extracted='24')

The reward is the only teacher the policy has: a wrong 1 teaches nonsense, a wrong 0 starves it, a hang ends the run. So
an answer goes through three doors, and the first that can tell decides:

1. the same text, once layout (`\left`, `\,`, `$`, `\dfrac`, full-width digits) is gone;
2. plain numbers, and points of them, as exact rationals; plain words as words. Most rollouts are decided here, in
   microseconds;
3. everything else: math-verify (sympy underneath) in a worker process with a time and a memory limit. A worker that
   hangs or dies is replaced, and that answer is wrong.

What counts as an answer, and by whose convention:

- A response answers in `\boxed{}`, and earns reward only with exactly one (the P2O authors' rule). An empty box and one
  that is never closed are none; a box inside a box is one.
- Numbers are compared exactly. A decimal with six or more decimals also equals what it rounds, to 5e-7 (math-verify's
  six decimals; relative below 0.1, so 1e-7 is not 2e-7). `0.333333` is 1/3, `0.33` is not, nor is 1.41 the root of 2.
- Thousands: `1,000`, `1{,}000`, `1 000`; a comma *and* a space make a list. A lone comma that cannot be that is a
  decimal comma or a list, whichever the other side is: `1,22` equals `1.22` and `22,1` (math-verify has both).
- Percent: `50\%` equals `50` (Hendrycks MATH drops the sign) and `0.5` (its value); `0.5\%` is not `50`.
- Units, degrees and currency are dropped, not converted (Hendrycks MATH, math-verify): `5 cm` is `5`, `90^\circ` is
  `90`. A single letter is a unit only in `\text{}`: `5m` is not `5`. Nor are `5 million` and `5 or more`.
- `1\frac{1}{2}` and `1 1/2` are mixed numbers (MATH), `7:32` is the ratio 7/32 (math-verify), `0.\overline{3}` is 1/3.
- Words and choice letters: ignoring case, `\text{}` and brackets, `(C)` is `c`. In another order they are other words.
- `x = 5` answers `5` and the other way round, and a chain counts by its last member (math-verify).
- `(1,2)` is ordered; `1,2` and `\{1,2\}` are not. `(1,2)` is a point or an open interval, or answers the list `1,2`;
  `[1,2]`, `[1,2)` and `(1,2)` differ. `x=2, y=3` is `(2,3)` by position, while `x_1=2, x_2=3` (roots) is a set.
- `x \in [1,2]`, `1 \le x \le 2` and `[1,2]` are one set, either way round (math-verify, relations against sets).
- A number in another base needs its base: `204_5` is neither `204` nor `204_6`. (math-verify drops it.)
- An empty answer is never right, and a reference that cannot be parsed is matched by its own text only: `unparseable`.

Nothing of a response reaches `eval` (sympy reads numbers with it: `_serve` takes it away), a format string or a file.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from support.boxes import boxes_in
from support.data import Question
from support.seams import find

TIME_LIMIT = 1.0  # seconds of the worker's CPU for one comparison, so that a busy machine does not turn verdicts
PATIENCE = 4  # times as long by the clock, whatever the worker is doing (its start, a second or two, is not counted)
MEMORY_LIMIT = 2 << 30  # bytes of address space of the worker
MAX_ANSWER = 2_000  # characters; a longer boxed answer is wrong unless it is the reference
MAX_TEXT = 20_000  # characters of a whole response given to `equivalent`; the end counts
MAX_DIGITS = 1_000  # in a row


@dataclass(frozen=True)
class Grade:
    reward: float  # 1.0 if well formed and correct, else 0.0
    correct: bool  # the (last) boxed answer equals the reference
    well_formed: bool  # exactly one boxed answer
    extracted: str | None  # the (last) boxed answer


# --- extraction -------------------------------------------------------------------------------------------------------


def extract_boxed(response: str) -> str | None:
    r"""The contents of the last closed, non-empty `\boxed{}`, or None.

    >>> extract_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    >>> extract_boxed(r"cut off in \boxed{12") is None
    True
    """
    boxes = boxes_in(response)
    return boxes[-1][2] if boxes else None


# --- the first two doors: layout, rationals, words --------------------------------------------------------------------

# null bytes, bidirectional overrides and half characters: no answer has them, and they can look like another one
_FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNICODE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms
_UNICODE |= dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0xAD], "")  # invisible
_UNICODE |= str.maketrans("−–’。、\xa0\u2009\u202f\u3000", "--'.,    ")
_UNICODE |= {
    ord(pair[0]): pair[1:] + " "
    for pair in r"×\times ·\cdot ⋅\cdot ÷/ π\pi ∞\infty ∅\emptyset ≤\le ≥\ge ≠\ne ≈\approx ±\pm ∪\cup ∩\cap ∈\in "
    r"²^2 ³^3 °^\circ √\sqrt ½\frac{1}{2} ℝ\mathbb{R}".split()
}
_LAYOUT = [  # LaTeX that changes the looks of an answer, not the answer
    (re.compile(r"\s+"), " "),
    (re.compile(r",\\! ?| ?\{ ?, ?\} ?"), ","),
    (re.compile(r"\\!|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?|\\displaystyle(?![a-zA-Z])|(?<!\\)\\\$"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)|math(?:rm|bf|it)|mbox|operatorname)\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\([lg]e)(?:q|qslant)(?![a-zA-Z])"), r"\\\1"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"((?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])| )+"), " "),
]
_DELIMITER = re.compile(r"(?<!\\)\$|\\[()\[\]]")
_DELIMITED = re.compile(r"(?:\$\$?|\\\(|\\\[)(.*?)(?:\$\$?|\\\)|\\\])", re.DOTALL)
_SPACE = re.compile(r" (?=[^\w\s])|(?<=[^\w\s,]) |(?<=,) (?!\d{3}(?!\d))")  # not in "3 1/2"; "1, 200" is a list


def _unwrap(text: str) -> str:
    r"""What is inside `$...$`, `\(...\)` or `\boxed{...}` when that is all there is."""
    for _ in range(10):
        inner = text.strip().rstrip(".,; ") if text[-2:] not in (r"\,", r"\;", "\\ ") else text[:-2]
        if (delimited := _DELIMITED.fullmatch(inner)) and not _DELIMITER.search(delimited[1]):
            inner = delimited[1]
        elif inner.startswith("\\") and (boxes := boxes_in(inner)) and boxes[0][:2] == (0, len(inner)):
            inner = boxes[0][2]
        if inner == text:
            break
        text = inner
    return text


def _tidy(text: str) -> str:
    """The same LaTeX without layout and with one spelling of each common command."""
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # escaped twice on its way into a file
    for pattern, replacement in _LAYOUT:
        text = pattern.sub(replacement, text)
    return text.strip()


_D = r"(?:[0-9]{1,3}(?:(?:,[0-9]{3})+|(?: [0-9]{3})+)(?:\.[0-9]+)?|[0-9]+[.,]?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(rf"([-+]?) ?(?:([0-9]+) (?=[0-9]+ ?/))?([-+]?{_D})(?: ?/ ?(-?{_D}))?(?:[eE]([-+]?[0-9]{{1,3}}))?")
_FRACTION = re.compile(rf"\\frac ?(?:\{{ ?([-+]?{_D}) ?\}}|([0-9])) ?(?:\{{ ?(-?{_D}) ?\}}|([0-9]))")
_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\\(?:overline|bar) ?\{([0-9]+)\}")
_POWER = re.compile(r"(?:(^[-+]?)|(?<=[0-9]) ?(?:\\times|\\cdot|\*|x) ?)10 ?\^ ?(?:\{ ?([-+]?[0-9]{1,3}) ?\}|([0-9]))$")
_PERCENT = re.compile(r" ?(?:\\?%|(?:\\text ?\{)? ?(?:percent(?:age)?|pct) ?\}?)$", re.IGNORECASE)
_UNIT = re.compile(
    r" ?(?:\^ ?\{? ?\\circ ?\}?(?: ?[CF])?|\\degree"
    r"|((?<![\^_])(?: ?(?:/ ?|\\cdot ?)?\\text ?\{[^{}]*\}(?: ?\^ ?\{?-?[1-9]\}?)?)+"
    r"|(?<=[0-9} ])(?:[ckm]m|[km]g|ml|ft|lbs?|mph|hrs?|mins?|secs?|[a-z]{4,})(?: [a-z]{4,})*(?: ?\^ ?\{?[23]\}?)?))$"
)
_NOT_A_UNIT = re.compile(
    r"(?i)\b(?:or|and|more|less|fewer|than|least|most|not|half|thirds?|quarters?|squared|cubed|factorial|dozen|hundred|thousand"
    r"|[mbtr]+illion|times|plus|minus|infinity|sqrt|sinh|cosh|tanh|over|choose|base|each|alpha|beta|theta|[ie])\b"
)


def _strip_unit(text: str) -> str:
    match = _UNIT.search(text, max(0, len(text) - 60))
    if not match or not match.start() or _NOT_A_UNIT.search(match[1] or ""):
        return text
    return text[: match.start()].strip()


def _decimal(digits: str) -> Fraction:
    """ "1,000.5" and "1 000.5" -> 2001/2; "2,5" -> 5/2"""
    if re.fullmatch(r"[-+]?[1-9][0-9]{0,2}(?:([, ])[0-9]{3})(?:\1[0-9]{3})*(?:\.[0-9]+)?", digits):
        digits = re.sub("[, ]", "", digits)
    return Fraction(digits.replace(",", "."))


def _repeating(match: re.Match) -> str:
    whole, fixed, period = match.groups()
    return f" {int(whole + fixed + period) - int(whole + fixed or 0)}/{(10 ** len(period) - 1) * 10 ** len(fixed)}"


def _number(text: str) -> tuple[Fraction, bool, int] | None:
    r"""(value, percent?, decimals) of a tidy plain number, None for anything else.

    `1\frac{1}{2}` -> (3/2, False, 0); `12.50\%` -> (25/2, True, 2)
    """
    bare = _PERCENT.sub("", text)
    percent = bare != text
    bare = _REPEATING.sub(_repeating, _strip_unit(bare).strip("$€£¥₹ ()"))
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
    decimals = 0 if bottom else len(re.split("[.,]", top)[-1]) - int(exponent or 0) if re.search("[.,]", top) else 0
    return value, percent, decimals if value.denominator > 1 else 0


def _same_number(one: tuple[Fraction, bool, int], other: tuple[Fraction, bool, int]) -> bool:
    (a, a_percent, a_decimals), (b, b_percent, b_decimals) = one, other
    rounded = max(a_decimals, b_decimals) >= 6 and a_decimals != b_decimals

    def close(x: Fraction, y: Fraction) -> bool:
        return x == y or rounded and abs(x - y) <= Fraction(min(1, 10 * max(abs(x), abs(y)))) / 2_000_000

    return close(a, b) or a_percent != b_percent and (close(a / 100, b) if a_percent else close(a, b / 100))


def _point(text: str) -> tuple[str, list] | None:
    """The brackets and the numbers of a tuple or an interval of plain numbers: "(1, 2]" -> ("(]", [1, 2])"""
    match = re.fullmatch(r"([(\[])([^()\[\]]*,[^()\[\]]*)([)\]])", text)
    if not match or re.search(r"[0-9],[0-9]{3}(?![0-9])", text):  # thousands?
        return None
    numbers = [_number(part.strip()) for part in match[2].split(",")]
    return (match[1] + match[3], numbers) if all(numbers) else None


def _words(text: str) -> tuple[str, bool] | None:
    r"""Plain words without case and `\text{}`, and whether they can only be words; None if there is more than words.

    `\text{Evelyn}` -> ("evelyn", True); `ab` -> ("ab", False), it may be a product
    """
    words = re.sub(r"\\text ?\{ ?([^{}]*?) ?\}", r"\1", text).strip("() .")
    if not re.fullmatch(r"[a-zA-Z]+(?:,? [a-zA-Z]+)*", words) or re.search(r"(?i)infinity|sqrt|\binf\b", words):
        return None
    return words.casefold(), len(words) == 1 or text.startswith(r"\text") or bool(re.search("[a-zA-Z]{4}", words))


def _quick(predicted: str, reference: str) -> bool | None:
    """The verdict of the first two doors on two tidy texts, or None if the worker must look."""
    if not predicted or not reference:
        return False
    if _SPACE.sub("", predicted) == _SPACE.sub("", reference) and re.search("[a-zA-Z0-9]", reference):
        return True
    a, b = _number(predicted), _number(reference)
    if a and b:  # two commas may also be two lists
        return _same_number(a, b) or (None if "," in predicted and "," in reference else False)
    if (p := _point(predicted)) and (q := _point(reference)):
        return p[0] == q[0] and len(p[1]) == len(q[1]) and all(map(_same_number, p[1], q[1]))
    one, other = _words(predicted), _words(reference)
    if one and other and (one[0] == other[0] or one[1] or other[1]):
        return one[0] == other[0]
    return False if one and one[1] and b or other and other[1] and a else None  # a word is not a number


# --- the third door: math-verify in a worker process ------------------------------------------------------------------

_WORD = re.compile(
    r"(?<![\\a-zA-Z])(?!(?:sqrt|infinity|sinh?|cosh?|tanh?|and|or|in|log|ln|exp|pi)(?![a-zA-Z]))[a-zA-Z][a-z]+(?![a-zA-Z])"
)


_EMPTY = re.compile(r"\\(?:boxed|text)(?![a-zA-Z])|\\[()\[\]]|[\s${}]")
_DROPPED = re.compile(r"'|[0-9] ?_ ?\{? ?([0-9]+)")  # math-verify reads f' as f and 204_5 as 204


def _locate(text: str, boxed: bool = False) -> tuple[str, bool]:
    """(what to compare, prose?). In prose math-verify looks for the answer; what was `boxed` is never prose."""
    text = _unwrap(text.translate(_UNICODE))
    if boxed:
        return _tidy(_DELIMITER.sub(" ", text)), False
    boxes = boxes_in(text)
    if len(boxes) == 1 and not re.search("(?i)final answer is", text):
        return _tidy(_unwrap(boxes[0][2])), False
    if r"\boxed" in text or _DELIMITER.search(text):
        return text, True
    tidy = _tidy(text)
    words = _WORD.findall(re.sub(r"\\(?:text|begin|end) ?\{[^{}]*\}", " ", tidy))
    prose = (len(words) > 2 or any(len(word) > 3 for word in words)) and not tidy[0].isdigit() and not _words(tidy)
    return (text if prose else tidy), prose


def _latex(text: str, prose: bool) -> str:
    """A number in the one spelling that math-verify cannot misread, other text without its unit; prose as it is."""
    if prose:
        return text
    if "," in text or not (number := _number(text)):
        return _strip_unit(_PERCENT.sub("", text)) or text
    value, _, decimals = number
    if decimals <= 0 or (value * 10**decimals).denominator > 1:
        return str(value)
    digits = str(int(abs(value) * 10**decimals)).zfill(decimals + 1)
    return "-" * (value < 0) + digits[:-decimals] + "." + digits[-decimals:]


def _decide(predicted: str, reference: str, boxed: bool = False) -> bool:
    if not _EMPTY.sub("", reference):
        return False
    if predicted.strip() == reference.strip():
        return True
    if len(reference) > MAX_TEXT or boxed and len(predicted) > MAX_ANSWER:
        return False
    predicted = predicted[-MAX_TEXT:]
    if any(_FORBIDDEN.search(text) or re.search(rf"[0-9]{{{MAX_DIGITS}}}", text) for text in (predicted, reference)):
        return False
    (answer, prose), (target, target_prose) = _locate(predicted, boxed), _locate(reference)
    if not prose and not target_prose:
        if (verdict := _quick(answer, target)) is not None:
            return verdict
        if sorted(_DROPPED.findall(answer)) != sorted(_DROPPED.findall(target)):
            return False
    return _ask([_latex(answer, prose), prose, _latex(target, target_prose), target_prose])


_worker: subprocess.Popen | None = None
_lock = threading.Lock()


def _stop_worker() -> None:
    global _worker
    process, _worker = _worker, None
    if process is not None:
        process.kill()
        process.communicate()


def _forget_worker() -> None:
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


atexit.register(_stop_worker)
if hasattr(os, "register_at_fork"):  # in a forked child the pipes are the parent's, and so are the replies in them
    os.register_at_fork(after_in_child=_forget_worker)


def _exchange(process: subprocess.Popen, line: str, limit: float) -> str:
    """Send one line and read one; what comes back is not whole if the worker died or was killed at the limit."""
    timer = threading.Timer(limit, process.kill)  # unlike SIGALRM this works in every thread
    timer.start()
    try:
        process.stdin.write(line)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:  # broken pipe
        return ""
    except BaseException:  # an interrupt: the reply that is still to come must not answer the next question
        process.kill()
        process.wait()
        raise
    finally:
        timer.cancel()
        timer.join()  # a kill that is under way hits this worker and not the next one


def _ask(question: list) -> bool:
    """The worker's verdict on [predicted, prose?, reference, prose?], or on [reference, prose?]: can it be parsed?"""
    global _worker
    with _lock:
        if _worker is not None and _worker.poll() is not None:
            _stop_worker()
        if _worker is None:
            # A plain script: unlike fork it inherits no torch threads, and unlike multiprocessing's spawn it does not
            # import the caller's __main__, so notebooks and scripts without a guard work.
            command = [sys.executable, os.path.abspath(__file__), "--worker"]
            pipe = subprocess.PIPE
            _worker = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, encoding="ascii")
            if _exchange(_worker, "\n", limit=60.0) != "ready\n":
                _stop_worker()
                raise RuntimeError("the answer checker's worker does not start: is math-verify[antlr4_11_0] installed?")
        reply = _exchange(_worker, json.dumps([TIME_LIMIT, *question]) + "\n", PATIENCE * TIME_LIMIT)
        if not reply.endswith("\n"):
            _stop_worker()
        return reply == "1\n"


def _serve() -> None:
    """The worker: a line of JSON in, `1` or `0` out, until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like a verdict
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limit on this system: the time limit remains
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))

    def watch(seconds: float) -> None:
        if hasattr(signal, "setitimer"):  # not on Windows, where the parent's patience remains
            signal.setitimer(signal.ITIMER_PROF, seconds)  # a signal nobody handles ends the worker, even inside C

    logging.disable(logging.CRITICAL)
    import math_verify.parser
    import sympy.physics.units  # noqa: F401  (sympy would import it in mid-question, and with the help of eval)
    from latex2sympy2_extended import latex2sympy
    from sympy import Float, Integer
    from sympy.parsing import sympy_parser

    # Sympy's parse_expr is Python's eval. math-verify gives it plain expressions, which its LaTeX parser can read too,
    # and sympy itself the digits of every number.
    math_verify.parser.parse_expr = lambda text, evaluate: latex2sympy(text.replace("**", "^").strip(" ."))
    sympy_parser.parse_expr = lambda text, **options: Float(text) if "." in text else Integer(int(text))
    sympy_parser.eval_expr = None
    _verify("x^2+1", False, r"\frac{x}{2}", False)  # the first question must not pay for what is loaded lazily
    sys.stdin.readline()
    replies.write("ready\n")
    for line in sys.stdin:
        limit, *question = json.loads(line)
        watch(limit)
        try:
            verdict = bool(_parse(*question)) if len(question) == 2 else _verify(*question)
        except Exception:  # RecursionError and MemoryError too: sympy failed, so the answer counts as wrong
            verdict = False
        watch(0)
        replies.write("1\n" if verdict else "0\n")


@functools.lru_cache(4096)  # the references come back with every rollout and every epoch
def _parse(text: str, prose: bool) -> list:
    """math-verify's sympy objects for a text; [] if it cannot be parsed."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    if prose:
        return parse(text, fallback_mode="no_fallback", parsing_timeout=None)
    # units=False: math-verify takes the c of 2x + 3c for a unit
    config = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    config = LatexExtractionConfig(normalization_config=config)
    return parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None)


def _verify(predicted: str, prose: bool, reference: str, reference_prose: bool) -> bool:
    from math_verify import verify

    gold, answer = _parse(reference, reference_prose), _parse(predicted, prose)
    if not gold or not answer:
        return False
    gold, answer = _by_position(_complex(gold[0]), _complex(answer[0]))
    return verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None) and not _refuted(gold, answer)


def _complex(thing):
    """math-verify leaves i a symbol: then i^2 is not -1."""
    from sympy import Expr, I

    units = [symbol for symbol in thing.free_symbols if symbol.name == "i"] if isinstance(thing, Expr) else []
    return thing.subs(dict.fromkeys(units, I)) if units else thing


def _by_position(gold, answer):
    """x = 2, y = 3 against values without names: both as tuples in the order written. Roots x_1, x_2 stay a set."""
    from sympy import Eq, FiniteSet, Tuple

    both = (gold, answer)
    sides = [list(getattr(side, "_unsorted_args", side.args)) if isinstance(side, FiniteSet) else [] for side in both]
    names = [{str(part.lhs).split("_")[0] for part in parts if isinstance(part, Eq)} for parts in sides]
    named = [len(parts) > 1 and len(letters) == len(parts) for parts, letters in zip(sides, names, strict=True)]
    if named[0] == named[1]:
        return gold, answer
    sides = [Tuple(*(getattr(part, "rhs", part) for part in parts)) if parts else None for parts in sides]
    return sides[0] or gold, sides[1] or answer


def _refuted(a, b) -> bool:
    """Does a number speak against math-verify's yes? It rounds to absolute decimals (1e-20 equals 2e-20) and takes any
    two equations without a solution for equal."""
    from math_verify.grader import get_pct_val
    from sympy import Eq, Expr, Float, Interval, Rational, Tuple, simplify, solve

    if isinstance(a, Tuple | Interval) and type(a) is type(b):
        return any(_refuted(x, y) for x, y in zip(a.args, b.args, strict=False))
    if isinstance(a, Eq) and isinstance(b, Eq):
        left, right = a.lhs - a.rhs, b.lhs - b.rhs
        return not solve(a, *a.free_symbols) and simplify(left - right) != 0 and simplify(left + right) != 0
    if not isinstance(a, Expr) or not isinstance(b, Expr) or a.free_symbols != b.free_symbols:
        return False
    point = {symbol: Rational(7 + 4 * i, 11) for i, symbol in enumerate(sorted(a.free_symbols, key=str))}
    for x, y in ((a, b), (get_pct_val(a, a), get_pct_val(b, b))):
        x, y = x.subs(point).doit().evalf(30), y.subs(point).doit().evalf(30)
        if not (x.is_number and y.is_number and x.is_finite and y.is_finite):
            return False
        scale = max(abs(x), abs(y))
        if abs(x - y) <= scale / 10**12 + (min(1, 10 * scale) / 10**6 if a.has(Float) or b.has(Float) else 0):
            return False
    return True


# --- the public functions ---------------------------------------------------------------------------------------------


def equivalent(predicted: str, reference: str) -> bool:
    r"""Do two answers say the same? Either may be bare, in `$...$` or boxed, or the end of a longer text.

    >>> equivalent(r"\frac{1}{2}", "0.5"), equivalent("(1,2)", "(2,1)"), equivalent("Answer: $x=5$", "5")
    (True, False, True)
    """
    return _decide(predicted, reference)


def grade(response: str, reference: str) -> Grade:
    r"""Reward one response: 1.0 if it has exactly one boxed answer and that is right.

    >>> grade(r"\boxed{3} or rather \boxed{4}", "4")
    Grade(reward=0.0, correct=True, well_formed=False, extracted='4')
    """
    return grade_batch([response], [reference])[0]


def grade_batch(responses: list[str], references: list[str]) -> list[Grade]:
    r"""Grade responses[i] against references[i]; an (answer, reference) pair that occurs often is decided once.

    >>> [g.reward for g in grade_batch([r"\boxed{50\%}", r"\boxed{5}", "5"], ["0.5", "5", "5"])]
    [1.0, 1.0, 0.0]
    """
    # --- solution: part 7 ---
    verdicts: dict[tuple[str, str], bool] = {}
    grades = []
    for response, reference in zip(responses, references, strict=True):
        boxes = boxes_in(response)
        answer = boxes[-1][2] if boxes else None
        correct = False
        if answer is not None:
            if (answer, reference) not in verdicts:
                verdicts[answer, reference] = _decide(answer, reference, boxed=True)
            correct = verdicts[answer, reference]
        well_formed = len(boxes) == 1
        grades.append(Grade(float(correct and well_formed), correct, well_formed, answer))
    return grades


def unparseable(references: list[str]) -> list[int]:
    r"""The positions of reference answers that only their own text can match, to be reported when a dataset is loaded.

    >>> unparseable(["12", r"\frac{1}{", "", "Evelyn", r"\sqrt{2}"])
    [1, 2]
    """

    def parses(reference: str) -> bool:
        if not 0 < len(reference) <= MAX_TEXT or _FORBIDDEN.search(reference):
            return False
        target, prose = _locate(reference)
        if not target or not prose and (_number(target) or _words(target)):
            return bool(target)
        return _ask([_latex(target, prose), prose])

    known = {reference: parses(reference) for reference in dict.fromkeys(references)}
    return [i for i, reference in enumerate(references) if not known[reference]]


def feedback(grade: Grade, reference: str, truncated: bool = False) -> str:
    r"""What the reflection model is told about one response.

    >>> feedback(grade(r"\boxed{3}", "4"), "4")
    'The answer 3 is wrong. The right answer is 4.'
    """
    if grade.reward:
        return f"The answer {grade.extracted} is right."
    if truncated and grade.extracted is None:
        fault = "The response was cut off before a boxed answer."
    elif grade.extracted is None:
        fault = "There is no boxed answer."
    elif not grade.well_formed:
        fault = "There are several boxed answers, and only one is allowed."
    else:
        fault = f"The answer {grade.extracted} is wrong."
    return f"{fault} The right answer is {reference}."


class Verdict(NamedTuple):
    """What a reward function says of one response."""

    reward: float
    feedback: str  # what the reflection model is told
    well_formed: bool = True  # could an answer be found at all?


Judge = Callable[[list[str], list[Question], list[bool]], list[Verdict]]


def judge(responses: list[str], questions: list[Question], truncated: list[bool]) -> list[Verdict]:
    r"""Reward and feedback of each response, as the loop and the evolution ask for them.

    >>> judge([r"\boxed{3}"], [Question("q", "What is 2 + 2?", "4")], [False])
    [Verdict(reward=0.0, feedback='The answer 3 is wrong. The right answer is 4.', well_formed=True)]
    """
    references = [question.reference for question in questions]
    graded = zip(grade_batch(responses, references), references, truncated, strict=True)
    return [Verdict(g.reward, feedback(g, reference, cut), g.well_formed) for g, reference, cut in graded]


def judge_of(reward: str) -> Judge:
    """`judge`, or what `--reward` names instead: a function of (response, question) that gives (reward, feedback)."""
    mine = find("reward", reward, None)
    if mine is None:
        return judge
    return lambda responses, questions, _: [Verdict(*mine(*pair)) for pair in zip(responses, questions, strict=True)]


if __name__ == "__main__" and sys.argv[1:] == ["--worker"]:
    _serve()
