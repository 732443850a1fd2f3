"""The kinds of files that are read, in one place; importing this module loads no reader and no library."""

# By suffix: the module of `peg_rag.readers` and its function.
SUFFIXES: dict[str, str] = {
    ".txt": "text:read_plain",
    ".md": "text:read_markdown",
    ".markdown": "text:read_markdown",
    ".html": "html:read_html",
    ".htm": "html:read_html",
    ".pdf": "pdf:read_pdf",
    ".docx": "docx:read_docx",
    ".pptx": "pptx:read_pptx",
    ".xlsx": "xlsx:read_xlsx",
    ".csv": "records:read_csv",
    ".tsv": "records:read_csv",
    ".jsonl": "records:read_jsonl",
    ".eml": "mail:read_eml",
    ".msg": "mail:read_msg",
    ".epub": "epub:read_epub",
}
PLAIN_TEXT = (".txt", ".md", ".markdown", ".csv", ".tsv", ".jsonl")  # read without a converter
_SECOND_NAMES = (".markdown", ".htm")
KINDS = ", ".join(suffix.removeprefix(".") for suffix in SUFFIXES if suffix not in _SECOND_NAMES)  # for help texts

_HINTS = {
    ".doc": "save it as docx",
    ".wps": "save it as docx",
    ".rtf": "save it as docx",
    ".odt": "save it as docx",
    ".pages": "export it as docx",
    ".xls": "save it as xlsx",
    ".xlsm": "save it as xlsx",
    ".et": "save it as xlsx",
    ".ods": "save it as xlsx",
    ".ppt": "save it as pptx",
    ".odp": "save it as pptx",
    ".json": "write one object a line and name it .jsonl",
    ".mobi": "convert it to epub",
    ".zip": "unpack it",
    ".rar": "unpack it",
    ".7z": "unpack it",
}


def hint_for_suffix(suffix: str) -> str:
    """What to do with files of a kind that is not read, such as `save it as docx`; empty where nothing is known."""
    return _HINTS.get(suffix.lower(), "")
