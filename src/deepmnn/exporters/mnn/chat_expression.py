"""jinja2's expressions, written so that MNN's template engine gives them jinja2's value.

The engine reads them by a grammar of its own: after a literal or a parenthesis no `.` or `[` may
follow, a method it does not know is an empty string, a filter it does not know does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import nodes

_LOOP = {name: f"loop.{name}" for name in ("index", "index0", "first", "last", "length")} | {
    "revindex": "(loop.length - loop.index0)",
    "revindex0": "(loop.length - loop.index)",
}
_OPERATORS = {"eq": "==", "ne": "!=", "lt": "<", "gt": ">", "lteq": "<=", "gteq": ">="} | {
    "in": "in",
    "notin": "not in",
}
_COMPARING_TESTS = {"==": "eq", "eq": "eq", "equalto": "eq", "!=": "ne", "ne": "ne", "in": "in"}
_TESTS = {
    name: f"({{0}} is {name})"
    for name in ("defined", "undefined", "none", "string", "boolean", "true", "false")
} | {  # for MNN undefined is a mapping, a boolean is no number and a mapping no sequence
    "number": "({0} is number or {0} is boolean)",
    "mapping": "({0} is mapping and {0} is defined)",
    "sequence": "({0} is sequence or ({0} is mapping and {0} is defined))",
    "iterable": "({0} is iterable or ({0} is mapping and {0} is defined))",
}
_FILTERS = {"trim", "string", "lower", "upper", "capitalize", "tojson"}
_METHODS = dict.fromkeys(("strip", "lstrip", "rstrip"), (0, 1)) | {
    "startswith": (1, 1),
    "endswith": (1, 1),
    "split": (1, 1),
    "replace": (2, 2),
}
"""Methods of strings, with the fewest and the most arguments that MNN heeds."""
_FUNCTIONS = {"range", "namespace", "strftime_now"}
_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_MAX_INT = (1 << 31) - 1


class InexpressibleError(Exception):
    """MNN's engine has no form for what the message names."""


def literal(value: Any) -> str:
    """A constant. Raises InexpressibleError for what MNN cannot read, such as 1.5."""
    match value:
        case str():
            return f"'{value.translate(_ESCAPES)}'"
        case None | bool():
            return str(value).lower()
        case int() if abs(value) <= _MAX_INT:
            return str(value)
        case list() | tuple():
            return f"[{', '.join(map(literal, value))}]"
    raise InexpressibleError(f"the constant {value!r:.40}")


