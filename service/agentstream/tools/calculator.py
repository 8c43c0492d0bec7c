"""The calculator tool. It has its own parser and never calls Python's ``eval``.

This is the grammar, with the weakest operators first. The precedence is that of Python; ``^`` means ``**``::

    sum      = product (("+" | "-") product)*
    product  = unary (("*" | "/" | "//" | "%") unary)*
    unary    = ("+" | "-") unary | power
    power    = atom ["**" unary]
    atom     = number | constant | function "(" sum ("," sum)* ")" | "(" sum ")"

Values are exact whole numbers and fractions, so 0.1 + 0.2 is 0.3. Constants, and functions without an exact result,
such as roots and logarithms, return floating-point numbers.
"""

import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple, NoReturn

from agentstream.tools.base import ToolError

# Enough for the expressions that people write. It also limits the number of operations.
MAX_LENGTH_CHARS = 500
# Each level takes 5 Python calls; Python's recursion limit is 1000.
MAX_DEPTH = 50
# About 3,900 decimal digits. CPython refuses to print more than 4,300.
MAX_BITS = 13_000
# With more than 15 significant digits a double shows rounding errors: 0.30000000000000004.
FLOAT_DIGITS = 15
# Smaller results of sin, cos and tan are rounding errors of zero, as in sin(pi).
TRIGONOMETRIC_ZERO = 1e-15
MAX_ROUND_DIGITS = 100

Number = int | Fraction | float

_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])(?:\.[0-9]+)?")
_SAME_SYMBOL = {
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{MIDDLE DOT}": "*",
    "\N{DIVISION SIGN}": "/",
    "\N{MINUS SIGN}": "-",
    "^": "**",
}
_TOKEN = re.compile(
    rf"""
        (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
      | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
      | (?P<symbol>\*\*|//|[-+*/%^(),{"".join(_SAME_SYMBOL)}])
    """,
    re.VERBOSE,
)
_CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e}


class Calculator:
    """The tool: ``{"expression": "17*23"}`` returns ``391``."""

    name = "calculator"
    read_only = True
    description = (
        "Calculate the value of an arithmetic expression. Operators: + - * / // % ** and parentheses. Constants: pi, "
        "e. Functions: sqrt, abs, round(x, digits), floor, ceil, min, max, log(x) or log(x, base), ln, log10, exp, "
        "sin, cos, tan. Angles are in radians. log(x) is the natural logarithm."
    )
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "for example (17 * 23) / sqrt(2)"}},
        "required": ["expression"],
        "additionalProperties": False,
    }

    async def run(self, arguments: dict[str, Any]) -> str:
        """Return the value of ``arguments["expression"]`` as text; raises the errors of ``evaluate``."""
        return format_number(evaluate(arguments["expression"]))


def evaluate(expression: str) -> Number:
    """Return the value of ``expression``. Any expression takes milliseconds.

    Raises ToolError for a syntax error, an undefined value, or numbers or text beyond the limits above.
    """
    if len(expression) > MAX_LENGTH_CHARS:
        message = f"the expression has {len(expression)} characters; at most {MAX_LENGTH_CHARS} are allowed"
        raise ToolError(message)
    parser = _Parser(_tokens(expression.strip().rstrip("=? \t\r\n")))
    try:
        return parser.parse_expression()
    except ZeroDivisionError as exc:
        message = "division by zero"
        raise ToolError(message) from exc
    except OverflowError as exc:
        raise ToolError(_TOO_LARGE) from exc


def format_number(value: Number) -> str:
    """Return whole numbers with all digits, and others with up to 15 significant digits and no trailing zeros.

    Raises ToolError if a number that is not whole is too large or too small for a double.
    """
    if isinstance(value, int):
        return str(value)
    try:
        as_float = float(value)
    except OverflowError as exc:
        raise ToolError(_TOO_LARGE) from exc
    if as_float == 0 and value:
        message = "the result is too close to zero to be shown"
        raise ToolError(message)
    text = f"{as_float:.{FLOAT_DIGITS}g}"
    return "0" if text == "-0" else text


_TOO_LARGE = (
    f"the numbers are too large: the limit is about {MAX_BITS * 3 // 10} digits, or 1.8e308 for results of functions "
    "such as roots and logarithms"
)


class _Token(NamedTuple):
    kind: str  # number, name, symbol or end
    text: str


