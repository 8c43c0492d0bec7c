"""Masking: no encoding of a registered secret is left in a text, and other texts stay as they are."""

import base64
import html
import json
import re
from collections.abc import Callable
from pathlib import PurePath
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentstream.protocol.plain_json import json_bytes
from agentstream.telemetry.masking import forget_secrets, mask, mask_error, mask_json, register_secrets

ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda text: repr(text.encode()),
    "repr of repr": lambda text: repr(repr(text.encode())),
    "JSON": json.dumps,
    "JSON with Unicode": lambda text: json.dumps(text, ensure_ascii=False),
    "JSON with escaped slashes": lambda text: json.dumps(text).replace("/", r"\/"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "URL": quote,
    "URL, all": lambda text: quote(text, safe=""),
    "URL, lower case": lambda text: re.sub("%..", lambda found: found[0].lower(), quote(text, safe="")),
    "form": quote_plus,
    "URL twice": lambda text: quote(quote(text, safe=""), safe=""),
    "HTML": html.escape,
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
}
SECRETS = ["sk-secretkey123", "sk-secretkey123\n", "pä\"ss' w/or+d=\\x\t&<☃😀>", "Zm9v/+=b:ar9", "%41%42%43"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_masked_in_every_encoding(secret: str, encoding: str) -> None:
    """A secret is masked as it is, escaped, percent-encoded, in JSON, in HTML and in hex, and nothing else is."""
    register_secrets([secret])
    masked = mask(f"before {ENCODINGS[encoding](secret)} after")
    assert re.fullmatch(r"before [b\"'\\]*\*\*\*(?:[\"'\\nr+]|\n|%\d*\w*)* after", masked)


@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode], ids=["standard", "for URLs"])
@pytest.mark.parametrize("before", ["", "u:", "user:", "Bearer "])
@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_masked_in_base64(secret: str, before: str, encode: Callable[[bytes], bytes]) -> None:
    """A secret is masked in base64, with and without padding, alone and behind a user name."""
    register_secrets([secret])
    for after in ("", "!", "!!"):
        encoded = encode((before + secret + after).encode()).decode()
        for form in (encoded, encoded.rstrip("="), quote(encoded, safe="")):
            masked = mask(form)
            assert "***" in masked
            assert len(masked.replace("***", "")) <= 4 * (len(before) + len(after) + 3)


def test_whitespace_around_a_secret_is_no_part_of_it() -> None:
    """A secret with a line end is also masked without it."""
    register_secrets(["sk-secretkey123\n"])
    assert mask("key sk-secretkey123.") == "key ***."


def test_short_secrets_and_placeholders_are_no_secrets() -> None:
    """Short texts and the usual placeholders for API keys are not masked, because they are also words."""
    register_secrets(["none", "ollama", "abc", ""])
    assert mask("none of the ollama models is abc") == "none of the ollama models is abc"


def test_the_longer_of_two_secrets_is_masked_wholly() -> None:
    """If one secret is a part of another one, the longer one is masked."""
    register_secrets(["secret-1", "secret-1-longer", "secret-1/longest"])
    assert mask("secret-1-longer secret-1 secret-1/longest") == "*** *** ***"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Illegal header value b'Bearer sk-x\\n'", "Illegal header value (hidden)"),
        ('Illegal header value b"Bearer \'sk-x"', "Illegal header value (hidden)"),
        ("character(s) in header value: 'Bearer sk-x\\n'", "character(s) in header value: (hidden)"),
        ("Invalid header value b'sk-x' here", "Invalid header value (hidden) here"),
        ("cannot reach redis://user:p#w/x@h:1 now", "cannot reach redis://***@h:1 now"),
        ("cannot reach https://token@h/v1", "cannot reach https://***@h/v1"),
        ("cannot reach redis+sentinel://u:p@h1:1,h2:2/m now", "cannot reach redis+sentinel://***@h1:1,h2:2/m now"),
        (
            "no 'redis+sentinel://h1,h2/m?sentinel_password=p;w&db=1'",
            "no 'redis+sentinel://h1,h2/m?sentinel_password=***&db=1'",
        ),
        ("GET https://h/p?sig=abc&x=1&access_key=d", "GET https://h/p?sig=***&x=1&access_key=***"),
        ("GET https://h/p?signature=abc&auth=d", "GET https://h/p?signature=***&auth=***"),
        ("see https://h/@user and a@b.c", "see https://h/@user and a@b.c"),
    ],
)
def test_errors_show_no_header_value_and_no_login(text: str, masked: str) -> None:
    """The value of a header and the login of a URL are hidden in errors, also if they are not registered."""
    assert mask_error(text) == masked


def test_json_is_masked_at_every_depth() -> None:
    """All texts of a JSON value are masked, also keys; without secrets the same object is returned."""
    value = {"a": ["sk-secretkey123", {"sk-secretkey123": 1}], "b": None, "c": 1.5}
    assert mask_json(value) is value
    register_secrets(["sk-secretkey123"])
    assert mask_json(value) == {"a": ["***", {"***": 1}], "b": None, "c": 1.5}


@pytest.mark.parametrize(
    "value", [{"sk-secretkey123"}, b"sk-secretkey123", {("sk-secretkey123", 1): 2}, PurePath("/sk-secretkey123")]
)
def test_values_that_json_lacks_are_masked(value: object) -> None:
    """A secret in a set, bytes, a path or a key that is no text is masked too."""
    register_secrets(["sk-secretkey123"])
    masked = json_bytes(mask_json({"a": value, "b": 1}))
    assert b"***" in masked
    assert b"secretkey" not in masked


@settings(deadline=None, max_examples=300)
@given(st.text(min_size=6).filter(lambda text: len(text.strip()) >= 6), st.text(), st.text())
def test_any_text_can_be_a_secret(secret: str, before: str, after: str) -> None:
    """Any text of at least 6 characters is masked in its JSON form and in its repr."""
    forget_secrets()
    register_secrets([secret])
    for encoded in (json.dumps(secret)[1:-1], repr(secret)[1:-1], secret):
        assert encoded not in mask(f"{before} {encoded} {after}") or encoded in "***"
