r"""Is the answer right? Extraction, equivalence, reward and feedback. Strings in, verdicts out.

    >>> grade(r"7 ; 16 ; 24 . \boxed{24}", "24")
    Grade(reward=1.0, correct=True, well_formed=True, extracted='24')

The reward is the only teacher the policy has: a wrong 1 teaches nonsense, a wrong 0 starves it, a hang ends the run. So
an answer goes through three doors, and the first that can tell decides:

1. the same text, once layout (`\left`, `\,`, `$`, `\dfrac`, full-width digits) is gone;
2. plain numbers as exact rationals, and plain words as words. Most rollouts are decided here, in microseconds;
3. everything else: math-verify (sympy underneath) in a worker process with a time and a memory limit. A worker that
   hangs or dies is replaced, and that answer is wrong.

What counts as an answer, and by whose convention:

- A response answers in `\boxed{}`, and earns reward only with exactly one (the P2O authors' rule). An empty box and one
  that is never closed are none; a box inside a box is one.
- Numbers are compared exactly. A decimal with six or more decimals also equals what it rounds, to 5e-7 (math-verify's
  six decimals; relative below 0.1, so 1e-7 is not 2e-7). `0.333333` is 1/3, `0.33` is not, nor is 1.41 the root of 2.
- Thousands: `1,000`, `1{,}000`, `1 000`; a comma *and* a space make a list. A lone comma that cannot be that is a decimal
  comma or a list, whichever the other side is: `1,22` equals `1.22` and `22,1` (both as math-verify has it).
- Percent: `50\%` equals `50` (Hendrycks MATH drops the sign) and `0.5` (its value), but `0.5\%` equals neither of them.
- Units, degrees and currency are dropped, not converted (Hendrycks MATH, math-verify): `5 cm` is `5`, `90^\circ` is `90`.
  A single bare letter is a variable, `5m` is not `5`, unless it stands in `\text{}`. `3 million` is 3000000.
- `1\frac{1}{2}` and `1 1/2` are mixed numbers, as MATH writes them. `7:32` is the ratio 7/32 (math-verify).
- Words and choice letters: ignoring case, `\text{}` and brackets: `(C)` is `c`. Letters in another order are other words.
- `x = 5` answers `5` and the other way round, a chain counts by its last member (math-verify); `y = 2x` answers `2x`.
- `(1,2)` is ordered; `1,2` and `\{1,2\}` are not. `(1,2)` is also the open interval, and as a list it answers `1,2`; brackets must
  match otherwise. `x=2, y=3` against `(2,3)` goes by position, `x_1=2, x_2=3` (roots) does not.
- `x \in [1,2]`, `1 \le x \le 2` and `[1,2]` are one set, in either order (math-verify with relations against sets).
- A number in another base needs its base: `204_5` is neither `204` nor `204_6`. (math-verify drops it.)
- An empty answer is never right, and a reference that nobody can parse is matched only by the same text: see `unparseable`.

Nothing of a response reaches `eval`, a format string or the file system.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from fractions import Fraction

TIME_LIMIT = 1.0  # seconds for one comparison in the worker (its start, a second or two, is not counted)
START_LIMIT = 60.0  # seconds until a new worker must have imported sympy
MEMORY_LIMIT = 2 << 30  # bytes of address space of the worker
MAX_ANSWER = 2_000  # characters; a longer boxed answer is wrong unless it is the reference
MAX_TEXT = 20_000  # characters of a whole response given to `equivalent`; the end counts
MAX_DIGITS = 1_000  # in a row
MAX_DEPTH = 50  # nested braces or brackets


@dataclass(frozen=True)
class Grade:
    reward: float  # 1.0 if well formed and correct, else 0.0
    correct: bool  # the (last) boxed answer equals the reference
    well_formed: bool  # exactly one boxed answer
    extracted: str | None  # the (last) boxed answer


# --- extraction -------------------------------------------------------------------------------------------------------

_BOX_TOKEN = re.compile(r"\\+boxed\s*\{|\\.|[{}]", re.DOTALL)  # `\\.` skips the braces in \{ and \}


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, contents) of the outermost closed, non-empty boxes, in one pass however many braces are open."""
    open_braces: list[tuple[int, int] | None] = []  # a box as (start, start of its contents); another brace as None
    boxes: list[tuple[int, int, str]] = []
    for token in _BOX_TOKEN.finditer(text):
        kind = token.group()
        if kind == "{":
            open_braces.append(None)
        elif kind == "}" and open_braces:
            box = open_braces.pop()
            if box and (contents := text[box[1] : token.start()].strip()):
                while boxes and boxes[-1][0] > box[0]:
                    boxes.pop()  # it lies inside this one
                boxes.append((box[0], token.end(), contents))
        elif kind.endswith("{") and "boxed" in kind:
            open_braces.append((token.start(), token.end()))
    return boxes