def _tokens(expression: str) -> list[_Token]:
    """Split the expression. A comma separates thousands, except between the arguments of a function."""
    tokens: list[_Token] = []
    among_arguments: list[bool] = []  # one entry per open parenthesis
    position = 0
    while position < len(expression):
        if expression[position].isspace():
            position += 1
            continue
        grouped = _GROUPED.match(expression, position)
        if grouped and not (among_arguments and among_arguments[-1]):
            tokens.append(_Token("number", grouped[0].replace(",", "")))
            position = grouped.end()
            continue
        match = _TOKEN.match(expression, position)
        if match is None or match.lastgroup is None:
            message = f"{expression[position : position + 20]!r} is not arithmetic (at character {position + 1})"
            raise ToolError(message)
        position = match.end()
        text = match[match.lastgroup]
        text = _SAME_SYMBOL.get(text, text)
        if text == "(":
            among_arguments.append(bool(tokens) and tokens[-1].kind == "name")
        elif text == ")" and among_arguments:
            among_arguments.pop()
        elif text == "," and not (among_arguments and among_arguments[-1]):
            message = f"unexpected comma at character {position}: write 1,234 or 1234.5, and arguments as in max(1, 2)"
            raise ToolError(message)
        tokens.append(_Token(match.lastgroup, text))
    return [*tokens, _Token("end", "")]


class _Parser:
    """Evaluates while it parses."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._position = 0
        self._depth = 0

    def parse_expression(self) -> Number:
        value = self._sum()
        if self._next.kind != "end":
            self._refuse("an operator")
        return value

    @property
    def _next(self) -> _Token:
        return self._tokens[self._position]

    def _accept(self, *symbols: str) -> str | None:
        token = self._next
        if token.kind == "symbol" and token.text in symbols:
            self._position += 1
            return token.text
        return None

    def _refuse(self, wanted: str) -> NoReturn:
        found = "the end of the expression" if self._next.kind == "end" else repr(self._next.text)
        message = f"expected {wanted}, found {found}"
        raise ToolError(message)

    def _sum(self) -> Number:
        value = self._product()
        while symbol := self._accept("+", "-"):
            value = _apply(_OPERATORS[symbol], value, self._product())
        return value

    def _product(self) -> Number:
        value = self._unary()
        while symbol := self._accept("*", "/", "//", "%"):
            value = _apply(_OPERATORS[symbol], value, self._unary())
        return value

    def _unary(self) -> Number:
        self._depth += 1  # parentheses, signs and nested powers all pass through this method
        if self._depth > MAX_DEPTH:
            message = f"the expression is nested more than {MAX_DEPTH} levels deep"
            raise ToolError(message)
        sign = self._accept("+", "-")
        value = self._unary() if sign else self._power()
        self._depth -= 1
        return -value if sign == "-" else value

    def _power(self) -> Number:
        base = self._atom()
        return _power(base, self._unary()) if self._accept("**") else base

    def _atom(self) -> Number:
        token = self._next
        if token.kind == "number":
            self._position += 1
            return _number(token.text)
        if token.kind == "name":
            self._position += 1
            return self._named(token.text)
        if not self._accept("("):
            self._refuse("a number")
        value = self._sum()
        if not self._accept(")"):
            self._refuse("')'")
        return value

    def _named(self, written: str) -> Number:
        name = written.lower()
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name not in _FUNCTIONS:
            message = f"unknown name {written!r}; the known names are {', '.join([*_CONSTANTS, *_FUNCTIONS])}"
            raise ToolError(message)
        if not self._accept("("):
            self._refuse(f"'(' after {name}")
        arguments = [self._sum()]
        while self._accept(","):
            arguments.append(self._sum())
        if not self._accept(")"):
            self._refuse(f"',' or ')' in the arguments of {name}")
        function, fewest, most = _FUNCTIONS[name]
        if not fewest <= len(arguments) <= most:
            message = f"{name} takes {fewest if fewest == most else f'{fewest} to {most}'} values, not {len(arguments)}"
            raise ToolError(message)
        try:
            return _bounded(function(*arguments))
        except ValueError as exc:
            message = f"{name} is not defined for {', '.join(format_number(value) for value in arguments)}"
            raise ToolError(message) from exc


def _bounded(value: Number) -> Number:
    """Return the value; a fraction with denominator 1 becomes an int. Raises ToolError if the value is too large."""
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ToolError(_TOO_LARGE)
        return value
    if value.numerator.bit_length() > MAX_BITS or value.denominator.bit_length() > MAX_BITS:
        raise ToolError(_TOO_LARGE)
    return value.numerator if value.denominator == 1 else value


def _number(text: str) -> Number:
    mantissa, _, exponent = text.lower().partition("e")
    # Checked before 10 ** exponent is calculated, because a large exponent would take too much time and memory.
    if len(exponent) > len("-99999") or abs(int(exponent or 0)) > MAX_BITS:
        raise ToolError(_TOO_LARGE)
    return _bounded(Fraction(mantissa) * Fraction(10) ** int(exponent or 0))


def _apply(function: Callable[[Any, Any], Number], left: Number, right: Number) -> Number:
    return _bounded(function(left, right))


def _divide(left: Number, right: Number) -> Number:
    if isinstance(left, float) or isinstance(right, float):
        return left / right
    return Fraction(left) / right


_OPERATORS: dict[str, Callable[[Any, Any], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divide,
    "//": operator.floordiv,
    "%": operator.mod,
}


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, float) or not isinstance(exponent, int):
        if base < 0 and exponent != int(exponent):
            message = f"a negative number ({format_number(base)}) to a fractional power is not a real number"
            raise ToolError(message)
        return _bounded(float(base) ** float(exponent))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits > 1 and (bits - 1) * abs(exponent) > MAX_BITS:  # checked before the power is calculated
        raise ToolError(_TOO_LARGE)
    if bits <= 1 and exponent:  # for 0, 1 and -1 only the sign and the parity of the exponent matter
        exponent = (2 + exponent % 2) * (1 if exponent > 0 else -1)
    return _bounded(Fraction(base) ** exponent)


def _sqrt(value: Number) -> Number:
    if isinstance(value, float):
        return math.sqrt(value)
    if value < 0:
        raise ValueError
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    return root if root * root == value else math.sqrt(value)


def _round(value: Number, digits: Number = 0) -> Number:
    """Round halves away from zero, as people expect; Python's ``round`` rounds halves to even."""
    if not isinstance(digits, int) or abs(digits) > MAX_ROUND_DIGITS:
        raise ValueError
    scale = Fraction(10) ** digits
    # repr gives the shortest decimal number for this double: the rounded number is then the one that users see.
    exact = Fraction(repr(value)) if isinstance(value, float) else Fraction(value)
    steps = math.floor(abs(exact) * scale + Fraction(1, 2))
    return (-steps if value < 0 else steps) / scale


