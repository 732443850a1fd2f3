"""Signs that Word draws from fonts whose codes say nothing without the font: ticks, boxes, ≤ and °."""

_TICKS = {0x6C: "●", 0x6E: "■", 0x6F: "☐", 0xA8: "☐", 0xD8: "➢", 0xE0: "→", 0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑"}
_BOXES = {0x4F: "✗", 0x50: "✓", 0x51: "☒", 0x52: "☑", 0x53: "☒", 0x54: "☒", 0x98: "●", 0xA2: "■", 0xA3: "☐"}
_GREEK = dict(zip(b"abcdefghijklmnopqrstuxyzCDFGLPQSUWY", "αβχδεφγηιϕκλμνοπθρστυξψζΧΔΦΓΛΠΘΣΥΩΨ", strict=True))
_SIGNS = dict(
    zip(
        (0xA3, 0xA5, 0xAE, 0xB0, 0xB1, 0xB3, 0xB4, 0xB7, 0xB8, 0xB9, 0xBB, 0xCE, 0xD0, 0xD6, 0xD7, 0xE5, 0xF2),
        "≤∞→°±≥×•÷≠≈∈∠√·∑∫",
        strict=True,
    )
)
_FONTS = {"wingdings": _TICKS, "wingdings 2": _BOXES, "symbol": _GREEK | _SIGNS}


def read_symbol(font: str, code: str) -> str:
    """The character that a font shows for a code such as `F0FE`; empty for one that is not known."""
    try:
        number = int(code, 16) & 0xFF  # Word puts them in the private area from F000 on
    except ValueError:
        return ""
    return _FONTS.get(font.strip().lower(), {}).get(number, "")