def extract_boxed(response: str) -> str | None:
    r"""The contents of the last closed, non-empty `\boxed{}`, or None.

    >>> extract_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}")
    '\\frac{1}{2}'
    >>> extract_boxed(r"cut off in \boxed{12") is None
    True
    """
    boxes = _boxes(response)
    return boxes[-1][2] if boxes else None


# --- the first two doors: layout, rationals, words --------------------------------------------------------------------

_UNICODE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}  # full-width forms
_UNICODE |= dict.fromkeys([0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0xAD])  # invisible: dropped
_UNICODE |= dict.fromkeys([0xA0, 0x2009, 0x202F, 0x3000], " ")
_UNICODE |= str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "∅": r"\emptyset ",
    }
    | {
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "≈": r"\approx ",
        "±": r"\pm ",
        "∪": r"\cup ",
        "∩": r"\cap ",
        "∈": r"\in ",
    }
    | {
        "°": r"^\circ ",
        "²": "^2",
        "³": "^3",
        "√": r"\sqrt ",
        "½": r"\frac{1}{2}",
        "’": "'",
        "。": ".",
        "、": ",",
        "ℝ": r"\mathbb{R}",
    }
)
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)  # null, bidirectional
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_MATH_INSIDE = re.compile(r"(?<!\\)\$|\\[()\[\]]|\\boxed")
_LAYOUT = [
    (re.compile(r",\\!\s*|\s*\{\s*,\s*\}\s*"), ","),
    (re.compile(r"\\!|\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\.?|\\displaystyle(?![a-zA-Z])|(?<!\\)\\\$"), ""),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)|mathrm|mathbf|mathit|mbox|operatorname)\s*(?=\{)"), r"\\text"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])"), r"\\le"),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])"), r"\\ge"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<!\\)\\[,;:> ]|~|\\q?quad(?![a-zA-Z])|\s+"), " "),
    (re.compile(r"  +"), " "),
]
_TIGHT = re.compile(
    r" (?=[^\w\s])|(?<=[^\w\s,]) |(?<=,) (?!\d{3}(?!\d))"
)  # "1, 200" stays a list; "3 1/2" keeps its space


def _unwrap(text: str) -> str:
    r"""What is inside `$...$`, `\(...\)`, `\boxed{...}` when that is all there is."""
    text = text.translate(_UNICODE).strip()
    for _ in range(MAX_DEPTH):
        inner = text.rstrip(" .,;") if not text.endswith("\\,") else text
        for left, right in _DELIMITERS:
            if inner.startswith(left) and inner.endswith(right) and len(inner) >= len(left + right):
                contents = inner[len(left) : -len(right)]
                if not re.search(r"(?<!\\)\$|\\[()\[\]]", contents):
                    inner = contents.strip()
                    break
        if inner.startswith("\\") and (boxes := _boxes(inner)) and boxes[0][:2] == (0, len(inner)):
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