def _log(value: Number, base: Number | None = None) -> Number:
    if base is None:
        return _natural_log(value)
    divisor = _natural_log(base)
    if divisor == 0:
        raise ValueError  # base 1
    return _natural_log(value) / divisor


def _natural_log(value: Number) -> float:
    if isinstance(value, Fraction):
        return math.log(value.numerator) - math.log(value.denominator)  # each may be too large for a double
    return math.log(value)


def _log10(value: Number) -> float:
    if isinstance(value, Fraction):
        return math.log10(value.numerator) - math.log10(value.denominator)
    return math.log10(value)


def _trigonometric(function: Callable[[float], float]) -> Callable[[Number], float]:
    def snapped(value: Number) -> float:
        result = function(float(value))
        return 0.0 if abs(result) < TRIGONOMETRIC_ZERO < abs(float(value)) else result

    return snapped


def _tan(value: Number) -> float:
    if abs(math.cos(float(value))) < TRIGONOMETRIC_ZERO:
        raise ValueError
    return _trigonometric(math.tan)(value)


# name -> (function, fewest values, most values); the function raises ValueError if it is not defined for the values
_FUNCTIONS: dict[str, tuple[Callable[..., Number], int, int]] = {
    "sqrt": (_sqrt, 1, 1),
    "abs": (abs, 1, 1),
    "round": (_round, 1, 2),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "min": (lambda *values: min(values), 1, MAX_LENGTH_CHARS),
    "max": (lambda *values: max(values), 1, MAX_LENGTH_CHARS),
    "log": (_log, 1, 2),
    "ln": (_natural_log, 1, 1),
    "log10": (_log10, 1, 1),
    "exp": (lambda value: math.exp(float(value)), 1, 1),
    "sin": (_trigonometric(math.sin), 1, 1),
    "cos": (_trigonometric(math.cos), 1, 1),
    "tan": (_tan, 1, 1),
}
