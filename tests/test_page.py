"""The page of `peg-rag serve` in a real browser: Chromium over a real server, with a real store and the bundled model.

`PEG_SCREENSHOTS=1 pytest -m '' tests/test_page.py` keeps a picture of each state in `docs/images/`.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from language_model_server import KEY as MODEL_KEY
from language_model_server import chatting
from sample_files import pdf
from serving_fixtures import KEY, RunningServer, running

from peg_rag import PEGEncoder, PEGIndex
from peg_rag.feedback import FeedbackStore
from peg_rag.ingest import sync

if TYPE_CHECKING:
    from playwright.sync_api import (
        Browser,
        BrowserContext,
        ConsoleMessage,
        FilePayload,
        FloatRect,
        Locator,
        Page,
        Request,
        ViewportSize,
    )

    Scheme = Literal["dark", "light"]
    Visit = Callable[..., Page]

REPO = Path(__file__).resolve().parent.parent
WEB, DIST = REPO / "web", REPO / "peg_rag" / "serving" / "web" / "dist"
AXE = WEB / "node_modules" / "axe-core" / "axe.min.js"
IMAGES = REPO / "docs" / "images"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESK: ViewportSize = {"width": 1200, "height": 860}
PHONE: ViewportSize = {"width": 360, "height": 740}

RULES = """# 差旅报销

员工出差回来，须在十个工作日内提交报销申请。报销需要发票、行程单和审批单，缺一不可。

高铁报销二等座，飞机报销经济舱；超出标准的部分由本人承担。

# 住宿

