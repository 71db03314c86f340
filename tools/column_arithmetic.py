"""Column arithmetic, worked out loud: the reasoning in tiny-r1's problems.

Every digit follows from digits close by, so that a very small model can learn each line:

    I need 347 + 285.
    Ones: 7 + 5 = 12. Write 2, carry 1.
    Tens: 4 + 8 + 1 = 13. Write 3, carry 1.
    Hundreds: 3 + 2 + 1 = 6. Write 6.
    So 347 + 285 = 632.
"""

from __future__ import annotations

from dataclasses import dataclass

PLACES = ("Ones", "Tens", "Hundreds", "Thousands", "Ten thousands")


@dataclass(frozen=True)
class Expr:
    """`left op right`; each side is a non-negative integer or another operation."""

    op: str
    left: Expr | int
    right: Expr | int

    def __str__(self) -> str:
        inner = self.left
        left = f"({inner})" if self.op == "*" and _is_sum(inner) else str(inner)
        inner = self.right
        right = f"({inner})" if self.op != "+" and _is_sum(inner) else str(inner)
        return f"{left} {self.op} {right}"

    @property
    def value(self) -> int:
        left, right = value_of(self.left), value_of(self.right)
        return {"+": left + right, "-": left - right, "*": left * right}[self.op]


def _is_sum(side: Expr | int) -> bool:
    return isinstance(side, Expr) and side.op in "+-"


def value_of(side: Expr | int) -> int:
    """The integer a side of an expression stands for."""
    return side.value if isinstance(side, Expr) else side


class Working:
    """Collects the lines of a worked answer and the operations they worked."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def solve(self, expr: Expr, lead: str = "I need") -> int:
        """Works `expr`, inner operations first, and returns its value."""
        self.say(f"{lead} {expr}.")
        sides = []
        nested = [side for side in (expr.left, expr.right) if isinstance(side, Expr)]
        for side in (expr.left, expr.right):
            sides.append(self.solve(side, "First") if isinstance(side, Expr) else side)
        if nested:
            self.say(f"Now {sides[0]} {expr.op} {sides[1]}.")
        return self.operate(expr.op, sides[0], sides[1])

    def operate(self, op: str, a: int, b: int) -> int:
        """Works one operation on two non-negative numbers, to its `So ... = ...` line."""
        self.steps.append(f"{a} {op} {b}")
        if op == "+":
            return self._add(a, b)
        if op == "-":
            return self._subtract(a, b)
        if len(str(a)) < len(str(b)):
            self.say(f"{a} * {b} is {b} * {a}.")
            a, b = b, a
        return self._multiply(a, b) if b < 10 else self._long_multiply(a, b)

    def _add(self, a: int, b: int) -> int:
        carry = 0
        columns = _columns(a, b)
        for place, (x, y) in enumerate(columns):
            total = x + y + carry
            terms = f"{x} + {y} + {carry}" if carry else f"{x} + {y}"
            carry = self._write(place, f"{terms} = {total}", total, place == len(columns) - 1)
        return self._so(f"{a} + {b}", a + b)

    def _subtract(self, a: int, b: int) -> int:
        if self._compare(a, b):
            self.say(f"{a} is less than {b}, so turn it around: {b} - {a}.")
            self.steps.append(f"{b} - {a}")
            return self._so(f"{a} - {b}", -self._borrow(b, a))
        return self._borrow(a, b)

    def _compare(self, a: int, b: int) -> bool:
        """Says the digits up to the first that differ; whether `a` is less."""
        pairs = []
        for x, y in reversed(_columns(a, b)):
            pairs.append(f"{x} {'<' if x < y else '>' if x > y else '='} {y}")
            if x != y:
                break
        self.say(f"From the left: {', '.join(pairs)}.")
        return a < b

    def _borrow(self, a: int, b: int) -> int:
        """Column subtraction, `a` not less than `b`."""
        borrow = 0
        for place, (x, y) in enumerate(_columns(a, b)):
            taken = f" - {borrow}" if borrow else ""
            digit = x - borrow - y
            line = f"{PLACES[place]}: {x}{taken} - {y}"
            if digit < 0:
                digit += 10
                line += f" needs a borrow: {x + 10}{taken} - {y}"
            borrow = int(x - borrow - y < 0)
            self.say(f"{line} = {digit}.")
        return self._so(f"{a} - {b}", a - b)

    def _multiply(self, a: int, b: int) -> int:
        """Column multiplication by one digit."""
        carry = 0
        digits = [int(digit) for digit in reversed(str(a))]
        for place, x in enumerate(digits):
            total = x * b + carry
            working = f"{x} * {b} = {x * b}"
            if carry:
                working += f", {x * b} + {carry} = {total}"
            carry = self._write(place, working, total, place == len(digits) - 1)
        return self._so(f"{a} * {b}", a * b)

    def _long_multiply(self, a: int, b: int) -> int:
        """Multiplication by two digits: once by the ones, once by the tens, then the sum."""
        tens, ones = divmod(b, 10)
        if not ones:
            self.say(f"First {a} * {tens}.")
            self.operate("*", a, tens)
            return self._so(f"{a} * {b}", a * b)
        self.say(f"Split {b} = {tens * 10} + {ones}.")
        self.say(f"First {a} * {ones}.")
        low = self.operate("*", a, ones)
        self.say(f"Then {a} * {tens}.")
        high = self._so(f"{a} * {tens * 10}", 10 * self.operate("*", a, tens))
        self.steps.append(f"{a} * {tens * 10}")
        self.say(f"Now {high} + {low}.")
        self.operate("+", high, low)
        return self._so(f"{a} * {b}", a * b)

    def _write(self, place: int, working: str, total: int, last: bool) -> int:
        """Ends a column: the last one writes all its digits, the others one digit and the carry."""
        carry, digit = divmod(total, 10)
        end = (
            f"Write {total}."
            if last
            else f"Write {digit}, carry {carry}."
            if carry
            else f"Write {digit}."
        )
        self.say(f"{PLACES[place]}: {working}. {end}")
        return carry

    def _so(self, expression: str, value: int) -> int:
        self.say(f"So {expression} = {value}.")
        return value


def _columns(a: int, b: int) -> list[tuple[int, int]]:
    """Digit pairs of two numbers, ones first, the shorter padded with zeros."""
    width = max(len(str(a)), len(str(b)))
    upper, lower = str(a).zfill(width), str(b).zfill(width)
    return [(int(x), int(y)) for x, y in zip(reversed(upper), reversed(lower), strict=True)]
