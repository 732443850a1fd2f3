"""Make every file of one set, or of some: `cd tests/data && python -m make_documents documents-4`.

Needs python-docx, openpyxl, python-pptx, ReportLab, Pillow, Playwright, Chromium, and the Debian packages
fonts-wqy-zenhei, fonts-wqy-microhei and fonts-noto-cjk. The files are kept in the repository.
"""

import argparse
from importlib import import_module
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent
SETS = tuple(f"documents-{number}" for number in range(2, 23))

parser = argparse.ArgumentParser(description="Make the files of the sets of documents.")
parser.add_argument("sets", nargs="+", choices=SETS)
for name in parser.parse_args().sets:
    folder = DATA / name / "files"
    folder.mkdir(parents=True, exist_ok=True)
    import_module(f"make_documents.{name.replace('-', '_')}.files").make(folder)
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size:>9,}  {path.name}")
