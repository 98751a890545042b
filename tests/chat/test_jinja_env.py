"""The environment of chat templates prints and refuses what Jinja's own sandbox does, with look-ups compiled in place or not."""

from typing import Any

import pytest
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from sft_hydra.chat.jinja_env import make_environment


class Odd(dict[str, Any]):
    """A dict that is not a plain one."""

    role = "attribute"


CONTEXTS: list[dict[str, Any]] = [
    {"m": {"role": "user", "content": "Hi", "items": "an item", "get": 3, "": 1}},
    {"m": {"content": None, "tool_calls": []}},
    {"m": Odd(role="key", content="x")},
    {"m": Odd(content="x")},
    {"m": "a text"},
    {"m": ["a", "list"]},
    {"m": None},
    {"m": {"first": "a key", "index": 7, "role": {"content": "deep"}}},
    {"m": {"role": " a text \n", "content": Markup(" <b> ")}},
    {"m": {"role": 7, "content": ("a", "tuple")}},
    {"m": Markup(" <b> ")},
    {},
]
EXPRESSIONS = [
    "m.role",
    "m['role']",
    "m.role.content",
    "m['role']['content']",
    "m.items",
    "m['items']",
    "m.get",
    "m[0]",
    "m['']",
    "m.content is none",
    "m.role is defined",
    "m['role'] is defined",
    "m.__class__",
    "m['__class__']",
    "m.role.__class__.__mro__",
    "m.upper()",
    "m['upper']()",
    "m.role | default('nothing')",
    "(m.role if m.role is defined else 'none') ~ m['content']",
    "loop.first",
    "[m.content, m['content'], m.first, m.index]",
]
SUBJECTS = ["m", "m.role", "m['role']", "m.content", "m['content']", "m.role.content", "unknown", "loop.role"]
FORMS = [
    *(
        f"{{}} is {test}"
        for test in ("defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number")
    ),
    "({} is not defined, {} is not none)",
    "{} is defined and {} is string and {} is not mapping",
    *(f"{{}} | {call}" for call in ("trim", "trim('H')", "trim(chars=' ')", "trim | length")),
    "{}.strip()",
    "{}.strip(' a')",
    "{}.split('t')",
    "{}.split()",
    "{}.split('')",
    "{}.split('t', 1)",
    "{}.split('t')[-1].lstrip('\\n')",
    "{}.startswith('H')",
    "{}.replace('a', 'b')",
    "{}.replace('a')",
    "{}.upper(1)",
    "{}.upper(*[])",
    "{}.title(x=1)",
    "{}.format(1)",
    "{} ~ '-' ~ 1 ~ {}",
]
EXPRESSIONS += [form.replace("{}", subject) for form in FORMS for subject in SUBJECTS]
BODIES = [
    "{% set d = {'a': unknown, 'b': none} %}{{ d.a is defined }}{{ d['a'] is undefined }}{{ d.a is none }}{{ d.b is none }}{{ d.c is none }}",
    "{% set n = namespace(a=unknown) %}{{ n.a is defined }}{{ n.b is defined }}{{ n.b }}{{ n.__class__ }}{{ n._x }}{{ n['a'] }}",
    "{% set n = namespace() %}{% for x in [1, 2] %}{% set n.last = x %}{{ n.last }}{{ n.last is number }}{% endfor %}{{ n.last }}{{ n.lost.x }}",
    "{% set n = namespace(a=' a ') %}{{ n.a.strip() }}{{ n.a | trim }}{% set n = {'a': 'no namespace'} %}{{ n.a }}",
    "{% macro f(n) %}{{ n.a }}{{ n is defined }}{{ n | trim }}{% endmacro %}{% set n = namespace(a=1) %}{{ f({'a': 2}) }}{{ f() }}{{ f(n) }}",
    "{% for x in [' a ', none, 3] %}{{ x | trim }}{{ x is string }}{{ x is none }}{{ y is defined }}{% set y = x %}{{ y }}{% endfor %}",
    "{% for x in [1, 2] %}{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.nextitem }}{{ loop['index0'] }}{{ loop.depth }}{% endfor %}",
    "{% set loop = {'first': 'a key'} %}{{ loop.first }}{{ loop['first'] }}{{ loop.missing }}",
    "{% macro p(m) %}{{ m.role }}{{ m['content'] }}{% endmacro %}{{ p({'role': 'r'}) }}{{ p() }}{{ p('text') }}",
    "{% set ns = namespace(role='n') %}{{ ns.role }}{{ ns['role'] }}{% set ns.role = 2 %}{{ ns.role }}",
    "{% for m in [{'role': 1}, 'x', {}] %}{{ m.role }}-{{ m['role'] }}{% endfor %}",
    "{% set m = m %}{{ m.role }}",
]


def outcome(environment: Any, source: str, context: dict[str, Any]) -> str:
    try:
        return str(environment.from_string(source).render(context))
    except (TemplateError, TypeError, AttributeError, ValueError) as problem:
        return f"{type(problem).__name__}: {problem}"


@pytest.mark.parametrize("source", [f"{{{{ {expression} }}}}" for expression in EXPRESSIONS] + BODIES)
def test_prints_and_refuses_what_the_sandbox_of_jinja_does(source: str) -> None:
    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for context in CONTEXTS:
        expected = outcome(sandbox, source, context)
        found = outcome(make_environment(), source, context)
        if " at 0x" not in expected:  # the address of an object
            assert found == expected, context


def test_json_keeps_unicode_and_takes_the_options_of_transformers() -> None:
    value = {"b": "é", "a": [1, 2.5, None, True]}
    for options in ("", "ensure_ascii=false", "indent=2", "separators=(',', ':')", "sort_keys=true"):
        source = f"{{{{ value | tojson({options}) }}}}"
        assert '"é"' in make_environment().from_string(source).render(value=value)
    compact = make_environment().from_string("{{ value | tojson(separators=(',', ':'), sort_keys=true) }}")
    assert compact.render(value=value) == '{"a":[1,2.5,null,true],"b":"é"}'
    assert make_environment().from_string("{{ v | tojson }}").render(v={"a": "<b>&'"}) == '{"a": "<b>&\'"}'