_D = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?|[0-9]+[.,]?[0-9]*|\.[0-9]+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?) ?(?:(?P<whole>[0-9]+) ?(?=\\frac)|(?P<mixed>[0-9]+) (?=[0-9]+ ?/))?"
    rf"(?:\\frac ?(?:\{{ ?(?P<n>[-+]?{_D}) ?\}}|(?P<n1>[0-9])) ?(?:\{{ ?(?P<d>[-+]?{_D}) ?\}}|(?P<d1>[0-9]))"
    rf"|(?P<a>{_D}) ?/ ?(?P<b>{_D})"
    rf"|(?P<x>{_D})(?: ?(?:\\times|\\cdot|\*|x) ?10 ?\^ ?(?:\{{ ?(?P<e>[-+]?[0-9]{{1,3}}) ?\}}|(?P<e1>[0-9]))|[eE](?P<e2>[-+]?[0-9]{{1,3}}))?"
    rf"|10 ?\^ ?(?:\{{ ?(?P<e3>[-+]?[0-9]{{1,3}}) ?\}}|(?P<e4>[0-9])))"
)
_PERCENT = re.compile(r" ?(?:\\?%|(?:\\text ?\{)? ?(?:percent(?:age)?|pct) ?\}?)$", re.IGNORECASE)
_DEGREE = re.compile(r" ?(?:\^ ?\{? ?\\circ ?\}?|\\degree|degrees?)(?: ?[CF])?$")
_TEXT_UNIT = re.compile(r"(?<![\^_]) ?\\text ?\{([^{}]*)\}(?: ?\^ ?\{?[1-9]\}?)?$")
_BARE_UNIT = re.compile(
    r"(?:(?<=[0-9}]) ?| )((?:mm|cm|km|kg|mg|ml|ft|lbs?|mph|hrs?|mins?|secs?|dollars?|cents?|euros?|[a-z]{4,}| )+)(?:\^ ?\{?[23]\}?)?$"
)
_NOT_A_UNIT = re.compile(
    r"(?i)\b(?:or|and|more|less|fewer|than|least|most|not|half|thirds?|quarters?|squared|cubed|factorial|dozen|times|plus|minus"
    r"|infinity|sqrt|sinh?|cosh?|tanh?|log|base|over|choose|each|[ie]|pi|theta|alpha|beta)\b"
)
_HEDGE = re.compile(
    r"(?i)\b(?:or (?:more|less|fewer|greater|higher|lower)|at (?:least|most)|(?:more|less|greater|fewer) than|not)\b"
)
_SCALE = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def _strip_unit(text: str) -> tuple[str, int]:
    """The text without its trailing unit, and the power of ten that the unit stood for: "5 million" -> ("5", 6)."""
    for pattern in (_TEXT_UNIT, _BARE_UNIT):
        match = pattern.search(text)
        if match and match.start() and (unit := match.group(1).strip().lower()):
            power = _SCALE.get(unit.split()[0])
            if not _NOT_A_UNIT.search(unit) and (power is None or len(unit.split()) < 3):
                return text[: match.start()].strip(), power or 0
    return text, 0


def _decimal(digits: str) -> tuple[Fraction, int]:
    """The value and the number of decimals of "1,000.5", "1 000" or "2,5"."""
    if re.fullmatch(r"[-+]?[1-9][0-9]{0,2}(?:([, ])[0-9]{3})(?:\1[0-9]{3})*(?:\.[0-9]+)?", digits):
        digits = re.sub("[, ]", "", digits)
    digits = digits.replace(",", ".")
    return Fraction(digits), len(digits.partition(".")[2])


