"""The code of a method as a part of a run's identity: an edited formula does not return its old result."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable

from losses.base import Loss, Method
from util.files import digest

FOLLOWED = ("losses.", "pseudo_labels")  # modules whose functions count if a method's functions use them


def code_digest(method: Method) -> str:
    """Digest of the method's loss and rule, with the functions, classes and constants that they use. Comments,
    docstrings and the layout of the code do not count."""
    rule = method.pseudo_labels
    of_rule = (rule.score, rule.label, rule.ranking) if rule else ()
    pending: list[Callable | None] = [method.loss, method.regulariser, *of_rule]
    code: dict[str, str] = {}
    while pending:
        part = pending.pop()
        if part is None or part is Loss or part.__qualname__ in code:
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(part)))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
        code[part.__qualname__] = ast.unparse(tree)
        known = vars(sys.modules[part.__module__])
        for name in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} & known.keys()):
            value = known[name]
            if inspect.isfunction(value) or inspect.isclass(value):
                pending += [value] if value.__module__.startswith(FOLLOWED) else []
            elif isinstance(value, int | float | str | tuple | dict):
                code[f"{part.__module__}.{name}"] = repr(value)
    return digest(code, length=8)