class Expressions:
    """Writes expressions, and keeps what the statements around them must know.

    Attributes:
        lists: variables that hold lists; only those may be indexed (MNN has no pieces of strings).
        needed: statements that must run before the one that holds the expression.
    """

    def __init__(self) -> None:
        self.lists = {"messages"}
        self.needed: list[str] = []
        self._made = 0

    def truth(self, node: nodes.Node) -> str:
        """The expression where only its truth matters."""
        match node:
            case nodes.And(left=left, right=right):
                return f"({self.truth(left)} and {self.truth(right)})"
            case nodes.Or(left=left, right=right):
                return f"({self.truth(left)} or {self.truth(right)})"
            case nodes.Not(node=operand):
                return f"(not {self.truth(operand)})"
        return self.value(node)

    def value(self, node: nodes.Node) -> str:
        """The expression where its value matters, closed to the operators around it."""
        match node:
            case nodes.Const(value=value):
                return literal(value)
            case nodes.Not():
                return self.truth(node)
            case nodes.And() | nodes.Or() | nodes.CondExpr():
                return self._choice(node)
            case nodes.Add(left=left, right=right):
                return f"({self.value(left)} + {self.value(right)})"
            case nodes.Sub(left=left, right=right):
                return f"({self.value(left)} - {self.value(right)})"
            case nodes.Neg(node=operand):
                return f"(0 - {self.value(operand)})"
            case nodes.Concat(nodes=parts):
                return f"({' ~ '.join(map(self._printed, parts))})"
            case nodes.Compare(expr=left, ops=operands):
                return self._compare(left, [(o.op, o.expr) for o in operands])
            case nodes.Test(node=operand, name=name, args=args):
                return self._test(operand, name, args or [])
            case nodes.List(items=items) | nodes.Tuple(items=items):
                return f"[{', '.join(map(self.value, items))}]"
            case nodes.Dict(items=pairs):
                texts = [f"{self.value(pair.key)}: {self.value(pair.value)}" for pair in pairs]
                return f"{{{', '.join(texts)}}}"
            case nodes.Filter(node=nodes.Node() as operand):
                return self._filter(operand, node)
        return self._chain(node)

    def is_list(self, node: nodes.Node | None) -> bool:
        """Whether the expression is known to be a list."""
        match node:
            case nodes.Name(name=name):
                return name in self.lists
            case nodes.Getattr(attr="tool_calls") | nodes.List() | nodes.Tuple():
                return True
            case nodes.Const(value=value):
                return isinstance(value, list | tuple)
            case nodes.Getitem(arg=nodes.Const(value="tool_calls")):
                return True
            case nodes.Getitem(node=base, arg=nodes.Slice()) | nodes.Filter(node=base, name="list"):
                return self.is_list(base)
            case (
                nodes.Call(node=nodes.Getattr(attr="split"))
                | nodes.Call(node=nodes.Name(name="range"))
            ):
                return True
        return False

    def _choice(self, node: nodes.Node) -> str:
        """`and` and `or` too: MNN's own give true or false, never an operand."""
        match node:
            case nodes.And(left=left, right=right):
                return f"({self.value(right)} if {self.truth(left)} else {self.value(left)})"
            case nodes.Or(left=left, right=right):
                return f"({self.value(left)} if {self.truth(left)} else {self.value(right)})"
            case nodes.CondExpr(test=test, expr1=then, expr2=otherwise):
                other = self.value(otherwise) if otherwise else "''"
                return f"({self.value(then)} if {self.truth(test)} else {other})"
        raise InexpressibleError(describe(node))

    def _printed(self, node: nodes.Node) -> str:
        """An operand of `~`, for which MNN would spell out that a variable is undefined."""
        text = self.value(node)
        may_lack = isinstance(node, nodes.Name | nodes.Getattr | nodes.Getitem)
        return f"({text} if {text} is defined else '')" if may_lack else text

    def _compare(self, left: nodes.Node, operands: Sequence[tuple[str, nodes.Node]]) -> str:
        parts = []
        for operator, right in operands:
            parts.append(f"({self.value(left)} {_OPERATORS[operator]} {self.value(right)})")
            left = right
        return parts[0] if len(parts) == 1 else f"({' and '.join(parts)})"

    def _test(self, operand: nodes.Node, name: str, args: Sequence[nodes.Node]) -> str:
        if name in _COMPARING_TESTS and len(args) == 1:
            return self._compare(operand, [(_COMPARING_TESTS[name], args[0])])
        if name not in _TESTS or args:
            raise InexpressibleError(f"the test {name}")
        return _TESTS[name].format(self.value(operand))

    def _filter(self, operand: nodes.Node, node: nodes.Filter) -> str:
        args = [self.value(arg) for arg in node.args]
        match node.name, args:
            case (("default" | "d"), [*_]) if len(args) <= 2 and not node.kwargs:
                text = self.value(operand)
                wanted = text if args[1:] == ["true"] else f"({text} is defined)"
                return f"({text} if {wanted} else {[*args, literal('')][0]})"
            case (("length" | "count"), []) if self.is_list(operand):
                return f"({self.value(operand)} | length)"
            case ("first" | "last") as end, [] if self.is_list(operand):
                return f"{self._base(operand)}[{0 if end == 'first' else '-1'}]"
            case "list", [] if self.is_list(operand):
                return self.value(operand)
            case "tojson", [] if [k.key for k in node.kwargs] == ["indent"]:
                indent = self.value(node.kwargs[0].value)
                return f"({self.value(operand)} | tojson(indent={indent}))"
            case name, [] if name in _FILTERS and not node.kwargs:
                return f"({self.value(operand)} | {name})"
        raise InexpressibleError(f"the filter {node.name}")

    def _chain(self, node: nodes.Node) -> str:
        """Names, and what `.`, `[…]` and `(…)` make of them."""
        match node:
            case nodes.Name(name=name):
                return name
            case nodes.Getattr(node=nodes.Name(name="loop"), attr=attr) if attr in _LOOP:
                return _LOOP[attr]
            case nodes.Getattr(node=base, attr=name) if not _is_loop(base):
                return f"{self._base(base)}.{name}"
            case nodes.Getitem(node=base, arg=nodes.Const(value=str(name))) if not _is_loop(base):
                # Of a missing `x['name']` MNN says that it is defined.
                return f"{self._base(base)}" + (
                    f".{name}" if _is_identifier(name) else f"[{literal(name)}]"
                )
            case nodes.Getitem():
                return self._item(node)
            case nodes.Call(node=nodes.Name(name=name), dyn_args=None, dyn_kwargs=None):
                if name in _FUNCTIONS:
                    named = [f"{k.key}={self.value(k.value)}" for k in node.kwargs]
                    return f"{name}({', '.join([*map(self.value, node.args), *named])})"
                raise InexpressibleError(f"the function {name}")
            case nodes.Call(node=nodes.Getattr(node=base, attr=name), kwargs=[]):
                return self._method(base, name, node.args)
        raise InexpressibleError(describe(node))

    def _item(self, node: nodes.Getitem) -> str:
        match node:
            case nodes.Getitem(
                node=nodes.Call(
                    node=nodes.Getattr(node=base, attr="split"),
                    args=[nodes.Const(value=str(mark)), nodes.Const(value=1)],
                ),
                arg=nodes.Const(value=0 | 1 as which),
            ):
                return self._parted(base, mark, which)
            case nodes.Getitem(
                node=nodes.Call(
                    node=nodes.Getattr(node=base, attr="rsplit"),
                    args=[nodes.Const(value=str()) as mark, nodes.Const(value=1)],
                ),
                arg=nodes.Const(value=-1),
            ):
                return f"{self._base(base)}.split({self.value(mark)})[-1]"
            case nodes.Getitem(node=base, arg=nodes.Slice() as piece) if self.is_list(base):
                ends = (piece.start, piece.stop, piece.step)
                texts = [self.value(end) if end else "" for end in ends]
                return f"{self._base(base)}[{':'.join(texts if texts[2] else texts[:2])}]"
            case nodes.Getitem(node=base, arg=arg) if self.is_list(base):
                return f"{self._base(base)}[{self.value(arg)}]"
            case nodes.Getitem(node=base, arg=nodes.Name(name=key)):
                return f"{self._base(base)}[{key}]"
        raise InexpressibleError(describe(node))

    def _parted(self, base: nodes.Node, mark: str, which: int) -> str:
        """base.split(mark, 1)[which]: what is before the first mark, or everything after it."""
        parts = f"{self._base(base)}.split({literal(mark)})"
        if which == 0:
            return f"{parts}[0]"
        self._made += 1
        name = f"_rest{self._made}"
        self.needed.append(
            f"{{% set {name} = namespace(text='') %}}{{% for part in {parts}[1:] %}}"
            f"{{% set {name}.text = ({name}.text + (part if loop.first else "
            f"({literal(mark)} + part))) %}}{{% endfor %}}"
        )
        return f"{name}.text"

    def _method(self, base: nodes.Node, name: str, args: Sequence[nodes.Node]) -> str:
        match name, args:
            case (("lower" | "upper"), []):
                return f"({self.value(base)} | {name})"
            case "get", [nodes.Const(value=str(key))] if _is_identifier(key):
                return f"{self._base(base)}.{key}"
            case "get", [nodes.Const(value=str(key)), other] if _is_identifier(key):
                found = f"{self._base(base)}.{key}"
                return f"({found} if {found} is defined else {self.value(other)})"
        fewest, most = _METHODS.get(name, (1, 0))
        if not fewest <= len(args) <= most:
            raise InexpressibleError(f"the method {name} with {len(args)} arguments")
        texts = [self.value(arg) for arg in args]
        if name.endswith("strip") and not "".join(texts).isascii():  # MNN strips bytes
            raise InexpressibleError(f"{name} of {texts[0]}")
        return f"{self._base(base)}.{name}({', '.join(texts)})"

    def _base(self, node: nodes.Node) -> str:
        """An expression that `.` or `[` may follow: MNN allows them after names and calls only."""
        if isinstance(node, nodes.Name | nodes.Getattr | nodes.Getitem | nodes.Call):
            text = self._chain(node)
            if not text.startswith("("):
                return text
        return f"namespace(it={self.value(node)}).it"


def describe(node: nodes.Node) -> str:
    """The kind of node, and where it stands."""
    return f"{type(node).__name__} in line {node.lineno}"


def _is_loop(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "loop"


def _is_identifier(name: str) -> bool:
    return name.isascii() and name.isidentifier()
