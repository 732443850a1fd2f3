"""Make every file of the set: `cd tests/data/documents-3 && python -m make_files`.

Needs python-docx, openpyxl, python-pptx, ReportLab, Pillow, Playwright with Chromium, and the Debian packages
fonts-wqy-zenhei, fonts-wqy-microhei and fonts-noto-cjk. The files are kept in the repository.
"""

from pathlib import Path

from .render import make

FILES = Path(__file__).resolve().parent.parent / "files"
FILES.mkdir(exist_ok=True)
make(FILES)
for path in sorted(FILES.iterdir()):
    print(f"{path.stat().st_size:>9,}  {path.name}")
