"""The spellings of values. Each function returns the value in its usual form, or raises ValueError with that form.

An environment gives text only, and files, shells and orchestrators give it with line ends, quotes and units.
"""

import json
import re
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

from agentstream.config import service_links
from agentstream.config.secret_values import without_secrets
from agentstream.protocol import broker_url

# Whitespace, and characters without a width that editors and web pages add: zero-width spaces and byte order marks.
_AROUND: Final = re.compile(r"\A[\s\0\u200b-\u200d\u2060\ufeff]+|[\s\0\u200b-\u200d\u2060\ufeff]+\Z")

_MS: Final = 1000.0
_SECONDS_PER: Final = {"ms": 1 / _MS, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT_NAMES: Final = {
    "ms": "ms msec msecs millisecond milliseconds",
    "s": "s sec secs second seconds",
    "m": "m min mins minute minutes",
    "h": "h hr hrs hour hours",
    "d": "d day days",
}
_UNIT_OF: Final = {name: unit for unit, names in _UNIT_NAMES.items() for name in names.split()}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)? ?[a-z]+ ?)+")
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]+)")

_BYTES_PER: Final = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmg])(?:i?b)?|b|bytes?)")

_LEVELS: Final = {"warn": "warning", "err": "error", "10": "debug", "20": "info", "30": "warning", "40": "error"}

_LOCAL_NAMES: Final = frozenset({"localhost", "localhost.localdomain", "localhost4", "localhost6", "ip6-localhost"})
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_TOOL_PATTERN: Final = re.compile(r"[A-Za-z0-9_*?-]{1,64}")
_CREDENTIAL_HEADERS: Final = ("authorization", "cookie", "api-key", "apikey", "api_key")
_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*\.?")


def clean(value: object) -> object:
    """Return a text without whitespace and quotes around it; ``docker --env-file`` keeps the quotes of a value."""
    if not isinstance(value, str):
        return value
    text = _AROUND.sub("", value)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" and text[0] not in text[1:-1]:
        text = _AROUND.sub("", text[1:-1])
    return text


def split(value: object) -> object:
    """Return the entries of a list: separated by commas or line ends, or a JSON array of texts."""
    if not isinstance(value, str):
        return value
    if value.startswith("["):
        try:
            entries = json.loads(value)
        except ValueError:
            entries = None
        if not (isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)):
            message = "write the entries with commas between them and without brackets: one,two"
            raise ValueError(message)
    else:
        entries = re.split(r"[,\r\n]", value)
    return tuple(dict.fromkeys(filter(None, (str(clean(entry)) for entry in entries))))


CommaList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(split)]


def _seconds(value: object) -> object:
    return _duration(value, "s")


def _whole_seconds(value: object) -> object:
    seconds = _duration(value, "s")
    return int(seconds) if isinstance(seconds, float) and seconds.is_integer() else seconds


def _milliseconds(value: object) -> object:
    milliseconds = _duration(value, "ms")
    return int(milliseconds) if isinstance(milliseconds, float) and milliseconds.is_integer() else milliseconds


