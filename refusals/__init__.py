"""The base class of the service's errors: typed fields and a message template.

A refusal (an error for a refused request) declares its fields as annotations, in the order of the
constructor's arguments, and its message as a format string that names them::

    class PartitionSealed(ReplayError):
        partition: int
        end: int
        text = "partition {partition} is sealed at offset {end}; register a new one"

``PartitionSealed(3, 17)`` and ``PartitionSealed(partition=3, end=17)`` are then equivalent, type
checkers know both forms, and the error is pickled as its class and the values of its fields.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, ClassVar, dataclass_transform

__all__ = ["Refusal", "installing", "meant", "reason"]


def reason(error: BaseException) -> str:
    """Return the error's message; for an OSError without its number and file name."""
    words = error.strerror if isinstance(error, OSError) else None
    return words or str(error) or type(error).__name__


def meant(name: str, known: Iterable[str], more: str = "") -> str:
    """Return a question suggesting the known name that is similar to ``name``, and ``more``."""
    near = difflib.get_close_matches(name[:80], list(known), n=1)
    return f"Did you mean `{near[0]}`? {more}".rstrip() if near else more


def installing(extra: str) -> str:
    """Return the command that installs an extra's packages without replacing a checkout."""
    if (Path(__file__).parents[1] / "constraints.txt").exists():
        return f"pip install -c constraints.txt -e '.[{extra}]' in the checkout"
    return f"pip install 'online-learning-service[{extra}]'"


@dataclass_transform(eq_default=False)
class Refusal(Exception):
    """An error that carries its values as fields and names the remedy in its message.

    A class without fields accepts any arguments, as Exception does.  A message that has to be
    computed is defined by ``__str__``.  Two errors are equal only if they are the same object;
    their ``args`` can be compared.

    Attributes:
        definite: True: the call had no effect and will have none.  False: it may have had its
            effect.
        text: The message, as a format string (:meth:`str.format`) that names fields.
    """

    definite: bool = True
    text: ClassVar[str] = ""
    _fields: ClassVar[tuple[Parameter, ...]] = ()

    def __init_subclass__(cls) -> None:
        """Add a constructor to a class that declares fields and defines none itself."""
        super().__init_subclass__()
        own = [
            Parameter(
                name,
                Parameter.POSITIONAL_OR_KEYWORD,
                default=vars(cls).get(name, Parameter.empty),
                annotation=annotation,
            )
            for name, annotation in inspect.get_annotations(cls).items()
        ]
        if own and "__init__" not in vars(cls):
            cls._fields = (*cls._fields, *own)
            cls.__init__ = _constructor(cls._fields)  # type: ignore[method-assign]

    def __str__(self) -> str:
        return self.text.format_map(vars(self)) if self.text else super().__str__()


def _constructor(fields: tuple[Parameter, ...]) -> Callable[..., None]:
    """Return a constructor that takes these fields by position or name, and stores them."""
    signature = Signature(fields)
    names = tuple(signature.parameters)

    def __init__(self: Refusal, *args: Any, **kwargs: Any) -> None:
        if kwargs or len(args) != len(names):  # bind only if necessary: it is ten times slower
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            args = given.args
        super(Refusal, self).__init__(*args)  # pickle calls the class with ``args``
        vars(self).update(zip(names, args, strict=True))

    itself = Parameter("self", Parameter.POSITIONAL_ONLY)
    __init__.__signature__ = Signature([itself, *fields])  # type: ignore[attr-defined]
    return __init__
