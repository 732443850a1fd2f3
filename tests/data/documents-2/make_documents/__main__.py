"""Make every file of the set: `cd tests/data/documents-2 && python -m make_documents`.

Needs python-docx, openpyxl, python-pptx, ReportLab, Pillow, and the Debian packages fonts-wqy-zenhei and
fonts-wqy-microhei. The files are kept in the repository.
"""

from pathlib import Path

from .render import make

FILES = Path(__file__).resolve().parent.parent / "files"
FILES.mkdir(exist_ok=True)
make(FILES)
for path in sorted(FILES.iterdir()):
    print(f"{path.stat().st_size:>9,}  {path.name}")
