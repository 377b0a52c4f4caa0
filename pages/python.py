"""The page of the Python interface: what `online` and `online.client` offer to programs."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any, Final

PUBLIC: Final = ("online", "online.client")
"""Modules whose ``__all__`` is public: see docs/compatibility.md."""

_WIDTH: Final = 100
_HEAD: Final = """# Python interface

<!-- Made by `python -m pages` from the docstrings: change them there. -->

Programs may import these names, and nothing else is promised: [what stays](compatibility.md).
How to use them: [recipes](cookbook.md#from-python), [in one process](embedded.md).
"""


def page() -> str:
    """Each public name with its signature and its docstring."""
    return _HEAD + "".join(_module(name) for name in PUBLIC)


def _module(name: str) -> str:
    module = importlib.import_module(name)
    parts = [f"\n## {name}\n"]
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value):
            parts.append(_class(public, value))
        elif callable(value):
            parts.append(f"\n### {public}\n\n{_signature(public, value)}\n{_doc(value)}")
        else:
            parts.append(f"\n### {public}\n\nThe version of the package, as text.\n")
    return "".join(parts)


def _class(name: str, value: type) -> str:
    builtin = issubclass(value, Exception | dict)  # whose constructors are not the point
    made = "" if builtin else f"{_signature(name, value)}\n"
    parts = [f"\n### {name}\n\n{made}{_doc(value)}"]
    for method, function in _methods(value):
        parts.append(f"\n#### {name}.{method}\n\n{_signature(method, function)}\n{_doc(function)}")
    return "".join(parts)


def _methods(value: type) -> Iterator[tuple[str, Any]]:
    """Public methods that the class or a base of ours has, in their order."""
    found: dict[str, Any] = {}
    for base in reversed(value.__mro__):
        if base.__module__.split(".")[0] == "online":
            found |= vars(base)
    for name, function in found.items():
        if not name.startswith("_") and inspect.isfunction(function):
            yield name, function


def _signature(name: str, value: Any) -> str:
    """The name with its parameters, one a line if they are too long for one."""
    signature = inspect.signature(value)
    written = _written(value) if inspect.isclass(value) else {}
    name = f"async {name}" if inspect.iscoroutinefunction(value) else name
    shown: list[str] = []
    for one in signature.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown.append(_parameter(one, written.get(one.name, one.annotation)))
    back = "" if inspect.isclass(value) else f" -> {_annotation(signature.return_annotation)}"
    given = f"{name}({', '.join(shown)}){back}"
    if len(given) > _WIDTH:
        given = f"{name}(\n    " + ",\n    ".join(shown) + f",\n){back}"
    return f"```python\n{given}\n```\n"


def _written(value: type) -> dict[str, Any]:
    """Annotations of a class's fields as the source has them."""
    found: dict[str, Any] = {}
    for base in reversed(value.__mro__):
        found |= inspect.get_annotations(base)
    return found


def _parameter(one: inspect.Parameter, annotation: Any) -> str:
    star = "*" * (one.kind is one.VAR_POSITIONAL) + "**" * (one.kind is one.VAR_KEYWORD)
    text = f"{star}{one.name}: {_annotation(annotation)}"
    if one.default is one.empty:
        return text
    return f"{text} = {'…' if callable(one.default) else repr(one.default)}"


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "Any")


def _doc(value: Any) -> str:
    """The docstring as Markdown: sections become lists."""
    out: list[str] = []
    section = ""
    for line in (inspect.getdoc(value) or "").split("\n"):
        if re.fullmatch(r"[A-Z][a-z]+:", line):
            section = line[:-1]
            out += ["", f"**{section}**", ""]
        elif section == "Returns":
            out.append(line.strip())
        elif section and line.startswith(" " * 8) and out[-1]:
            out[-1] += f" {line.strip()}"
        elif section and line.startswith(" " * 4):
            name, _, said = line.strip().partition(":")
            out.append(f"- `{name}`:{said}".rstrip(":"))
        else:
            out.append(line)
    text = "\n".join(out).strip() + "\n"
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return re.sub(r"\n{3,}", "\n\n", text.replace("``", "`"))
