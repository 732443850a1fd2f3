"""Turns the file names that clients send into names that are safe to write to a folder, and to show."""

import re
import unicodedata

MAX_BYTES = 180  # file systems allow 255; this leaves room for the names of temporary files
_MAX_SUFFIX_BYTES = 16
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_FORBIDDEN = re.compile(r'[<>:"|?*\s]+')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def sanitize_filename(name: str) -> str:
    """The last component of a path, NFC-normalised, without path separators, leading dots and invisible characters.

    `../../etc/passwd` becomes `passwd`, `.profile` becomes `profile`, an empty name becomes `document`. Idempotent:
    `sanitize_filename(sanitize_filename(x)) == sanitize_filename(x)`.
    """
    basename = re.split(r"[/\\]", name)[-1]
    visible = unicodedata.normalize("NFC", _INVISIBLE.sub("", basename))
    stem, suffix = _split_suffix(_FORBIDDEN.sub("_", visible).strip("._ "))
    max_stem_bytes = MAX_BYTES - len(suffix.encode())
    stem = stem.encode()[:max_stem_bytes].decode(errors="ignore").strip("._ ") or "document"
    safe_name = unicodedata.normalize("NFC", stem + suffix)
    if _RESERVED.fullmatch(safe_name):
        return f"_{safe_name}"[:MAX_BYTES]
    return safe_name


def _split_suffix(name: str) -> tuple[str, str]:
    """A name's stem and its suffix with the dot; a part too long for a suffix belongs to the stem."""
    stem, dot, suffix = name.rpartition(".")
    if not dot or len(suffix.encode()) > _MAX_SUFFIX_BYTES:
        return name, ""
    return stem, dot + suffix
