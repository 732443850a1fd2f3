// pdf.js, in a chunk of its own that is loaded with the first PDF that a reader opens.

import * as pdfjs from "pdfjs-dist/legacy/build/pdf.mjs";
import type { PDFDocumentProxy, PDFPageProxy, PageViewport } from "pdfjs-dist";
import type { TextItem } from "pdfjs-dist/types/src/display/api";
import type { Box } from "./api";

export type { PDFDocumentProxy };

/** A rectangle on a page, in points of the page as it is shown. */
export interface Rectangle {
  left: number;
  top: number;
  right: number;
  bottom: number;
}

// Beside this chunk; while the page is developed, those of the server behind it.
const FILES = import.meta.env.DEV ? `${location.origin}/assets/pdf/` : import.meta.url.replace(/[^/]*$/, "pdf/");

/** Opens a PDF; of a long one, only the parts that are shown are fetched. */
export function openPdf(url: string, headers: Record<string, string>): Promise<PDFDocumentProxy> {
  pdfjs.GlobalWorkerOptions.workerSrc = `${FILES}worker.js`;
  return pdfjs.getDocument({
    url: new URL(url, document.baseURI).href,
    httpHeaders: headers,
    cMapUrl: `${FILES}cmaps/`,
    standardFontDataUrl: `${FILES}fonts/`,
    wasmUrl: `${FILES}decoders/`,
    useWasm: false, // the decoders are JavaScript: the page's policy lets nothing be compiled
    enableXfa: false,
    disableAutoFetch: true,
    disableStream: true,
    maxImageSize: 64e6,
    verbosity: pdfjs.VerbosityLevel.ERRORS,
  }).promise;
}

/** The HTTP status that a PDF could not be opened for; 0 for another reason. */
export function statusOf(error: unknown): number {
  return error instanceof pdfjs.ResponseException ? error.status : 0;
}

/** Draws a page into a canvas and its invisible text, which can be selected and read aloud, into a layer above it. */
export async function drawPage(
  page: PDFPageProxy,
  viewport: PageViewport,
  canvas: HTMLCanvasElement,
  layer: HTMLElement,
  signal: AbortSignal,
): Promise<void> {
  const density = Math.min(window.devicePixelRatio || 1, Math.sqrt(16e6 / (viewport.width * viewport.height)));
  canvas.width = Math.floor(viewport.width * density);
  canvas.height = Math.floor(viewport.height * density);
  const drawing = page.render({ canvas, viewport, transform: [density, 0, 0, density, 0, 0] });
  signal.addEventListener("abort", () => drawing.cancel());
  await drawing.promise;
  layer.replaceChildren();
  layer.style.setProperty("--total-scale-factor", String(viewport.scale));
  const text = new pdfjs.TextLayer({ textContentSource: page.streamTextContent(), container: layer, viewport });
  signal.addEventListener("abort", () => text.cancel());
  await text.render();
}

/** Where these texts stand on a page, line by line; nothing for one that is not found, as on a scan. */
export async function findTexts(page: PDFPageProxy, texts: readonly string[], boxes: readonly Box[]): Promise<Rectangle[]> {
  const viewport = page.getViewport({ scale: 1 });
  const items = (await page.getTextContent()).items.filter((item): item is TextItem => "str" in item);
  const letters: { item: number; at: number }[] = [];
  let whole = "";
  items.forEach((item, number) => {
    Array.from(item.str).forEach((character, at) => {
      for (const letter of normalize(character)) {
        whole += letter;
        letters.push({ item: number, at });
      }
    });
  });
  const rectangles: Rectangle[] = [];
  for (const text of texts) {
    const wanted = normalize(text);
    if (!wanted) continue;
    let best: Rectangle[] = [];
    for (let start = whole.indexOf(wanted); start >= 0; start = whole.indexOf(wanted, start + 1)) {
      const place = linesOf(letters.slice(start, start + wanted.length), items, viewport);
      const inside = place.some((line) => boxes.some((box) => overlaps(line, box)));
      if (inside || best.length === 0) best = place;
      if (inside) break;
    }
    rectangles.push(...joinLines(best));
  }
  return rectangles;
}

/** Pieces of one line as one: many files set every character by itself. */
function joinLines(pieces: readonly Rectangle[]): Rectangle[] {
  const lines: Rectangle[] = [];
  for (const piece of pieces) {
    const last = lines.at(-1);
    const height = piece.bottom - piece.top;
    const sameLine = last && Math.abs(last.top + last.bottom - piece.top - piece.bottom) < height;
    if (sameLine && piece.left - last.right < 2 * height && piece.right > last.left) {
      last.left = Math.min(last.left, piece.left);
      last.right = Math.max(last.right, piece.right);
      last.top = Math.min(last.top, piece.top);
      last.bottom = Math.max(last.bottom, piece.bottom);
    } else {
      lines.push({ ...piece });
    }
  }
  return lines;
}

/** As the server compares text, one UTF-16 unit for each: without spaces, compatibility forms made plain. */
function normalize(text: string): string {
  return text.normalize("NFKC").replace(/[\s\u00ad\u200b-\u200f\u2060\ufeff]/g, "").toLowerCase();
}

function linesOf(letters: readonly { item: number; at: number }[], items: TextItem[], viewport: PageViewport): Rectangle[] {
  const ranges = new Map<number, { from: number; to: number }>();
  for (const { item, at } of letters) {
    const range = ranges.get(item);
    if (!range) ranges.set(item, { from: at, to: at + 1 });
    else range.to = at + 1;
  }
  return [...ranges].map(([number, { from, to }]) => {
    const item = items[number]!;
    const [before, upTo, all] = [from, to, undefined].map((end) => widthOf(Array.from(item.str).slice(0, end)));
    const [a, b, c, d, x, y] = item.transform as [number, number, number, number, number, number];
    const length = Math.hypot(a, b) || 1;
    const height = Math.hypot(c, d);
    const along = (share: number) => [x + (a / length) * item.width * share, y + (b / length) * item.width * share] as const;
    const corners = [along(before! / all!), along(upTo! / all!)].flatMap(([px, py]) => {
      const up = [(c / (height || 1)) * height, (d / (height || 1)) * height] as const;
      return [
        viewport.convertToViewportPoint(px - 0.2 * up[0], py - 0.2 * up[1]),
        viewport.convertToViewportPoint(px + 0.95 * up[0], py + 0.95 * up[1]),
      ];
    }) as [number, number][];
    const xs = corners.map(([px]) => px);
    const ys = corners.map(([, py]) => py);
    return { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
  });
}

/** About how wide characters are set: Chinese ones twice as wide as others. */
function widthOf(characters: readonly string[]): number {
  return characters.reduce((width, character) => width + (character.codePointAt(0)! < 0x2000 ? 1 : 2), 0) || 1e-9;
}

export function overlaps(line: Rectangle, [, left, top, right, bottom]: Box): boolean {
  const middle = (line.top + line.bottom) / 2;
  return middle > top - 2 && middle < bottom + 2 && line.left < right && line.right > left;
}