一线城市每晚不超过五百元，其他城市每晚不超过三百五十元。
"""
SCRIPT = """<script>window.ran = 1</script><img src=x onerror="window.ran = 2"> 是网页代码，安全审查要求把它原样显示。
<mark onmouseover="window.ran = 3">安全审查</mark>每季度进行一次。
"""
QUESTION = "差旅报销需要哪些材料？"

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium; on Debian: apt-get install chromium")


def test_the_build_is_of_these_sources() -> None:
    names = ["index.html", "package-lock.json"]
    names += [f"{folder}/{file.name}" for folder in ("src", "public") for file in (WEB / folder).iterdir()]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(f"{name}\n".encode() + (WEB / name).read_bytes())
    built = (DIST / "sources.sha256").read_text().strip()
    assert built == digest.hexdigest(), "web/ was changed and not built; run: npm run build --prefix web"


def test_the_build_holds_nothing_inline_and_loads_nothing_from_elsewhere() -> None:
    html = (DIST / "index.html").read_text()
    assert "<style" not in html
    assert "style=" not in html
    assert html.count("<script") == html.count('<script type="module" crossorigin src="./assets/page.js">') == 1
    assert "://" not in html + (DIST / "assets" / "page.css").read_text()


# -- a browser, and servers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the examples' documents, all from a folder."""
    folder = tmp_path_factory.mktemp("page") / "kb"
    with PEGEncoder("peg-mini") as encoder, PEGIndex(folder, identity=encoder.identity) as index:
        sync(REPO / "examples" / "data" / "sights", index, encoder, folder, model="peg-mini")
    return folder


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[RunningServer]:
    with running(store, "--max-upload-mb", "1") as started:
        yield started


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens a page in a browser context of its own; at the end, no error and no foreign request may have been seen."""
    contexts: list[BrowserContext] = []
    wrong: list[str] = []
    expected: list[str] = []

    def open_page(
        url: str,
        *,
        viewport: ViewportSize = DESK,
        scheme: Scheme = "light",
        locale: str = "zh-CN",
        key: str = "",
        failing: bool = False,
    ) -> Page:
        context = browser.new_context(
            viewport=viewport, color_scheme=scheme, locale=locale, reduced_motion="reduce", has_touch=viewport is PHONE
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        errors = expected if failing else wrong  # a refused request is an error in the console

        def note_request(request: Request) -> None:
            if not request.url.startswith(url):
                wrong.append(request.url)

        def note_error(message: ConsoleMessage) -> None:
            if message.type == "error":
                errors.append(message.text)

        page.on("request", note_request)
        page.on("console", note_error)
        if key:
            page.add_init_script(f"sessionStorage.setItem('peg-rag-key', '{key}')")
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong
    assert not any("Content Security Policy" in text for text in expected)


def ask(page: Page, question: str) -> None:
    page.locator("#question").fill(question)
    page.locator("#question").press("Enter")
    page.locator(".answer[aria-busy=false]").wait_for()


def send(page: Page, name: str, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    files: FilePayload = {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    page.locator("input[type=file]").set_input_files(files)


def delete(page: Page, name: str) -> None:
    page.get_by_role("button", name=f"删除《{name}》").click()
    page.get_by_role("dialog").get_by_role("button", name="删除").click()
    page.get_by_role("button", name=f"删除《{name}》").wait_for(state="detached")


def wait_for_focus(element: Locator) -> None:
    """The page moves the focus when it has drawn itself anew."""
    from playwright.sync_api import expect

    expect(element).to_be_focused()


def picture(page: Page, name: str) -> None:
    if os.environ.get("PEG_SCREENSHOTS"):
        from PIL import Image

        IMAGES.mkdir(parents=True, exist_ok=True)
        page.wait_for_timeout(150)
        shot = Image.open(io.BytesIO(page.screenshot()))
        shot.quantize(256, dither=Image.Dither.NONE).save(IMAGES / f"page-{name}.png", optimize=True)


# -- what readers do --------------------------------------------------------------------------------------------------


@needs_browser
def test_upload_ask_open_the_citation_delete_and_not_found(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url, failing=True)
    page.get_by_role("heading", name="问问你的文档").wait_for()
    picture(page, "start")
    ask(page, QUESTION)
    page.get_by_text("文档中没有找到答案").first.wait_for()

    send(page, "差旅报销制度.md", RULES)
    dialog = page.get_by_role("dialog", name="需要密钥")
    dialog.get_by_role("textbox", name="密钥").fill("a-wrong-key-0123456789")
    picture(page, "key")
    dialog.get_by_role("button", name="继续").click()
    dialog.get_by_text("这个密钥不对").wait_for()
    dialog.get_by_role("textbox", name="密钥").fill(KEY)
    dialog.get_by_role("textbox", name="密钥").press("Enter")
    page.get_by_text("已添加，2 个段落").wait_for()
    picture(page, "uploaded")
    assert page.evaluate("Object.keys(localStorage)") == []
    assert page.evaluate("Object.keys(sessionStorage).sort()") == ["peg-rag-history", "peg-rag-key"]

    ask(page, QUESTION)
    answer = page.get_by_role("region", name="回答", exact=True)
    assert "需要发票、行程单和审批单" in answer.locator(".quotes").inner_text()
    assert "没有经过语言模型" in answer.inner_text()
    assert "报销需要发票、行程单和审批单，缺一不可。[1]" in page.locator("#announcement").inner_text()
    picture(page, "answer")

    cite = answer.locator(".quotes button.cite").first
    assert cite.get_attribute("aria-label") == "出处 1：差旅报销制度.md，打开段落"
    cite.click()
    passage = page.get_by_role("dialog", name="差旅报销制度.md")
    assert "需要发票、行程单和审批单" in "".join(passage.locator("mark.quoted").all_inner_texts())
    assert "报销" in passage.locator("mark.word").all_inner_texts()
    picture(page, "passage")
    page.keyboard.press("Escape")
    passage.wait_for(state="detached")
    wait_for_focus(cite)

    page.get_by_role("button", name="删除《差旅报销制度.md》").click()
    confirm = page.get_by_role("dialog", name="删除这份文档？")
    picture(page, "delete")
    confirm.get_by_role("button", name="取消").click()
    delete(page, "差旅报销制度.md")
    wait_for_focus(page.locator("#documents-title"))  # once the list is drawn without it
    ask(page, QUESTION)
    page.get_by_text("文档中没有找到答案").first.wait_for()
    picture(page, "not-found")


@needs_browser
@pytest.mark.slow
def test_what_a_document_says_is_shown_and_never_run(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url, key=KEY)
    send(page, "<img src=x onerror=alert(1)>.txt", SCRIPT)
    page.get_by_text("已添加，1 个段落").wait_for()
    ask(page, "安全审查多久进行一次？")
    page.locator(".cite").first.click()
    assert "<script>window.ran = 1</script><img src=x onerror" in page.get_by_role("dialog").inner_text()
    assert "<mark onmouseover" in page.locator(".hits").inner_text()
    assert page.evaluate("[window.ran === undefined, document.images.length]") == [True, 1]
    page.keyboard.press("Escape")
    name = page.locator(".card .name").first.inner_text()
    delete(page, name)


@needs_browser
@pytest.mark.slow
def test_all_of_it_by_keyboard(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url, key=KEY)
    page.locator("#question").wait_for()
    press = page.keyboard.press

    def focused() -> str:
        """What has the focus, which must be seen: (accessible name or text)."""
        name: str = page.evaluate(
            """() => {
                const element = document.activeElement;
                const shown = element.tagName === "TEXTAREA" ? element.closest(".ask-box")
                    : element.type === "radio" ? element.nextElementSibling
                    : element.type === "file" ? element.closest("label") : element;
                const style = getComputedStyle(shown);
                if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2) return "focus is not seen";
                return element.getAttribute("aria-label") || element.innerText || element.value || element.id;
            }"""
        )
        return name

    press("Tab")
    assert focused() == "跳到提问"
    press("Enter")
    page.keyboard.type("八达岭长城的门票多少钱？")
    press("Enter")
    page.locator(".sources").wait_for()
    press("Tab")
    assert focused() == "提问"
    press("Tab")
    assert focused() == "hybrid"
    press("ArrowRight")
    assert focused() == "dense"
    page.locator(".answer[aria-busy=false]").wait_for()
    press("ArrowLeft")
    page.locator(".sources").wait_for()
    press("Tab")
    assert focused().startswith("出处 1：sights/badaling.md")
    press("Enter")
    page.get_by_role("dialog").wait_for()
    for _ in range(4):  # the focus stays in the dialog (or goes to the browser's own controls)
        press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    press("Escape")
    assert focused().startswith("出处 1：sights/badaling.md")
    for _ in range(20):
        press("Tab")
        if page.evaluate("document.activeElement.type") == "file":
            break
    assert focused() != "focus is not seen"
    press("/")
    page.keyboard.type("？")
    assert page.locator("#question").input_value().endswith("？")


@needs_browser
@pytest.mark.slow
def test_the_modes_are_compared_by_their_scores(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url)
    ask(page, "八达岭长城的门票多少钱？")
    for label, parts in (("混合", ["语义", "字词", "综合", "重排"]), ("语义", ["语义"]), ("字词", ["字词"])):
        page.get_by_role("radio", name=label, exact=True).check(force=True)
        page.locator(".answer[aria-busy=false]").wait_for()
        first = page.locator(".hit").first
        assert "badaling.md" in first.inner_text()
        assert [s.split()[0] for s in first.locator(".score").all_inner_texts()] == parts
    page.get_by_role("button", name="只问它：《sights/zoo.md》").click()
    page.get_by_text("只在《sights/zoo.md》中查找").wait_for()
    page.locator(".hit .name").filter(has_not_text="zoo.md").first.wait_for(state="detached")
    page.locator(".answer[aria-busy=false]").wait_for()
    names = page.locator(".hit .name").all_inner_texts()
    assert names
    assert all("zoo.md" in name for name in names)


@needs_browser
@pytest.mark.slow
def test_both_languages(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url, locale="en-GB")
    page.get_by_role("heading", name="Ask your documents").wait_for()
    assert page.evaluate("document.documentElement.lang") == "en"
    ask(page, "八达岭长城的门票多少钱？")
    page.get_by_text("Word for word from the documents").wait_for()
    picture(page, "english")
    page.reload()
    page.get_by_role("button", name="中文").click()
    page.get_by_role("heading", name="问问你的文档").wait_for()
    page.reload()
    page.get_by_role("heading", name="问问你的文档").wait_for()
    assert page.evaluate("[document.documentElement.lang, document.title]") == ["zh-CN", "peg-rag · 问你的文档"]
    visit(server.url, locale="fr-FR").get_by_role("heading", name="问问你的文档").wait_for()


@needs_browser
@pytest.mark.slow
def test_a_phone_needs_no_scrolling_sideways(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url, viewport=PHONE, key=KEY)
    page.locator("#question").wait_for()

    def wide() -> bool:
        return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))

    picture(page, "phone-start")
    assert not wide()
    name = "一个非常长而且没有空格的文件名" * 3 + "abcdefghij" * 6 + ".txt"
    send(page, name, "不间断的" + "abcdefghijklmnopqrstuvwxyz" * 20 + "文字说明书。")
    page.get_by_text("已添加").wait_for()
    ask(page, "不间断的文字说明书")
    assert not wide()
    page.get_by_role("button", name="只问它：《一个非常长").click()
    assert not wide()
    page.locator(".hit").first.click()
    page.get_by_role("dialog").wait_for()
    assert not wide()
    assert page.locator("dialog").evaluate("d => d.scrollWidth <= d.clientWidth && d.offsetWidth <= innerWidth")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="改为查找全部文档").click()
    ask(page, "八达岭长城的门票多少钱？")
    page.locator("#question").blur()
    page.evaluate("scrollTo(0, 0)")
    picture(page, "phone-answer")
    page.locator(".cite").first.click()
    page.locator("mark.quoted").first.wait_for()
    picture(page, "phone-passage")
    page.keyboard.press("Escape")
    small = page.evaluate(
        """[...document.querySelectorAll("button, a, .segments label")].filter(e => e.offsetParent)
            .filter(e => e.getBoundingClientRect().height < 24).map(e => e.outerHTML)"""
    )
    assert not small  # WCAG 2.2: targets of at least 24 pixels
    delete(page, page.locator(".card .name").first.inner_text())


# -- the original page ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, Path]]:
    """A writable server over PDFs, a scan, a table and a text: (server, folder of the documents)."""
    folder = tmp_path_factory.mktemp("office")
    documents = folder / "docs"
    documents.mkdir()
    for name in ("员工手册.pdf", "差旅报销制度-2025版.pdf", "设备验收单-扫描件.pdf", "门店信息.csv", "IT服务台手册.md"):
        shutil.copy(REPO / "tests" / "data" / "documents" / "files" / name, documents)
    with PEGEncoder("peg-mini") as encoder, PEGIndex(folder / "kb", identity=encoder.identity) as index:
        report = sync(documents, index, encoder, folder / "kb", model="peg-mini")
    assert not report.failed
    with running(folder / "kb") as server:
        yield server, documents


def open_citation(page: Page, question: str) -> Locator:
    ask(page, question)
    page.locator(".quotes button.cite").first.click()
    return page.get_by_role("dialog")


def wait_until_drawn(page: Page) -> None:
    """Until the page of the PDF is drawn, over which its text is then laid."""
    page.locator(".pdf-text span").nth(5).wait_for(state="attached")


def box_of(elements: Locator) -> FloatRect:
    """Where the first of these is seen."""
    box = elements.first.bounding_box()
    assert box is not None
    return box


def marked_text(page: Page) -> str:
    """The text of the original page that lies under the marks, as a reader sees it."""
    text: str = page.evaluate(
        """() => {
            const quotes = [...document.querySelectorAll(".pdf-quote")].map((mark) => mark.getBoundingClientRect());
            const inside = ({left, right, top, bottom}) => quotes.some((quote) =>
                (left + right) / 2 > quote.left && (left + right) / 2 < quote.right &&
                (top + bottom) / 2 > quote.top && (top + bottom) / 2 < quote.bottom);
            let text = "";
            for (const span of document.querySelectorAll(".pdf-text span")) {
                for (const node of span.childNodes) {
                    if (node.nodeType !== Node.TEXT_NODE) continue;
                    for (let at = 0; at < node.length; at++) {
                        const range = document.createRange();
                        range.setStart(node, at);
                        range.setEnd(node, at + 1);
                        if (inside(range.getBoundingClientRect())) text += node.data[at];
                    }
                }
            }
            return text;
        }"""
    )
    return text


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize(
    ("question", "quote"),
    [
        ("年假怎么休？", "年休假由法定年假和公司福利假两部分组成，按累计工龄计算。"),
        ("一线城市指哪些城市？", "一线城市指北京、上海、广州、深圳、杭州。"),
    ],
)
def test_a_citation_opens_the_original_page_with_the_sentence_marked(
    visit: Visit, office: tuple[RunningServer, Path], question: str, quote: str
) -> None:
    server, _ = office
    page = visit(server.url)
    scripts: list[str] = []
    page.on("request", lambda request: scripts.append(request.url.rpartition("/")[2]))
    ask(page, question)
    assert "pdf.js" not in scripts  # it is loaded only when a PDF is opened
    dialog = open_citation(page, question)
    wait_until_drawn(page)
    assert "pdf.js" in scripts
    assert "worker.js" in scripts
    assert unicodedata.normalize("NFKC", marked_text(page)).replace(" ", "") == unicodedata.normalize("NFKC", quote)
    box = box_of(dialog.locator(".pdf-box"))
    mark = box_of(dialog.locator(".pdf-quote"))
    assert box["x"] < mark["x"] + 5
    assert box["y"] < mark["y"] + mark["height"] / 2 < box["y"] + box["height"]
    assert 0 < mark["y"] < DESK["height"]  # it was scrolled to
    dark = page.locator(".pdf-page canvas").evaluate(
        """canvas => {
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            let dark = 0;
            for (let at = 0; at < data.length; at += 4) dark += data[at] < 100 && data[at + 3] > 200;
            return dark;
        }"""
    )
    assert dark > 5000  # there is ink on the paper
    if "年假" in question:
        picture(page, "original")
    dialog.get_by_role("button", name="下一页").click()
    dialog.get_by_text("第 2 页，共").wait_for()
    dialog.locator(".pdf-quote").first.wait_for(state="detached")
    dialog.get_by_role("button", name="放大").click()
    dialog.get_by_role("button", name="文字").click()
    assert quote in "".join(dialog.locator("mark.quoted").all_inner_texts())


@needs_browser
@pytest.mark.slow
def test_a_scan_is_outlined_where_its_words_were_read(visit: Visit, office: tuple[RunningServer, Path]) -> None:
    server, _ = office
    page = visit(server.url)
    ask(page, "设备验收单的验收结论")
    page.locator(".hit", has_text="设备验收单").first.click()
    dialog = page.get_by_role("dialog")
    dialog.locator(".pdf-box").first.wait_for()
    page.wait_for_timeout(1500)
    assert box_of(dialog.locator(".pdf-box"))["width"] > 20
    picture(page, "original-scan")


@needs_browser
@pytest.mark.slow
def test_other_kinds_are_opened_as_text_at_the_place(visit: Visit, office: tuple[RunningServer, Path]) -> None:
    server, documents = office
    page = visit(server.url)
    dialog = open_citation(page, "忘记密码怎么办？")
    dialog.locator("mark.quoted").first.wait_for()
    dialog.locator(".around").first.wait_for()
    shown = dialog.locator(".sheet-text").inner_text()
    lines = [line for line in shown.split("\n") if len(line) > 12]
    assert len(lines) == len(set(lines))  # what neighbouring passages repeat is shown once
    mark = box_of(dialog.locator("mark.quoted"))
    assert 0 < mark["y"] < DESK["height"]
    picture(page, "original-text")
    with page.expect_download() as download:
        dialog.get_by_role("button", name="保存原件").click()
    assert download.value.suggested_filename == "IT服务台手册.md"
    assert Path(download.value.path()).read_bytes() == (documents / "IT服务台手册.md").read_bytes()


@needs_browser
@pytest.mark.slow
def test_an_original_that_changed_or_went_is_said_and_the_text_shown(
    visit: Visit, office: tuple[RunningServer, Path]
) -> None:
    server, documents = office
    file = documents / "员工手册.pdf"
    kept = file.with_suffix(".kept")
    shutil.copy2(file, kept)
    try:
        file.write_bytes(file.read_bytes() + b"\n")
        page = visit(server.url, failing=True)
        dialog = open_citation(page, "年假怎么休？")
        dialog.get_by_text("原文件在索引之后改动过").wait_for()
        dialog.locator("mark.quoted").first.wait_for()
        picture(page, "original-changed")
        page.keyboard.press("Escape")
        file.unlink()
        dialog = open_citation(page, "年假怎么休？")
        dialog.get_by_text("原文件已经不在了").wait_for()
        dialog.locator("mark.quoted").first.wait_for()
    finally:
        kept.replace(file)


@needs_browser
@pytest.mark.slow
def test_the_original_page_on_a_phone(visit: Visit, office: tuple[RunningServer, Path]) -> None:
    server, _ = office
    page = visit(server.url, viewport=PHONE)
    dialog = open_citation(page, "年假怎么休？")
    wait_until_drawn(page)
    assert dialog.evaluate("d => d.scrollWidth <= d.clientWidth && d.offsetWidth <= innerWidth")
    mark = box_of(dialog.locator(".pdf-quote"))
    assert 0 <= mark["x"] < PHONE["width"]
    assert 0 < mark["y"] < PHONE["height"]
    picture(page, "phone-original")


@needs_browser
@pytest.mark.slow
def test_a_private_server_gives_the_original_to_a_reader_with_the_key(
    visit: Visit, office: tuple[RunningServer, Path], tmp_path: Path
) -> None:
    _, documents = office
    copied = shutil.copytree(documents.parent / "kb", tmp_path / "kb")
    with running(copied, "--private") as server:
        page = visit(server.url, key=KEY)
        open_citation(page, "年假怎么休？")
        wait_until_drawn(page)
        assert "年休假" in marked_text(page)


# -- ratings and earlier questions ------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.slow
def test_a_rating_is_asked_for_kept_and_can_be_changed(visit: Visit, store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(store, tmp_path / "kb")
    with running(copied) as server:
        page = visit(server.url, failing=True)
        ask(page, "八达岭长城的门票多少钱？")
        page.get_by_role("button", name="有用", exact=True).click()
        dialog = page.get_by_role("dialog", name="需要密钥")
        dialog.get_by_role("button", name="取消").click()  # without a key nothing is kept
        assert page.get_by_role("button", name="有用", exact=True).get_attribute("aria-pressed") == "false"
        page.get_by_role("button", name="有用", exact=True).click()
        dialog.get_by_role("textbox", name="密钥").fill(KEY)
        page.keyboard.press("Enter")
        page.get_by_text("已记下，谢谢。").wait_for()
        [first] = FeedbackStore(copied).read()
        assert (first.question, first.vote, first.reason) == ("八达岭长城的门票多少钱？", "up", "")
        assert any(passage.cited for passage in first.passages)
        assert not any(passage.useful for passage in first.passages)

        page.get_by_role("button", name="没用").click()
        page.get_by_text("其实哪一段才对？").wait_for()
        picture(page, "feedback")
        page.locator(".candidate input").nth(1).check()
        page.get_by_role("textbox", name="原因").fill("答的是旧票价")
        page.get_by_role("button", name="补充到评价里").click()
        page.locator(".feedback-more").wait_for(state="detached")
        page.get_by_text("已记下，谢谢。").wait_for()
        [second] = FeedbackStore(copied).read()
        assert (second.id, second.vote, second.reason) == (first.id, "down", "答的是旧票价")
        assert [passage.useful for passage in second.passages].count(True) == 1
        page.reload()
        page.get_by_role("button", name="八达岭长城的门票多少钱？").click()  # from the tab's history
        assert page.get_by_role("button", name="没用").get_attribute("aria-pressed") == "true"


@needs_browser
@pytest.mark.slow
def test_a_server_without_keys_asks_for_no_rating(visit: Visit, store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(store, tmp_path / "kb")
    with running(copied, keys="") as server:
        page = visit(server.url)
        ask(page, "八达岭长城的门票多少钱？")
        page.locator(".sources").wait_for()
        assert page.locator(".feedback").count() == 0


@needs_browser
@pytest.mark.slow
def test_earlier_questions_are_shown_again_and_forgotten(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url)
    ask(page, "八达岭长城的门票多少钱？")
    first = page.locator(".quotes").inner_text()
    ask(page, "动物园几点开门？")
    page.reload()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    earlier = page.get_by_role("region", name="问过的问题")
    earlier.locator("li").nth(1).wait_for()
    assert earlier.locator("li").count() == 2
    earlier.get_by_role("button", name="八达岭长城的门票多少钱？").click()
    assert page.locator(".quotes").inner_text() == first
    assert page.locator("#question").input_value() == "八达岭长城的门票多少钱？"
    assert not any("/ask" in url for url in requests)
    page.locator(".quotes button.cite").first.click()
    page.locator("mark.quoted").first.wait_for()
    page.keyboard.press("Escape")
    picture(page, "history")
    earlier.get_by_role("button", name="清除问过的问题").click()
    earlier.wait_for(state="detached")
    assert page.evaluate("sessionStorage.length") == 0


# -- uploads ----------------------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.slow
def test_an_upload_shows_its_progress(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url, key=KEY)
    page.locator("input[type=file]").wait_for(state="attached")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 200_000}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
            const bar = document.querySelector("progress");
            if (bar) window.seen.push(bar.position);
        }).observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true}) }"""
    )
    send(page, "慢.txt", "慢慢上传的文字。" * 12_000)
    page.get_by_text("已添加").wait_for()
    seen = page.evaluate("window.seen")
    assert any(0 < share < 1 for share in seen)
    assert seen[-1] == -1  # all is sent, and how long the rest takes is not known
    delete(page, "慢.txt")


