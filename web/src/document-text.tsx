// A document as text, around one passage: what the passages repeat of each other is shown once.

import { useEffect, useRef, useState } from "preact/hooks";
import { listPassages, type Passage } from "./api";
import { useStrings } from "./strings";
import { Marked, type Span } from "./text";

const AROUND = 4; // passages before and after, and with each further request

interface Props {
  document: string;
  here: Passage;
  quoted: readonly Span[];
  words: readonly Span[];
}

export function DocumentText({ document, here, quoted, words }: Props) {
  const strings = useStrings();
  const body = useRef<HTMLDivElement>(null);
  const number = here.metadata.chunk ?? 0;
  const [range, setRange] = useState({ from: Math.max(0, number - AROUND), to: number + AROUND + 1 });
  const [passages, setPassages] = useState<Passage[]>([here]);
  const [ended, setEnded] = useState(false);
  useEffect(() => {
    const load = async () => {
      const loaded: Passage[] = [];
      while (range.from + loaded.length < range.to) {
        const start = range.from + loaded.length;
        const part = await listPassages(document, start, Math.min(1000, range.to - start));
        loaded.push(...part);
        if (part.length === 0) break;
      }
      setEnded(range.from + loaded.length < range.to);
      // The passage was found a moment ago; a document that has changed since must not take its place.
      if (loaded.some((passage) => passage.id === here.id)) setPassages(loaded);
    };
    load().catch(() => undefined); // without its neighbours the passage still stands
  }, [document, range]);
  const first = passages[0]!.metadata.chunk ?? 0;
  useEffect(() => {
    const target = body.current?.querySelector("mark.quoted") ?? body.current?.querySelector(".here");
    target?.scrollIntoView({ block: "center" });
  }, [passages.length > 1]);
  return (
    <div class="sheet-text document-text" ref={body} tabIndex={0} role="region" aria-label={strings.passage}>
      {passages.length > 1 && first > 0 && (
        <button type="button" class="plain more" onClick={() => setRange({ ...range, from: Math.max(0, range.from - 5 * AROUND) })}>
          {strings.before}
        </button>
      )}
      {joinPassages(passages, here.id).map(({ passage, heading, text, skip }) => (
        <div key={passage.id} class={passage.id === here.id ? "here" : "around"}>
          {heading && <p class="text-heading">{heading}</p>}
          <p>{passage.id === here.id ? <Marked text={text} quoted={shift(quoted, skip)} words={shift(words, skip)} /> : text}</p>
        </div>
      ))}
      {passages.length > 1 && !ended && (
        <button type="button" class="plain more" onClick={() => setRange({ ...range, to: range.to + 5 * AROUND })}>
          {strings.after}
        </button>
      )}
    </div>
  );
}

interface Piece {
  passage: Passage;
  heading: string;
  text: string;
  /** Characters of the passage's text before `text`. */
  skip: number;
}

/** Passages one after the other: a heading where it changes, and what two of them share only in one. */
function joinPassages(passages: readonly Passage[], here: string): Piece[] {
  const pieces: Piece[] = [];
  let title = "";
  let end = -1; // in the document, of what is shown so far
  for (const passage of passages) {
    const skip = headingLength(passage);
    const characters = Array.from(passage.text);
    let text = characters.slice(skip);
    const start = passage.metadata.start;
    let cut = 0;
    if (start !== undefined) {
      const shared = Math.min(Math.max(0, end - start), text.length);
      const last = pieces.at(-1);
      if (passage.id === here && last) last.text = Array.from(last.text).slice(0, -shared || undefined).join("");
      else cut = shared;
      end = Math.max(end, start + text.length);
    }
    text = text.slice(cut);
    const heading = passage.metadata.title ?? "";
    if (text.length) pieces.push({ passage, heading: heading === title ? "" : heading, text: text.join(""), skip: skip + cut });
    title = heading;
  }
  return pieces;
}

/** Characters of the line that repeats the heading above a passage, with its end. */
function headingLength({ text, metadata: { title } }: Passage): number {
  const line = text.split("\n", 1)[0]!;
  if (!title || line.length === text.length || !(title.endsWith(line) || line.startsWith(title) || title.includes(line))) return 0;
  return Array.from(line).length + 1;
}

function shift(spans: readonly Span[], by: number): Span[] {
  return spans.map(([start, end]): Span => [start - by, end - by]).filter(([, end]) => end > 0).map(([start, end]) => [Math.max(0, start), end]);
}
