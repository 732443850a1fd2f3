"""Make every file of the set: `cd tests/data/documents && python -m make`.

Needs python-docx, openpyxl, XlsxWriter, python-pptx, ReportLab, EbookLib, Pillow, Playwright with Chromium, and the
Debian packages fonts-wqy-zenhei, fonts-wqy-microhei and fonts-noto-cjk. The files are kept in the repository, so that
the tests need none of these.
"""

from . import books, pdf_chromium, pdf_reportlab, scans, sheets, slides, texts, words
from .common import FILES

FILES.mkdir(exist_ok=True)
for module in (pdf_reportlab, pdf_chromium, words, sheets, slides, scans, texts, books):
    module.make()
for path in sorted(FILES.iterdir()):
    print(f"{path.stat().st_size:>9,}  {path.name}")