@needs_browser
@pytest.mark.slow
def test_an_upload_counts_its_pages_and_can_be_cancelled(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url, key=KEY, failing=True)
    page.locator("input[type=file]").wait_for(state="attached")
    pages = pdf([[f"第{number}页的内容。"] * 10 for number in range(1, 300)])
    send(page, "很长.pdf", pages)
    uploads = page.get_by_role("region", name="上传")
    uploads.get_by_text("正在读取：第").wait_for()
    picture(page, "upload-pages")
    assert 0 < page.locator("progress").evaluate("bar => bar.position") < 1
    uploads.get_by_role("button", name="取消上传《很长.pdf》").click()
    uploads.get_by_text("已取消").wait_for()
    send(page, "短.txt", "短短的一份。")
    uploads.get_by_text("已添加").wait_for()
    assert page.get_by_role("button", name="只问它：《很长.pdf》").count() == 0
    delete(page, "短.txt")


@needs_browser
@pytest.mark.slow
def test_files_can_be_dropped_and_are_taken_or_refused_one_by_one(visit: Visit, server: RunningServer) -> None:
    page = visit(server.url, key=KEY, failing=True)
    page.locator("input[type=file]").wait_for(state="attached")
    page.evaluate(
        """() => {
            const held = new DataTransfer();
            held.items.add(new File(["放下的文件。"], "放下.txt"));
            held.items.add(new File(["MZ"], "程序.exe"));
            held.items.add(new File(["not a pdf"], "坏的.pdf"));
            held.items.add(new File([new Uint8Array(2 << 20)], "太大.txt"));
            for (const name of ["dragover", "drop"])
                document.body.dispatchEvent(new DragEvent(name, {dataTransfer: held, bubbles: true, cancelable: true}));
        }"""
    )
    uploads = page.get_by_role("region", name="上传")
    uploads.get_by_text("超过了服务器的上限").wait_for()
    picture(page, "uploads")
    assert [item.split("\n") for item in uploads.locator("li").all_inner_texts()] == [
        ["放下.txt", "已添加，1 个段落"],
        ["程序.exe", "不支持这种文件。"],
        ["坏的.pdf", "读不出这个文件的内容，它可能已损坏、为空或者是扫描件。"],
        ["太大.txt", "文件太大，超过了服务器的上限。"],
    ]
    delete(page, "放下.txt")