def _number(text: str) -> tuple[Fraction, bool, int] | None:
    r"""(value, percent?, decimals) of a tidy plain number, None for anything else.

    `1\frac{1}{2}` -> (3/2, False, 0); `12.50\%` -> (25/2, True, 2)
    """
    bare = _PERCENT.sub("", text)
    percent = bare != text
    bare, power = _strip_unit(_DEGREE.sub("", bare).strip("$€£¥₹ "))
    bare = bare.strip("$€£¥₹ ")
    if bare.startswith("(") and bare.endswith(")"):
        bare = bare[1:-1].strip()
    match = _NUMBER.fullmatch(bare)
    if not match:
        return None
    part = match.groupdict()
    try:
        decimals = 0
        if part["x"]:
            value, decimals = _decimal(part["x"])
        elif part["a"]:
            value = _decimal(part["a"])[0] / _decimal(part["b"])[0]
        elif part["n"] or part["n1"]:
            value = _decimal(part["n"] or part["n1"])[0] / _decimal(part["d"] or part["d1"])[0]
        else:
            value = Fraction(1)
    except (ValueError, ZeroDivisionError):  # "1,00,0", "1/0"
        return None
    if whole := part["whole"] or part["mixed"]:
        if not 0 <= value < 1:
            return None
        value += int(whole)
    exponent = int(part["e"] or part["e1"] or part["e2"] or part["e3"] or part["e4"] or 0) + power
    return (-value if part["sign"] == "-" else value) * Fraction(10) ** exponent, percent, max(0, decimals - exponent)


def _same_number(one: tuple[Fraction, bool, int], other: tuple[Fraction, bool, int]) -> bool:
    (a, a_percent, a_decimals), (b, b_percent, b_decimals) = one, other

    def close(x: Fraction, y: Fraction) -> bool:
        rounded = max(a_decimals, b_decimals) >= 6 and a_decimals != b_decimals
        return x == y or rounded and abs(x - y) <= Fraction(min(1, 10 * max(abs(x), abs(y)))) / 2_000_000

    return (
        close(a, b)
        or a_percent
        and not b_percent
        and close(a / 100, b)
        or b_percent
        and not a_percent
        and close(a, b / 100)
    )


def _words(text: str) -> tuple[str, bool] | None:
    r"""Plain words without case and `\text{}`, and whether they can only be words; None if there is more than words.

    `\text{Evelyn}` -> ("evelyn", True); `ab` -> ("ab", False), it may be a product
    """
    plain = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", text)
    words = re.sub(r"[\s.,!'\"()-]+", " ", plain).strip()
    if not re.fullmatch(r"[a-zA-Z]+(?: [a-zA-Z]+)*", words) or re.search(r"(?i)infinity|sqrt|(?<!\w)inf(?!\w)", words):
        return None
    if "," in plain and max(map(len, words.split())) < 2:  # a, b: a list of variables
        return None
    return words.casefold(), plain != text or len(words) == 1 or max(map(len, words.split())) > 3


def _quick(predicted: str, reference: str) -> bool | None:
    """The verdict of the first two doors on two tidy texts, or None if the worker must look."""
    if not predicted or not reference:
        return False
    if _TIGHT.sub("", predicted) == _TIGHT.sub("", reference):
        return True
    a, b = _number(predicted), _number(reference)
    if a and b:
        if _same_number(a, b):
            return True
        return None if re.search("[0-9],[0-9]", predicted) and re.search("[0-9],[0-9]", reference) else False
    one, other = _words(predicted), _words(reference)
    if one and other:
        return True if one[0] == other[0] else False if one[1] or other[1] else None
    if one and one[1] and b or other and other[1] and a:
        return False  # a word is not a number
    return None


# --- the third door: math-verify in a worker process ------------------------------------------------------------------

_WORD = re.compile(
    r"(?<![\\a-zA-Z])(?!(?:sqrt|infinity|sinh|cosh|tanh|and|or|in|sin|cos|tan|log|ln|exp|pi)(?![a-zA-Z]))[a-zA-Z]?[a-z]+(?![a-zA-Z])"
)
_FINAL = re.compile(r"(?i)final answer is")


def _locate(text: str, boxed: bool) -> tuple[str, bool]:
    """(what to compare, prose?). Prose goes to math-verify's own search for the answer; `boxed` text is never prose."""
    text = _unwrap(re.sub(r"^\s*\$([^$]+)\$\s*(\\?%|percent|pct)\s*$", r"\1\\%", text))
    if boxed:
        return _tidy(re.sub(r"(?<!\\)\$|\\[()\[\]]", " ", text)), False
    boxes = _boxes(text)
    if len(boxes) == 1 and not _FINAL.search(text):
        after = re.match(r"[\s$]*(?:\\?%|percent|pct)", text[boxes[0][1] :])
        return _tidy(_unwrap(boxes[0][2]) + (r"\%" if after else "")), False
    tidy = _tidy(text)
    if boxes or _MATH_INSIDE.search(text):
        return text, True
    plain = re.sub(r"\\(?:text|begin|end) ?\{[^{}]*\}", " ", tidy)
    words = [word for word in _WORD.findall(plain) if len(word) > 1]
    if (len(words) > 2 or any(len(word) > 3 for word in words)) and not _words(tidy) and not _number(tidy):
        return text, True
    return tidy, False


