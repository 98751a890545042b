"""The Jinja environment of chat templates: Jinja's immutable sandbox with fast paths for the most frequent look-ups.

Invariant: the same output and the same errors as `ImmutableSandboxedEnvironment`. Only exact built-in types and a fixed list
of public names take the fast path; everything else goes to the sandbox.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.filters import do_trim
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sft_hydra.chat.jinja_codegen import DICT_NAMES, SAFE_STR_METHODS, InlineCodeGenerator
from sft_hydra.chat.resource_limits import power, times

PLAIN_JSON = json.JSONEncoder(ensure_ascii=False)


class GenerationTag(Extension):
    """The tag `{% generation %}...{% endgeneration %}` of transformers. It has no effect: spans come from marks (template.py)."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class FastSandbox(ImmutableSandboxedEnvironment):
    """`ImmutableSandboxedEnvironment` with fast paths for plain dicts, strings and loop variables, and with limits on
    integer arithmetic (resource_limits.py)."""

    intercepted_binops = frozenset(["*", "**"])
    code_generator_class = InlineCodeGenerator

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left * right` or `left ** right`. Raises LimitError for integers that are too large."""
        return times(left, right) if operator == "*" else power(left, right)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`obj.attribute` in a template."""
        kind = type(obj)
        if kind is dict:
            if attribute not in DICT_NAMES:
                return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        elif kind is str:
            if attribute in SAFE_STR_METHODS:
                return getattr(obj, attribute)
        elif (kind is LoopContext or kind is Namespace) and not attribute.startswith("_"):
            try:
                return getattr(obj, attribute)
            except AttributeError:
                pass
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as in Jinja)
        """A call in a template."""
        if type(getattr(__obj, "__self__", None)) is str and __obj.__name__ in SAFE_STR_METHODS:
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


def make_environment(now: Callable[[], datetime] = datetime.now) -> FastSandbox:
    """The environment with what chat templates use: `tojson` that keeps Unicode, `raise_exception`, `strftime_now` (the time
    `now()`), `break` and `continue`, and white-space trimming as in transformers."""
    environment = FastSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    environment.filters["trim"] = _trim
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if not (ensure_ascii or indent or separators or sort_keys):
        return PLAIN_JSON.encode(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _trim(value: Any, chars: str | None = None) -> str:
    return value.strip(chars) if value.__class__ is str else do_trim(value, chars)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