# -- when things go wrong ---------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.slow
def test_a_busy_server_and_one_that_is_gone_are_said_in_words(visit: Visit, store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(store, tmp_path / "kb")
    with running(copied, "--max-in-flight", "4", keys="") as server:
        page = visit(server.url, failing=True)
        page.get_by_text("只读：服务器没有设置密钥").wait_for()
        with ExitStack() as others:  # who keep all places for themselves
            for _ in range(4):
                other = others.enter_context(socket.create_connection(("127.0.0.1", server.port)))
                other.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
            time.sleep(0.3)
            ask(page, QUESTION)
            assert "服务器正忙。请在 1 秒后再试。" in page.get_by_role("alert").inner_text()
            picture(page, "busy")
        time.sleep(0.3)
        page.get_by_role("button", name="重试").click()
        page.locator(".hits").wait_for()
        server.stop()
        ask(page, QUESTION)
        assert "连不上服务器" in page.get_by_role("alert").inner_text()


@needs_browser
@pytest.mark.slow
def test_a_private_server_asks_for_its_key_first(visit: Visit, store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(store, tmp_path / "kb")
    with running(copied, "--private") as server:
        page = visit(server.url, failing=True)
        page.get_by_role("dialog").get_by_role("textbox", name="密钥").fill(KEY)
        page.keyboard.press("Enter")
        ask(page, "八达岭长城的门票多少钱？")
        page.locator(".sources").wait_for()
        page.reload()
        page.get_by_text("共").or_(page.locator(".card")).first.wait_for()  # the tab still knows the key
        page.get_by_role("button", name="忘掉密钥").click()
        assert page.evaluate("sessionStorage.length") == 0


@needs_browser
@pytest.mark.slow
def test_an_empty_store_and_none_at_all(visit: Visit, tmp_path: Path) -> None:
    elsewhere = {"OPENAI_BASE_URL": "https://model.example.com/v1", "OPENAI_MODEL": "test-model"}
    with running(tmp_path / "new", "--model", "peg-mini", **elsewhere) as server:
        page = visit(server.url)
        page.get_by_text("问题和找到的段落会发送到 model.example.com").wait_for()  # said before anything is
        page.get_by_text("这里还没有文档。先上传几份，再来提问。").wait_for()
        ask(page, QUESTION)
        page.get_by_text("没有找到任何相近的段落。").wait_for()  # and without a passage nothing was sent
    with running("--model", "peg-mini") as server:
        visit(server.url).get_by_text("这个服务器只提供向量接口").wait_for()


# -- with a language model --------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.slow
def test_an_answer_by_a_language_model_is_streamed_labelled_and_cited(
    visit: Visit, store: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(store, tmp_path / "kb")
    with chatting() as chat:
        model = {"OPENAI_BASE_URL": chat.url, "OPENAI_MODEL": "test-model", "OPENAI_API_KEY": MODEL_KEY}
        with running(copied, **model) as server:
            page = visit(server.url)
            page.get_by_text("由 test-model 撰写，它就在服务器本机运行").wait_for()
            page.evaluate(
                """() => { window.lengths = []; new MutationObserver(() => {
                    const text = document.querySelector(".written.growing");
                    if (text) window.lengths.push(text.textContent.length);
                }).observe(document.body, {subtree: true, childList: true, characterData: true}) }"""
            )
            ask(page, "八达岭长城的门票多少钱？")
            assert len(set(page.evaluate("window.lengths"))) > 5  # it grew before the reader's eyes
            answer = page.get_by_role("region", name="回答", exact=True)
            assert "test-model 撰写" in answer.inner_text()
            assert "请对照出处" in answer.inner_text()
            assert answer.locator(".written .cite").count() == 2
            picture(page, "generated")
            answer.locator(".written .cite").first.click()
            page.get_by_role("dialog").locator("mark.word").first.wait_for()
            page.keyboard.press("Escape")
            page.get_by_role("radio", name="摘录原文").check(force=True)
            page.get_by_text("没有经过语言模型").wait_for()


@needs_browser
@pytest.mark.slow
def test_a_follow_up_is_asked_with_the_turns_before_it(visit: Visit, store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(store, tmp_path / "kb")
    with chatting() as chat:
        model = {"OPENAI_BASE_URL": chat.url, "OPENAI_MODEL": "test-model", "OPENAI_API_KEY": MODEL_KEY}
        with running(copied, **model) as server:
            page = visit(server.url)
            sent: list[Any] = []

            def note_question(request: Request) -> None:
                if request.url.endswith("/ask"):
                    sent.append(request.post_data_json)

            page.on("request", note_question)
            ask(page, "八达岭长城的门票多少钱？")
            page.get_by_text("接着前面 1 个问题往下问。").wait_for()
            ask(page, "几点开门？")
            page.get_by_text("理解为：八达岭长城的门票多少钱？ 几点开门？").wait_for()
            assert "history" not in sent[0]
            assert [turn["question"] for turn in sent[1]["history"]] == ["八达岭长城的门票多少钱？"]
            assert sent[1]["history"][0]["answer"]
            page.get_by_text("接着前面 2 个问题往下问。").wait_for()
            picture(page, "follow-up")
            page.get_by_role("button", name="另起话题").click()
            ask(page, "动物园几点开门？")
            assert "history" not in sent[2]
            page.get_by_role("radio", name="摘录原文").check(force=True)
            page.locator(".answer[aria-busy=false]").wait_for()
            assert "history" not in sent[3]  # what is only quoted sends nothing to a language model


@needs_browser
@pytest.mark.slow
def test_a_language_model_that_fails_is_said_and_quotes_are_offered(visit: Visit, store: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(store, tmp_path / "kb")
    with chatting() as chat:
        model = {"OPENAI_BASE_URL": chat.url, "OPENAI_MODEL": "test-model", "OPENAI_API_KEY": "wrong"}
        with running(copied, **model) as server:
            page = visit(server.url)
            ask(page, "八达岭长城的门票多少钱？")
            assert "语言模型的接口拒绝了服务器的密钥" in page.get_by_role("alert").inner_text()
            assert page.locator(".sources, .quotes p").count() == 0  # nothing else in its place unless asked for
            picture(page, "model-failed")
            page.get_by_role("button", name="改为摘录原文").click()
            page.get_by_text("没有经过语言模型").wait_for()


# -- accessibility ----------------------------------------------------------------------------------------------------


def violations(page: Page) -> list[tuple[str, ...]]:
    """What axe-core finds, of whatever impact."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")["violations"]
    return [
        (rule["id"], rule["impact"], node["html"], node["failureSummary"]) for rule in found for node in rule["nodes"]
    ]


@needs_browser
@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed; run: npm ci --prefix web")
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_in_any_state(
    visit: Visit, server: RunningServer, scheme: Scheme, viewport: ViewportSize
) -> None:
    page = visit(server.url, scheme=scheme, viewport=viewport, failing=True)
    page.locator(".card").first.wait_for()
    states = {"start": violations(page)}
    ask(page, "八达岭长城的门票多少钱？")
    states["answer"] = violations(page)
    if (scheme, viewport) == ("dark", DESK):
        picture(page, "answer-dark")
    page.locator(".cite").first.click()
    page.locator("mark.quoted").first.wait_for()
    states["passage"] = violations(page)
    if (scheme, viewport) == ("dark", DESK):
        picture(page, "passage-dark")
    page.keyboard.press("Escape")
    states["history"] = violations(page)
    send(page, "差旅报销制度.md", RULES)
    page.get_by_role("dialog").get_by_role("textbox", name="密钥").fill("a-wrong-key-0123456789")
    page.keyboard.press("Enter")
    page.get_by_text("这个密钥不对").wait_for()
    states["key"] = violations(page)
    page.get_by_role("textbox", name="密钥").fill(KEY)
    page.keyboard.press("Enter")
    page.get_by_text("已添加").wait_for()
    page.get_by_role("button", name="没用").click()
    page.get_by_text("已记下，谢谢。").wait_for()
    states["rating"] = violations(page)
    send(page, "坏的.pdf", "not a pdf")
    page.get_by_text("读不出").wait_for()
    states["uploads"] = violations(page)
    page.get_by_role("button", name="删除《差旅报销制度.md》").click()
    states["delete"] = violations(page)
    page.get_by_role("dialog").get_by_role("button", name="删除").click()
    page.get_by_role("dialog").wait_for(state="detached")
    ask(page, "量子计算机怎么做饭？")
    states["not found"] = violations(page)
    assert not any(states.values()), states


@needs_browser
@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not installed; run: npm ci --prefix web")
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation_on_an_original_page(
    visit: Visit, office: tuple[RunningServer, Path], scheme: Scheme, viewport: ViewportSize
) -> None:
    server, _ = office
    page = visit(server.url, scheme=scheme, viewport=viewport)
    dialog = open_citation(page, "年假怎么休？")
    wait_until_drawn(page)
    states = {"original": violations(page)}
    if (scheme, viewport) == ("dark", DESK):
        picture(page, "original-dark")
    dialog.get_by_role("button", name="文字").click()
    dialog.locator("mark.quoted").first.wait_for()
    states["text"] = violations(page)
    assert not any(states.values()), states