def _depth(text: str) -> int:
    depth = deepest = 0
    for brace in re.findall(r"[{}()\[\]]", text):
        depth += 1 if brace in "{([" else -1
        deepest = max(deepest, depth)
    return deepest


def _decide(predicted: str, reference: str, boxed: bool = False) -> bool:
    if predicted.strip() == reference.strip():
        return bool(predicted.strip())
    predicted = predicted[-MAX_TEXT:] if not boxed else predicted
    if boxed and len(predicted) > MAX_ANSWER or len(reference) > MAX_TEXT:
        return False
    if _FORBIDDEN.search(predicted) or _FORBIDDEN.search(reference):
        return False
    if any(re.search(rf"[0-9]{{{MAX_DIGITS}}}", text) or _depth(text) > MAX_DEPTH for text in (predicted, reference)):
        return False
    (answer, prose), (target, target_prose) = _locate(predicted, boxed), _locate(reference, False)
    if not prose and not target_prose:
        verdict = _quick(answer, target)
        if verdict is not None:
            return verdict
        if bool(_HEDGE.search(answer)) != bool(_HEDGE.search(target)):
            return False  # "5 or more" is not 5, though its unit would be dropped
        if _bases(answer) != _bases(target):
            return False
    return _ask([_plain(answer, prose), prose, _plain(target, target_prose), target_prose])


def _bases(text: str) -> set[str]:
    return set(re.findall(r"[0-9]\}? ?_ ?\{? ?([0-9]+)", text))


def _plain(text: str, prose: bool) -> str:
    """A number in the one spelling that math-verify cannot misread, other text without its unit; prose as it is."""
    if prose:
        return text
    if (number := _number(text)) and not re.search("[0-9],[0-9]", text):
        value, _, decimals = number
        if decimals and value.denominator != 1:
            return (
                re.sub(r"[^-0-9.]", "", text)
                if re.fullmatch(r"-?[0-9]*\.[0-9]+\D*", text)
                else f"{value.numerator}/{value.denominator}"
            )
        return f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator != 1 else str(value.numerator)
    return _strip_unit(_DEGREE.sub("", _PERCENT.sub("", text)))[0] or text


_worker: subprocess.Popen | None = None
_lock = threading.Lock()


def _start_worker() -> subprocess.Popen:
    # A plain `python verify.py --worker`: unlike fork it inherits no torch threads, and unlike spawn it does not import the
    # caller's __main__, so notebooks and scripts without a guard work.
    return subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "--worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="ascii",
    )


def _stop_worker() -> None:
    global _worker
    process, _worker = _worker, None
    if process is not None:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _forget_worker() -> None:
    """In a forked child: the pipes belong to the parent, whose replies must not be read here."""
    global _worker, _lock
    _worker, _lock = None, threading.Lock()


atexit.register(_stop_worker)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_worker)


def _exchange(process: subprocess.Popen, line: str, limit: float) -> str:
    """Send one line (or none) and read one; "" if the worker died or was killed at the limit. Works in any thread."""
    timer = threading.Timer(limit, process.kill)
    timer.daemon = True
    timer.start()
    try:
        if line:
            process.stdin.write(line)
            process.stdin.flush()
        return process.stdout.readline()
    except (OSError, ValueError):  # broken pipe
        return ""
    finally:
        timer.cancel()
        timer.join()  # a kill that was already under way hits this worker and not the next question


