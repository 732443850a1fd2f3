"""File names as clients send them → names that are safe to write in a folder, and to show."""

import re
import unicodedata

MAX_BYTES = 180  # file systems take 255; temporary files and a suffix need some
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_FORBIDDEN = re.compile(r'[<>:"|?*\s]+')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_name(name: str) -> str:
    """The last part of a path, in one spelling, without what could leave a folder, hide, or deceive a reader.

    `../../etc/passwd` becomes `passwd`, `.profile` becomes `profile`, an empty name `document`. What is safe already
    stays as it is: `safe_name(safe_name(x)) == safe_name(x)`.
    """
    last = re.split(r"[/\\]", name)[-1]
    plain = unicodedata.normalize("NFC", _UNSEEN.sub("", last))
    plain = _FORBIDDEN.sub("_", plain).strip("._ ")
    stem, dot, suffix = plain.rpartition(".")
    if not dot or len(suffix.encode()) > 16:
        stem, dot, suffix = plain, "", ""
    room = MAX_BYTES - len((dot + suffix).encode())
    stem = stem.encode()[:room].decode(errors="ignore").strip("._ ") or "document"
    shortened = unicodedata.normalize("NFC", stem + dot + suffix)
    return f"_{shortened}"[:MAX_BYTES] if _RESERVED.fullmatch(shortened) else shortened
