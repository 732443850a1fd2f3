"""Time and memory of reading, per page or file, each in a process of its own.

    python benchmarks/readers.py                       # a PDF of 500 pages made here, and every 50th page alone
    python benchmarks/readers.py FILE [FILE ...]       # these files

Prints, for each file: pages (or 1), sections, seconds, milliseconds a page, the process's peak memory in MB, and beside
them how long pdfminer's and pdfium's plain text take, which keep no columns, tables or headings.
"""

import argparse
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PAGES = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--pages", type=int, default=PAGES, help="of the PDF that is made")
    parser.add_argument("--measure", nargs=2, metavar=("HOW", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], Path(arguments.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files or [
            make_pdf(Path(folder, f"{pages}-pages.pdf"), pages) for pages in (arguments.pages // 10, arguments.pages)
        ]
        print(f"{'file':<40}{'how':<10}{'pages':>6}{'parts':>8}{'s':>8}{'ms/page':>9}{'MB':>7}")
        for file in files:
            ways = ("peg-rag", "pdfminer", "pdfium") if file.suffix.lower() == ".pdf" else ("peg-rag",)
            for how in ways:
                row = measure_apart(how, file)
                print(
                    f"{file.name[:38]:<40}{how:<10}{row['pages']:>6}{row['parts']:>8}{row['seconds']:>8.2f}"
                    f"{1000 * row['seconds'] / row['pages']:>9.0f}{row['megabytes']:>7.0f}"
                )


def measure_apart(how: str, file: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", how, str(file)]
    return dict(json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout))


def measure(how: str, file: Path) -> dict[str, float]:
    logging.disable(logging.ERROR)
    pages = [1]
    started = time.perf_counter()
    if how == "peg-rag":
        from peg_rag.readers import read_sections

        parts = len(read_sections(file, on_page=lambda done, total: pages.append(total)))
    elif how == "pdfminer":
        from pdfminer.high_level import extract_text

        parts = extract_text(str(file)).count("\f")
        pages.append(parts)
    else:
        import pypdfium2

        document = pypdfium2.PdfDocument(file)
        parts = sum(bool(page.get_textpage().get_text_range()) for page in document)
        pages.append(len(document))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
    return {"pages": max(pages), "parts": parts, "seconds": seconds, "megabytes": peak}


def make_pdf(path: Path, pages: int) -> Path:
    """Pages of Chinese text in one or two columns, every fourth with a table, all with a header and a page number."""
    from reportlab.lib import colors
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfbase import pdfmetrics
    from reportlab.pdfbase.cidfonts import UnicodeCIDFont
    from reportlab.pdfgen.canvas import Canvas
    from reportlab.platypus import Table

    pdfmetrics.registerFont(UnicodeCIDFont("STSong-Light"))
    canvas = Canvas(str(path), pagesize=A4)
    for page in range(pages):
        canvas.setFont("STSong-Light", 8)
        canvas.drawString(72, 810, "差旅与费用报销制度汇编")
        canvas.drawString(290, 30, f"第 {page + 1} 页")
        canvas.setFont("STSong-Light", 14)
        canvas.drawString(72, 770, f"第{page + 1}章 报销标准")
        canvas.setFont("STSong-Light", 10)
        columns = (72, 310) if page % 3 == 0 else (72,)
        for x in columns:
            for line in range(22):
                count = 21 if len(columns) == 2 else 44
                text = f"第{page}页第{line}行写明员工出差应当提前三个工作日提交申请，"
                text += "注明事由行程和预算，由直属主管批准后方可成行。"
                canvas.drawString(x, 740 - 16 * line, text[:count])
        if page % 4 == 0:
            table = Table(
                [["职级", "一线城市", "其他"], *([f"P{row}", f"{row}00元/晚", f"{row}50元/晚"] for row in range(12))]
            )
            table.setStyle(
                [("GRID", (0, 0), (-1, -1), 0.5, colors.black), ("FONT", (0, 0), (-1, -1), "STSong-Light", 9)]
            )
            table.wrapOn(canvas, 400, 300)
            table.drawOn(canvas, 72, 90)
        canvas.showPage()
    canvas.save()
    return path


if __name__ == "__main__":
    main()
