// The original page of a PDF, with the passage outlined and what was quoted of it marked.

import { useEffect, useRef, useState } from "preact/hooks";
import { originalOf, Problem, type Box } from "./api";
import type { PDFDocumentProxy, Rectangle } from "./pdf";
import { useStrings } from "./strings";

interface Props {
  document: string;
  boxes: readonly Box[];
  quotes: readonly string[];
  /** The page to open, from 1. */
  first: number;
  onProblem: (problem: Problem) => void;
}

const ZOOMS = [1, 1.5, 2, 3];

export function PdfView({ document, boxes, quotes, first, onProblem }: Props) {
  const strings = useStrings();
  const [pdf, setPdf] = useState<PDFDocumentProxy | null>(null);
  const [number, setNumber] = useState(first);
  const [zoom, setZoom] = useState(window.innerWidth < 600 ? 1 : 0); // a whole page is too small to read on a phone
  useEffect(() => {
    let opened: PDFDocumentProxy | null = null;
    let closed = false;
    void (async () => {
      try {
        const { openPdf, statusOf } = await import("./pdf");
        const { url, headers } = originalOf(document);
        try {
          opened = await openPdf(url, headers);
        } catch (error) {
          throw problemOf(statusOf(error));
        }
        if (closed) await opened.loadingTask.destroy();
        else setPdf(opened);
      } catch (error) {
        if (!closed) onProblem(error instanceof Problem ? error : new Problem("pdf_unreadable"));
      }
    })();
    return () => {
      closed = true;
      void opened?.loadingTask.destroy();
    };
  }, [document]);

  const pages = pdf?.numPages ?? 0;
  const turn = (step: number) => setNumber((current) => Math.min(pages, Math.max(1, current + step)));
  return (
    <div class="pdf">
      <div class="pdf-bar" role="toolbar" aria-label={strings.pdfTools}>
        <Tool label={strings.previousPage} path="M12 4l-6 6 6 6" disabled={number <= 1} onClick={() => turn(-1)} />
        <span class="pdf-number" role="status">
          {pdf ? strings.pageOf(number, pages) : strings.opening}
        </span>
        <Tool label={strings.nextPage} path="M8 4l6 6-6 6" disabled={!pdf || number >= pages} onClick={() => turn(1)} />
        <span class="pdf-gap" />
        <Tool label={strings.smaller} path="M5 10h10" disabled={zoom === 0} onClick={() => setZoom(zoom - 1)} />
        <Tool label={strings.larger} path="M5 10h10M10 5v10" disabled={zoom === ZOOMS.length - 1} onClick={() => setZoom(zoom + 1)} />
      </div>
      {pdf && (
        <Page
          pdf={pdf}
          number={Math.min(number, pages)}
          zoom={ZOOMS[zoom]!}
          boxes={boxes.filter(([page]) => page === number)}
          quotes={quotes}
          onProblem={onProblem}
        />
      )}
    </div>
  );
}

function problemOf(status: number): Problem {
  if (status === 404) return new Problem("original_missing", "", status);
  if (status === 409) return new Problem("original_changed", "", status);
  if (status === 401) return new Problem("invalid_api_key", "", status);
  return status ? new Problem("unavailable", "", status) : new Problem("pdf_unreadable");
}

function Tool({ label, path, disabled, onClick }: { label: string; path: string; disabled: boolean; onClick: () => void }) {
  return (
    <button type="button" class="icon-button" aria-label={label} title={label} disabled={disabled} onClick={onClick}>
      <svg viewBox="0 0 20 20" aria-hidden="true">
        <path d={path} />
      </svg>
    </button>
  );
}

interface PageProps {
  pdf: PDFDocumentProxy;
  number: number;
  zoom: number;
  boxes: readonly Box[];
  quotes: readonly string[];
  onProblem: (problem: Problem) => void;
}

interface Drawn {
  width: number;
  height: number;
  quoted: Rectangle[];
  boxes: readonly Box[];
}

function Page({ pdf, number, zoom, boxes, quotes, onProblem }: PageProps) {
  const strings = useStrings();
  const frame = useRef<HTMLDivElement>(null);
  const canvas = useRef<HTMLCanvasElement>(null);
  const layer = useRef<HTMLDivElement>(null);
  const [drawn, setDrawn] = useState<Drawn | null>(null);
  const room = useWidth(frame);
  useEffect(() => {
    if (!room) return undefined;
    const stop = new AbortController();
    void (async () => {
      try {
        const { drawPage, findTexts, overlaps } = await import("./pdf");
        const page = await pdf.getPage(number);
        const whole = page.getViewport({ scale: 1 });
        const viewport = page.getViewport({ scale: (zoom * room) / whole.width });
        const quoted = boxes.length ? await findTexts(page, quotes, boxes) : [];
        if (stop.signal.aborted) return;
        // Where a page is trimmed, boxes are counted from the sheet's corner and would lie beside the text.
        const fitting = quoted.length === 0 || quoted.some((line) => boxes.some((box) => overlaps(line, box)));
        setDrawn({ width: whole.width, height: whole.height, quoted, boxes: fitting ? boxes : [] });
        await drawPage(page, viewport, canvas.current!, layer.current!, stop.signal);
      } catch (error) {
        if (!stop.signal.aborted) onProblem(error instanceof Problem ? error : new Problem("pdf_unreadable"));
      }
    })();
    return () => stop.abort();
  }, [pdf, number, zoom, room]);
  useEffect(() => {
    const target = frame.current?.querySelector(".pdf-quote") ?? frame.current?.querySelector(".pdf-box");
    target?.scrollIntoView({ block: "center", inline: "center" });
  }, [drawn, zoom]);
  const marks = drawn && marksOf(drawn);
  return (
    <div class="pdf-frame" ref={frame} tabIndex={0} role="region" aria-label={strings.pageOf(number, pdf.numPages)}>
      <div
        class="pdf-page"
        style={drawn ? { width: `${100 * zoom}%`, aspectRatio: `${drawn.width} / ${drawn.height}` } : undefined}
      >
        <canvas ref={canvas} aria-hidden="true" />
        <div class="pdf-marks" aria-hidden="true">
          {marks?.map(({ kind, ...place }, index) => <div key={index} class={kind} style={place} />)}
        </div>
        <div class="pdf-text" ref={layer} />
      </div>
    </div>
  );
}

function marksOf({ width, height, quoted, boxes }: Drawn) {
  const mark = (kind: string, { left, top, right, bottom }: Rectangle, margin: number) => ({
    kind,
    left: `${(100 * (left - margin)) / width}%`,
    top: `${(100 * (top - margin)) / height}%`,
    width: `${(100 * (right - left + 2 * margin)) / width}%`,
    height: `${(100 * (bottom - top + 2 * margin)) / height}%`,
  });
  const outlines = boxes.map(([, left, top, right, bottom]) => mark("pdf-box", { left, top, right, bottom }, 4));
  return [...outlines, ...quoted.map((line) => mark("pdf-quote", line, 1))];
}

/** The width of an element's inside; 0 until it is known. */
function useWidth(element: { current: HTMLElement | null }): number {
  const [width, setWidth] = useState(0);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setWidth(Math.floor(entry!.contentRect.width)));
    observer.observe(element.current!);
    return () => observer.disconnect();
  }, []);
  return width;
}
