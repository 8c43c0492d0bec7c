"""The tool that returns the current time in a place."""

import re
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import cache
from typing import Any, ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from agentstream.tools.base import ToolError

# Cities without their own IANA zone, and countries where all or nearly all people use the same time. Other places are
# found by the last part of a zone's name: "Tokyo" is the last part of "Asia/Tokyo".
_PLACES: dict[str, str] = {
    **dict.fromkeys(["new york city", "nyc", "washington", "washington dc", "boston", "miami"], "America/New_York"),
    **dict.fromkeys(["atlanta", "philadelphia"], "America/New_York"),
    **dict.fromkeys(["montreal", "ottawa"], "America/Toronto"),
    **dict.fromkeys(["la", "san francisco", "sf", "seattle", "las vegas", "san diego"], "America/Los_Angeles"),
    **dict.fromkeys(["houston", "dallas", "austin", "new orleans"], "America/Chicago"),
    **dict.fromkeys(["rio", "rio de janeiro", "brasilia"], "America/Sao_Paulo"),
    **dict.fromkeys(["argentina"], "America/Argentina/Buenos_Aires"),
    **dict.fromkeys(["uk", "england", "scotland", "wales", "great britain", "united kingdom"], "Europe/London"),
    **dict.fromkeys(["edinburgh", "manchester", "glasgow", "birmingham"], "Europe/London"),
    **dict.fromkeys(["germany", "munich", "hamburg", "frankfurt", "cologne"], "Europe/Berlin"),
    **dict.fromkeys(["france", "lyon", "marseille"], "Europe/Paris"),
    **dict.fromkeys(["spain", "barcelona"], "Europe/Madrid"),
    **dict.fromkeys(["italy", "milan", "naples"], "Europe/Rome"),
    **dict.fromkeys(["switzerland", "geneva", "basel", "bern"], "Europe/Zurich"),
    **dict.fromkeys(["austria"], "Europe/Vienna"),
    **dict.fromkeys(["netherlands", "holland", "rotterdam", "the hague"], "Europe/Amsterdam"),
    **dict.fromkeys(["belgium"], "Europe/Brussels"),
    **dict.fromkeys(["sweden"], "Europe/Stockholm"),
    **dict.fromkeys(["norway"], "Europe/Oslo"),
    **dict.fromkeys(["denmark"], "Europe/Copenhagen"),
    **dict.fromkeys(["finland"], "Europe/Helsinki"),
    **dict.fromkeys(["greece"], "Europe/Athens"),
    **dict.fromkeys(["ireland"], "Europe/Dublin"),
    **dict.fromkeys(["ukraine", "kyiv", "kiev"], "Europe/Kyiv"),
    **dict.fromkeys(["czechia", "czech republic"], "Europe/Prague"),
    **dict.fromkeys(["hungary"], "Europe/Budapest"),
    **dict.fromkeys(["romania"], "Europe/Bucharest"),
    **dict.fromkeys(["st petersburg", "saint petersburg"], "Europe/Moscow"),
    **dict.fromkeys(["china", "beijing", "shenzhen", "guangzhou"], "Asia/Shanghai"),
    **dict.fromkeys(["osaka", "kyoto"], "Asia/Tokyo"),
    **dict.fromkeys(["south korea", "korea", "busan"], "Asia/Seoul"),
    **dict.fromkeys(["india", "delhi", "new delhi", "mumbai", "bangalore", "bengaluru", "chennai"], "Asia/Kolkata"),
    **dict.fromkeys(["pakistan", "lahore", "islamabad"], "Asia/Karachi"),
    **dict.fromkeys(["vietnam", "hanoi", "saigon"], "Asia/Ho_Chi_Minh"),
    **dict.fromkeys(["thailand"], "Asia/Bangkok"),
    **dict.fromkeys(["philippines"], "Asia/Manila"),
    **dict.fromkeys(["uae", "united arab emirates", "abu dhabi"], "Asia/Dubai"),
    **dict.fromkeys(["saudi arabia", "mecca"], "Asia/Riyadh"),
    **dict.fromkeys(["tel aviv"], "Asia/Jerusalem"),
    **dict.fromkeys(["ankara"], "Europe/Istanbul"),
    **dict.fromkeys(["nigeria", "abuja"], "Africa/Lagos"),
    **dict.fromkeys(["kenya"], "Africa/Nairobi"),
    **dict.fromkeys(["south africa", "cape town", "pretoria", "durban"], "Africa/Johannesburg"),
    **dict.fromkeys(["morocco"], "Africa/Casablanca"),
    **dict.fromkeys(["new zealand", "wellington"], "Pacific/Auckland"),
}