def _duration(value: object, unit: str) -> object:
    """Return a duration with units, such as 30s, 500ms or 1h30m, as a number of ``unit``; other values unchanged."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value.lower()):
        return value
    seconds = 0.0
    for number, name in _DURATION_PART.findall(value.lower()):
        if name not in _UNIT_OF:
            message = f"{name!r} is not a unit of time: write ms, s, m, h or d, such as 30s or 500ms"
            raise ValueError(message)
        seconds += float(number) * _SECONDS_PER[_UNIT_OF[name]]
    return round(seconds / _SECONDS_PER[unit], 9)


Seconds = Annotated[float, BeforeValidator(_seconds)]
WholeSeconds = Annotated[int, BeforeValidator(_whole_seconds)]
Milliseconds = Annotated[int, BeforeValidator(_milliseconds)]


def _size(value: object) -> object:
    found = _SIZE.fullmatch(value.lower()) if isinstance(value, str) else None
    if found is None:
        return value
    size = float(found[1]) * _BYTES_PER.get(found[2], 1)
    return int(size) if size.is_integer() else size


Size = Annotated[int, BeforeValidator(_size)]


def _tokens(value: object) -> object:
    found = re.fullmatch(r"(\d+)[kK]", value) if isinstance(value, str) else None
    return int(found[1]) * 1000 if found else value


Tokens = Annotated[int, BeforeValidator(_tokens)]


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _level(value: object) -> object:
    lower = str(value).lower()
    return _LEVELS.get(lower, lower)


Lower = BeforeValidator(_lower)
Level = BeforeValidator(_level)


def _port(value: object) -> object:
    if not isinstance(value, str):
        return value
    if service_links.is_address(value):
        message = (
            "this is the address of a Kubernetes Service, which Kubernetes writes into every pod under the name of the "
            f"Service: {service_links.REMEDY}, or set this variable there to the port"
        )
        raise ValueError(message)
    host, colon, port = value.rpartition(":")
    if colon and host:
        message = f"this is an address: write the port alone ({port}), and the host as the setting of the host"
        raise ValueError(message)
    return port


Port = Annotated[int, BeforeValidator(_port)]


def _host(value: object) -> object:
    """Return an address to listen on, without the brackets of IPv6 and in lower case; ``*`` means all addresses."""
    if not isinstance(value, str):
        return value
    text = value.strip("[]") if value.startswith("[") and value.endswith("]") else value
    if text == "*":
        return "0.0.0.0"  # noqa: S104 -- ``*`` means all addresses
    if "://" in text or "/" in text:
        host = urlsplit(text if "://" in text else f"//{text}").netloc.rpartition("@")[2]
        message = f"this is a URL: write the address alone{f', such as {host}' if host else ''}"
        raise ValueError(message)
    host, colon, port = text.rpartition(":")
    if colon and ":" not in host.partition("]")[2] and (host.endswith("]") or ":" not in host):
        message = (
            f"write the address alone ({host.strip('[]') or '127.0.0.1'}), and the port ({port}) as its own setting"
        )
        raise ValueError(message)
    if ":" not in text and text and not _HOST_NAME.fullmatch(text):
        message = "write an IP address or the name of a host, such as 127.0.0.1, ::1 or localhost"
        raise ValueError(message)
    return text.lower() if ":" not in text else text


Host = Annotated[str, BeforeValidator(_host)]


def is_local_name(host: str) -> bool:
    """Return whether a host name stands for this machine only."""
    name = host.lower().removesuffix(".")
    return name in _LOCAL_NAMES or name.endswith(".localhost")


def header_value(key: str) -> str:
    """Check a key that is sent in an Authorization header. The error never quotes it."""
    if key.lower().startswith("bearer "):
        message = "leave out the word Bearer: write the key alone"
        raise ValueError(message)
    at = next((at for at, char in enumerate(key, 1) if not "!" <= char <= "~"), None)
    if at is not None:
        kind = "a space, a line end" if key[at - 1].isspace() else "a control character or one that is not ASCII"
        message = f"character {at} of {len(key)} cannot be part of a key ({kind}): copy the key again"
        raise ValueError(message)
    return key


def http_url(value: str) -> str:
    """Return the base URL of an HTTP API: with scheme and host, without the path of one route."""
    if "://" not in value:
        host = re.split(r"[:/]", value)[0]
        near = is_local_name(host) or "." not in host or host.replace(".", "").isdigit()
        message = f"the scheme is missing: write {'http' if near else 'https'}://{without_secrets(value)}"
        raise ValueError(message)
    parts = _parts(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        message = "write a URL that begins with http:// or https:// and names a host, such as http://localhost:11434/v1"
        raise ValueError(message)
    if parts.query or parts.fragment:
        message = "leave out the part from '?' or '#' on: clients append the paths of the API to this URL"
        raise ValueError(message)
    for route in ("/chat/completions", "/completions", "/responses"):
        if parts.path.rstrip("/").endswith(route):
            return value.rstrip("/").removesuffix(route)
    return value


def redis_url(value: str) -> str:
    """Return the URL of Redis with the usual spelling of its scheme. No error quotes a password."""
    if "://" not in value:
        message = f"the scheme is missing: write redis://{without_secrets(value)}, or rediss:// for TLS"
        raise ValueError(message)
    return broker_url.parse(value).text


def _parts(url: str) -> Any:  # noqa: ANN401 -- urllib's SplitResult
    """Parse a URL. The error does not quote it, because a part of a password may be in the place of the port."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        parts = None
    if parts is None:
        message = (
            "the part between the host and the path is not a port, or '[' has no ']': write host:port, with a number "
            "from 0 to 65535; percent-encode '#', '/', '?', '@' and ':' in a password"
        )
        raise ValueError(message)
    return parts


def origin(value: str) -> str:
    """Return an origin exactly as browsers send it: lower case, without a trailing slash and without a usual port."""
    if value in {"*", "null"}:
        return value
    if "://" not in value:
        message = f"entry {value!r}: the scheme is missing: write https://{value.strip('/')}"
        raise ValueError(message)
    parts = _parts(value)
    host = parts.hostname or ""
    if "*" in host:
        message = f"entry {value!r}: wildcards are not supported: write each origin, or * alone for all"
        raise ValueError(message)
    if not host or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        port = f":{parts.port}" if parts.port else ""
        message = f"entry {value!r}: an origin is scheme, host and port only: write {parts.scheme}://{host}{port}"
        raise ValueError(message)
    name = f"[{host}]" if ":" in host else host if host.isascii() else host.encode("idna").decode()
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{name}" + (f":{parts.port}" if parts.port not in {None, usual} else "")


def agent_spec(value: str) -> str:
    """Return the name of an agent without spaces around its colon."""
    text = re.sub(r"\s*:\s*", ":", value)
    module, colon, attribute = text.partition(":")
    is_file = module.endswith(".py")
    if not is_file and re.fullmatch(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*:[^\W\d]\w*(?:\.[^\W\d]\w*)*", text):
        return text
    form = "write package.module:attribute"
    if is_file or "/" in module or "\\" in module:
        module = re.sub(r"[/\\]+", ".", module.removeprefix("./").removesuffix(".py")).strip(".")
        form += f", with the name of the module instead of its file, such as {module}:{attribute or 'agent'}"
    elif not colon and "." in text:
        before, _, last = text.rpartition(".")
        form += f", with a colon before the attribute, such as {before}:{last}"
    elif not colon:
        form += f", such as {text if text.isidentifier() else 'my_agents'}:agent"
    raise ValueError(form)


def tool_pattern(entry: str) -> str:
    """Check a name of a tool, or a pattern for such names."""
    if not _TOOL_PATTERN.fullmatch(entry):
        message = (
            f"{entry!r:.80} is not the name of a tool: write names such as send_mail, patterns such as files__*, the "
            "word destructive, or the word all, with commas between them"
        )
        raise ValueError(message)
    return entry


def caller_header(name: str) -> str:
    """Check the name of a request header that agents may read."""
    if not _HEADER_NAME.fullmatch(name):
        message = f"{name!r} is not the name of a header: write names such as X-User-Id, with commas between them"
        raise ValueError(message)
    if any(word in name.lower() for word in _CREDENTIAL_HEADERS):
        message = f"the header {name} holds credentials, which agents must not see: remove it"
        raise ValueError(message)
    return name
