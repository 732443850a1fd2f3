"""What the scripts share: where files go, which fonts they use, and archives without the time of day in them."""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

FILES = Path(__file__).resolve().parent.parent / "files"
SANS_FONT = "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc"  # Debian: fonts-wqy-zenhei
SCAN_FONT = "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc"  # Debian: fonts-wqy-microhei
_MADE = "2025-05-06T01:00:00Z"
_DATE = re.compile(rb"(<dcterms:(?:created|modified)[^>]*>)[^<]*|(<meta property=\"dcterms:modified\">)[^<]*")

Rows = Sequence[Sequence[str]]


def repack(path: Path) -> None:
    """Write a zip archive (docx, xlsx, pptx, epub) again, the same on every day: fixed times, the same order."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            method = zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED
            info = zipfile.ZipInfo(name, (2025, 5, 6, 9, 0, 0))
            info.compress_type = method
            archive.writestr(info, _DATE.sub(lambda m: (m[1] or m[2]) + _MADE.encode(), data))
