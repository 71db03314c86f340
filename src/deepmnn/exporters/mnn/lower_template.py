"""Writes a chat template anew for MNN's template engine; `chat_template.py` says why.

It parses a stranger's text and computes what is constant in it, so it runs in a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jinja2 import nodes
from jinja2.ext import loopcontrols
from jinja2.optimizer import optimize
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from deepmnn.exporters.mnn.chat_expression import (
    Expressions,
    InexpressibleError,
    describe,
    literal,
)


def lower(request: dict[str, Any]) -> dict[str, str]:
    """Lowers request["source"], a template that knows the variables request["known"].

    Returns {"template": ...}, or {"inexpressible": what MNN has no form for}.
    """
    try:
        return {"template": _lower(request["source"], request["known"])}
    except MemoryError:
        raise
    except Exception as error:  # a parser on a stranger's text
        return {"inexpressible": str(error)[:500] or type(error).__name__}


def _lower(source: str, known: Mapping[str, Any]) -> str:
    environment = ImmutableSandboxedEnvironment(  # it computes what is constant
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    template = environment.parse(source)
    names = template.find_all(nodes.Name)
    changed = {name.name for name in names if name.ctx != "load"} & known.keys()
    fixed = {name: value for name, value in known.items() if name not in changed}
    body = optimize(_Constants(fixed).visit(template), environment).iter_child_nodes()
    given = [f"{{% set {name} = {literal(known[name])} %}}" for name in sorted(changed)]
    return "".join(given) + _Statements().written(body)


class _Constants(NodeTransformer):
    """Puts the values of known variables in the place of their names."""

    def __init__(self, known: Mapping[str, Any]) -> None:
        self._known = known

    def visit_Name(self, node: nodes.Name) -> nodes.Expr:  # noqa: N802
        if node.ctx != "load" or node.name not in self._known:
            return node
        value = self._known[node.name]
        return nodes.Const(value, lineno=node.lineno, environment=node.environment)


class _Statements:
    def __init__(self) -> None:
        self._expressions = Expressions()

    def written(self, body: Iterable[nodes.Node]) -> str:
        text, expressions = "", self._expressions
        for node in body:
            outer, expressions.needed = expressions.needed, []
            statement = self._statement(node)
            text += "".join(expressions.needed) + statement
            expressions.needed = outer
        return text

    def _statement(self, node: nodes.Node) -> str:
        match node:
            case nodes.Output(nodes=parts):
                return "".join(map(self._output, parts))
            case nodes.If():
                return self._if(node)
            case nodes.For(else_=[], recursive=False):
                return self._for(node)
            case nodes.Assign(target=nodes.Name(name=name), node=value):
                if self._expressions.is_list(value):
                    self._expressions.lists.add(name)
                return f"{{% set {name} = {self._expressions.value(value)} %}}"
            case nodes.Assign(target=nodes.NSRef(name=name, attr=attr), node=value):
                return f"{{% set {name}.{attr} = {self._expressions.value(value)} %}}"
        raise InexpressibleError(describe(node))

    def _output(self, node: nodes.Node) -> str:
        match node:
            case nodes.TemplateData(data=text):
                return f"{{{{ {literal(text)} }}}}"
            case nodes.Const(value=value):
                return f"{{{{ {literal(str(value))} }}}}"
            case (
                nodes.Compare()
                | nodes.Test()
                | nodes.Not()
                | nodes.Getattr(node=nodes.Name(name="loop"), attr="first" | "last")
            ):  # MNN prints true, jinja2 True
                return f"{{{{ 'True' if {self._expressions.value(node)} else 'False' }}}}"
            case _:
                return f"{{{{ {self._expressions.value(node)} }}}}"

    def _if(self, node: nodes.If) -> str:
        otherwise = "" if _raises(node.else_) else self.written(node.else_)
        branches: list[tuple[nodes.Node, str]] = []
        for branch in (node, *node.elif_):
            if _raises(branch.body):  # so whatever is rendered at all does not come here
                continue
            if not isinstance(branch.test, nodes.Const):
                branches.append((branch.test, self.written(branch.body)))
            elif branch.test.value:
                otherwise = self.written(branch.body)
                break
        while branches and not branches[-1][1] and not otherwise:
            branches.pop()
        text, word = "", "if"
        for test, body in branches:
            text += f"{{% {word} {self._expressions.truth(test)} %}}{body}"
            word = "elif"
        if not branches:
            return otherwise
        return text + (f"{{% else %}}{otherwise}" if otherwise else "") + "{% endif %}"

    def _for(self, node: nodes.For) -> str:
        target = node.target
        targets = target.items if isinstance(target, nodes.Tuple) else [target]
        names = [name.name for name in targets if isinstance(name, nodes.Name)]
        if len(names) != len(targets):
            raise InexpressibleError(describe(node))
        head = f"for {', '.join(names)} in {self._expressions.value(node.iter)}"
        if node.test is not None:
            before = len(self._expressions.needed)
            head += f" if {self._expressions.truth(node.test)}"
            if len(self._expressions.needed) > before:  # it is due for each element
                raise InexpressibleError(describe(node.test))
        return f"{{% {head} %}}{self.written(node.body)}{{% endfor %}}"


def _raises(body: Iterable[nodes.Node]) -> bool:
    """Whether the statements call raise_exception, whatever the conversation."""
    parts = [part for node in body if isinstance(node, nodes.Output) for part in node.nodes]
    calls = [part.node for part in parts if isinstance(part, nodes.Call)]
    return any(isinstance(call, nodes.Name) and call.name == "raise_exception" for call in calls)