def _ask(question: list) -> bool:
    """The worker's verdict on [predicted, prose?, reference, prose?], or on [reference, prose?]: can it be parsed?"""
    global _worker
    with _lock:
        if _worker is not None and _worker.poll() is not None:
            _stop_worker()
        if _worker is None:
            _worker = _start_worker()
            if not _exchange(_worker, "", START_LIMIT):
                _stop_worker()
                raise RuntimeError("the answer checker's worker does not start: is math-verify[antlr4_11_0] installed?")
        reply = _exchange(_worker, json.dumps(question) + "\n", TIME_LIMIT)
        if not reply.endswith("\n"):
            _stop_worker()
        return reply == "1\n"


def _serve() -> None:
    """The worker: a line of JSON in, `1` or `0` out, until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not look like a verdict
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    except (ImportError, ValueError, OSError):  # no such limit on this system: the time limit remains
        pass
    logging.disable(logging.CRITICAL)
    import math_verify.parser
    from latex2sympy2_extended import latex2sympy
    from math_verify import parse  # noqa: F401  (import now, so that the first question is not charged for it)

    # math-verify evaluates plain expressions with sympy's parse_expr, which is Python's eval. Its LaTeX parser does as well.
    math_verify.parser.parse_expr = lambda text, evaluate: latex2sympy(text.replace("**", "^").strip(" ."))
    replies.write("ready\n")
    replies.flush()
    for line in sys.stdin:
        if hasattr(os, "fork"):
            import signal

            signal.alarm(int(TIME_LIMIT) + 10)  # should the parent be gone, end a check that never ends
        question = json.loads(line)
        try:
            verdict = bool(_parse(*question)) if len(question) == 2 else _verify(*question)
        except Exception:  # RecursionError and MemoryError too: sympy failed, so the answer counts as wrong
            verdict = False
        replies.write("1\n" if verdict else "0\n")
        replies.flush()


def _parse(text: str, prose: bool) -> list:
    """math-verify's sympy objects for a text; [] if it cannot be parsed."""
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    if prose:
        return parse(text, fallback_mode="no_fallback", parsing_timeout=None)
    # units=False: math-verify takes the c of 2x + 3c for a unit
    config = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
    )
    config = LatexExtractionConfig(normalization_config=config)
    return parse(f"${text}$", [config], fallback_mode="no_fallback", parsing_timeout=None)


def _verify(predicted: str, prose: bool, reference: str, reference_prose: bool) -> bool:
    from math_verify import verify

    gold, answer = _parse(reference, reference_prose), _parse(predicted, prose)
    if not gold or not answer:
        return False
    gold = [_by_position(gold[0], answer[0])]
    if not verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None):
        return False
    return not _refuted(gold[0], answer[0])


def _by_position(gold, answer):
    """{x = 2, y = 3} as the tuple (2, 3), if the answer gives no names; roots x_1, x_2 stay a set."""
    from sympy import Eq, FiniteSet, Tuple

    pairs = list(getattr(gold, "_unsorted_args", ())) if isinstance(gold, FiniteSet) else []
    names = {str(pair.lhs).split("_")[0] for pair in pairs if isinstance(pair, Eq)}
    if len(pairs) < 2 or len(names) != len(pairs) or any(isinstance(part, Eq) for part in answer.args):
        return gold
    return Tuple(*(pair.rhs for pair in pairs))


def _refuted(a, b) -> bool:
    """Does a number speak against math-verify's yes? It rounds to absolute decimals and takes two equations without solution for
    equal."""
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
        tolerance = min(1, 10 * scale) / 10**6 if a.has(Float) or b.has(Float) else scale / 10**12
        if abs(x - y) <= tolerance:
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
        boxes = _boxes(response)
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
        if (
            not reference.strip()
            or len(reference) > MAX_TEXT
            or _FORBIDDEN.search(reference)
            or _depth(reference) > MAX_DEPTH
        ):
            return False
        target, prose = _locate(reference, False)
        return bool(not prose and (_number(target) or _words(target))) or _ask([_plain(target, prose), prose])

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


if __name__ == "__main__" and sys.argv[1:] == ["--worker"]:
    _serve()