# Countries with several time zones, with examples of cities to ask for instead.
_MULTI_ZONE_COUNTRIES: dict[str, str] = {
    **dict.fromkeys(
        ["usa", "us", "united states", "united states of america", "america"],
        "New York, Chicago, Denver or Los Angeles",
    ),
    "canada": "Toronto, Winnipeg or Vancouver",
    "mexico": "Mexico City, Cancun or Tijuana",
    "brazil": "Sao Paulo, Manaus or Recife",
    "russia": "Moscow, Yekaterinburg or Vladivostok",
    "australia": "Sydney, Adelaide or Perth",
    "indonesia": "Jakarta, Makassar or Jayapura",
}

_OFFSET = re.compile(r"(?:utc|gmt) ?([+-]) ?([0-9]{1,2})(?::?([0-5][0-9]))?")
MAX_OFFSET_HOURS = 14  # the largest offset in use, in Kiribati
_SHOWN_CHARS = 60  # an error quotes this much of an unknown place


class CurrentTime:
    """The tool: ``{"place": "Tokyo"}`` returns the date and time in Tokyo; without a place, in UTC."""

    name = "current_time"
    read_only = True
    description = "Return the current date and time in a place: a city, a country or an IANA time zone."
    parameters: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "for example Tokyo, Germany or Europe/Paris; default: UTC"},
        },
        "additionalProperties": False,
    }

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """``now`` is the clock; it returns an aware datetime."""
        self._now = now

    async def run(self, arguments: dict[str, Any]) -> str:
        """Return, for example, ``Tuesday 24 November 2026, 09:15:03 (Asia/Tokyo, UTC+09:00)``.

        Raises ToolError as ``find_zone`` does.
        """
        zone = find_zone(arguments.get("place") or "UTC")
        local = self._now().astimezone(zone)
        offset = local.strftime("%z")
        offset = f"UTC{offset[:3]}:{offset[3:5]}"
        name = str(zone)
        place = name if name in {"UTC", offset} else f"{name}, {offset}"
        return f"{_WEEKDAYS[local.weekday()]} {local.day} {_MONTHS[local.month - 1]} {local:%Y, %H:%M:%S} ({place})"


# Not from strftime, whose names depend on the process's locale.
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def find_zone(place: str) -> tzinfo:
    """Return the time zone of a city, a country, an IANA name or an offset such as UTC+2.

    Raises ToolError for an unknown place and for a country with several time zones.
    """
    if fixed := _fixed_offset(place.strip().lower()):
        return fixed
    shown = place.strip()[:_SHOWN_CHARS]
    key = _key(place)
    for candidate in (key, key.removeprefix("the "), key.partition(",")[0].strip()):  # "Paris, France"
        if candidate in _MULTI_ZONE_COUNTRIES:
            message = f"{shown} has several time zones; name a city, such as {_MULTI_ZONE_COUNTRIES[candidate]}"
            raise ToolError(message)
        if name := _PLACES.get(candidate) or _zones_by_key().get(candidate):
            return _zone(name)
    message = f"no time zone is known for {shown!r}; name a large city or an IANA time zone"
    raise ToolError(message)


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC  # needs no database
    try:
        return ZoneInfo(name)
    except ZoneInfoNotFoundError as exc:
        message = f"the time zone {name} is not on this machine; install the Python package tzdata"
        raise ToolError(message) from exc


@cache
def _zones_by_key() -> dict[str, str]:
    """Return the IANA zones by full name and by last part. The first call reads their list from disk (10 ms)."""
    names = sorted(available_timezones() | {"UTC"}, key=lambda name: (name.count("/"), name))
    index = {_key(name): name for name in names}
    for name in names:
        # Etc/GMT+5 is 5 hours behind UTC, so its name misleads. US/Eastern and similar zones end in no place name.
        if not name.startswith(("Etc/", "US/", "Canada/", "SystemV/")):
            index.setdefault(_key(name.rpartition("/")[2]), name)
    return index


def _fixed_offset(text: str) -> timezone | None:
    match = _OFFSET.fullmatch(text.replace("−", "-"))  # noqa: RUF001 -- the minus sign is meant
    if match is None:
        return None
    hours, minutes = int(match[2]), int(match[3] or 0)
    if hours > MAX_OFFSET_HOURS:
        message = f"no place is {hours} hours from UTC; offsets go up to {MAX_OFFSET_HOURS}"
        raise ToolError(message)
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if match[1] == "-" else offset)


def _key(name: str) -> str:
    """Return the name in lower case, without accents and dots, and with single spaces as separators."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return " ".join(plain.casefold().replace(".", "").replace("_", " ").replace("-", " ").split())
