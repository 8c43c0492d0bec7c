"""Masking of secrets in every text that leaves a process: answers, events, stored values, log lines, spans, output.

A process registers its secrets when it starts. ``mask`` then replaces them, also if a library has encoded them: in an
escaped form (``repr``, JSON, HTML), percent-encoded, as base64 or as hex. ``mask_error`` is for the texts of errors. It
also hides what libraries quote in errors: the values of HTTP headers and the passwords in URLs.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator
from html import escape
from typing import Any, Final

import orjson

from agentstream.errors import MASK
from agentstream.protocol.plain_json import json_bytes

MIN_SECRET_CHARS: Final = 6  # a shorter secret may be part of other words

# Users of local model servers write these words as API keys. They are no secrets, and may be words of a text.
_PLACEHOLDERS: Final = frozenset({"ollama", "lm-studio", "not-needed", "no-key", "no-api-key", "unused", "placeholder"})
_BASE64_BITS: Final = 6
_CHARACTER_NAMES: Final = {"\n": "n", "\r": "r", "\t": "t", "\b": "b", "\f": "f", "\0": "0"}
_HEADER_VALUE: Final = re.compile(r"""(?i)(header (?:value|name):? )b?(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""")
# A password that is not percent-encoded may contain any of "/?#@": it reaches to the last "@".
_URL_LOGIN: Final = re.compile(r"""(://)(?:[^\s/?#@:'"]*:[^\s'"]*|[^\s/?#@'"]+)@""")
# The same names as in config/secret_values.py, which a process that only logs need not import.
_URL_QUERY: Final = re.compile(r"""([?&][^\s=&?'"]*(?i:key|token|secret|pass\w*|auth|sig|signature)=)[^\s&'"]+""")

_secrets: set[str] = set()
_literals: list[str] = []
_patterns: list[re.Pattern[str]] = []


def register_secrets(secrets: Iterable[str]) -> None:
    """Mask these secrets from now on in this process. Ignores known ones, short ones and the words of placeholders."""
    for secret in {form for given in secrets for form in (given, given.strip())}:
        if len(secret) < MIN_SECRET_CHARS or secret.lower() in _PLACEHOLDERS or secret in _secrets:
            continue
        _secrets.add(secret)
        for form in _encodings(secret):
            if (pattern := _tolerant(form)) == re.escape(form):
                _literals.append(form)
            else:
                _patterns.append(re.compile(pattern))
    _literals.sort(key=len, reverse=True)  # a secret may be a part of another one
    _patterns.sort(key=lambda pattern: len(pattern.pattern), reverse=True)


def forget_secrets() -> None:
    """Forget all secrets, for tests."""
    _secrets.clear()
    _literals.clear()
    _patterns.clear()


def mask(text: str) -> str:
    """Return the text with stars in the place of every registered secret, whatever its encoding."""
    for pattern in _patterns:
        text = pattern.sub(MASK, text)
    for literal in _literals:
        if literal in text:
            text = text.replace(literal, MASK)
    return text


def mask_error(text: str) -> str:
    """Return the text of an error without secrets, values of HTTP headers and passwords in URLs."""
    if "header" in text:
        text = _HEADER_VALUE.sub(r"\1(hidden)", text)
    if "://" in text:
        text = _URL_QUERY.sub(rf"\1{MASK}", _URL_LOGIN.sub(rf"\1{MASK}@", text))
    return mask(text)


def mask_json(value: Any) -> Any:  # noqa: ANN401 -- JSON
    """Return a value for JSON with every text masked. Returns the same object if there are no secrets.

    A value that JSON lacks, such as a dataclass, is converted first. A value that cannot be JSON is returned unchanged.
    """
    if not _secrets:
        return value
    try:
        return _masked(value)
    except Exception:  # noqa: BLE001 -- a class of the agent's may raise anything; the writer of the JSON reports it
        return value


def _masked(value: Any) -> Any:  # noqa: ANN401 -- JSON
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {mask(key): _masked(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    return _masked(orjson.loads(json_bytes(value)))


def _encodings(secret: str) -> Iterator[str]:
    """Yield the secret, its base64 and its hex form. The other encodings keep its letters: see ``_tolerant``."""
    yield secret
    data = secret.encode(errors="surrogatepass")
    yield data.hex()
    yield data.hex().upper()
    for before in range(3):  # base64 has another form for each position modulo 3
        encoded = b64encode(bytes(before) + data + bytes(2)).decode()
        # Only the characters that no neighbour of the secret changes, so that padding does not matter either.
        core = encoded[-(-8 * before // _BASE64_BITS) : 8 * (before + len(data)) // _BASE64_BITS]
        yield core
        if (url_safe := core.translate(str.maketrans("+/", "-_"))) != core:
            yield url_safe


def _tolerant(text: str) -> str:
    """Return a pattern for a text in which each character may be percent-encoded, escaped or written as an entity.

    Letters and digits are never encoded, nor are ``-``, ``_``, ``.`` and ``~``.
    """
    return "".join(re.escape(char) if _is_plain(char) else _any_form(char) for char in text)


def _is_plain(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char in "-_.~")


def _any_form(char: str) -> str:
    data = char.encode(errors="surrogatepass")
    units = char.encode("utf-16-be", errors="surrogatepass")
    forms = {
        rf"\\*{re.escape(char)}",
        "".join(rf"%(?:25)*(?i:{byte:02x})" for byte in data),
        "".join(rf"\\+x(?i:{byte:02x})" for byte in data),
        "".join(rf"\\+u(?i:{units[at : at + 2].hex()})" for at in range(0, len(units), 2)),
        rf"\\+U(?i:{ord(char):08x})",
        rf"&#0*{ord(char)};",
        rf"&#[xX]0*(?i:{ord(char):x});",
    }
    if ord(char) <= 0xFF:  # noqa: PLR2004 -- repr writes Latin-1 as \xhh
        forms.add(rf"\\+x(?i:{ord(char):02x})")
    if char in _CHARACTER_NAMES:
        forms.add(rf"\\+{_CHARACTER_NAMES[char]}")
    if (entity := escape(char)) != char:
        forms.add(re.escape(entity))
    if char == " ":
        forms.add(r"\+")
    return f"(?:{'|'.join(sorted(forms))})"
