"""Detects secrets: names of secret variables, values of known formats, and the values of such variables in this environment.

Secrets are never written: a config with one is an error, and messages show `<hidden>` instead.
"""

import os
import re
from collections.abc import Iterator

HIDDEN = "<hidden>"
LONG, SHORT = (
    8,
    6,
)  # minimum length at which the value of a secret variable is searched anywhere, and as a whole word
NAME = re.compile(
    r"TOKEN(?!IZ|S(?:_|$))|SECRET|PASSW(?:OR)?D|PASSPHRASE|(?:^|_)PASS|_PWD$|CREDENTIAL|(?:^|_)KEYS?(?:_|$)"
    r"|(?:API|ACCESS|PRIVATE|AUTH)_?KEY|_AUTH$|_PAT$",
    re.IGNORECASE,
)
VALUE = re.compile(
    r"\b(?:hf_\w{30,}|sk-[\w-]{20,}|gh[pousr]_\w{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}|nvapi-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|dckr_pat_[\w-]{20,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # a password in a URL
    r"|(?<=[?&])(?:api_?key|access_?token|token|key|secret|password)=[^&\s]+"
    r"|\bBearer\s+[\w.~+/-]{8,}=*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----",
    re.IGNORECASE,
)
# `NAME=value` and `NAME: value`; values that begin with $ are lookups, with / or ~ paths
_NAMED = re.compile(r"\b((?:cluster\.env\.)?[A-Za-z_]\w*)(?:\s*=\s*|:\s+)")
_VALUE_WORD = re.compile(r"['\"]?[^\s,'\"\[\](){}$/~][^\s,'\"\[\](){}]*")
_VALUE_TEXT = re.compile(r"\[[^\]]*\]?|'[^']*'?|\"[^\"]*\"?|[^\s{$/~'\"]\S*")  # as it may stand in a message


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name probably holds a secret: `*_KEY`, `*_PASS*`, `*TOKEN*` and the like."""
    return NAME.search(name) is not None


def holds_secret(text: str) -> bool:
    """Whether the text contains a secret: of a known format, or the value of a secret variable of this environment."""
    return VALUE.search(text) is not None or any(known in text for known in _known(LONG))


def assigns_secret(text: str) -> bool:
    """The same for text of a job script: also `NAME=value` with a secret name, and short values as whole words."""
    if any(is_secret_name(match[1]) and _VALUE_WORD.match(text, match.end()) for match in _NAMED.finditer(text)):
        return True
    return holds_secret(text) or any(_word(known).search(text) for known in _known(SHORT))


def hidden(text: str) -> str:
    """The text with `<hidden>` in place of every secret."""
    for known in sorted(_known(LONG), key=len, reverse=True):
        text = text.replace(known, HIDDEN)
    for known in _known(SHORT):
        text = _word(known).sub(HIDDEN, text)
    return _without_values(VALUE.sub(HIDDEN, text))


def _without_values(text: str) -> str:
    """Hide the value after the name of a secret variable; config keys such as `eval.tokens` are lower case."""
    shown, done = "", 0
    for match in _NAMED.finditer(text):
        name = match[1].removeprefix("cluster.env.")
        value = _VALUE_TEXT.match(text, match.end())
        if match.start() >= done and value and is_secret_name(name) and (name != match[1] or name.isupper()):
            shown += text[done : match.end()] + HIDDEN
            done = value.end()
    return shown + text[done:]


def _word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)")


def _known(least: int) -> Iterator[str]:
    for name, value in os.environ.items():
        if len(value) >= least and value[0] not in "/~." and is_secret_name(name):
            yield value
