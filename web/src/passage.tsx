// A passage where it stands in its document, with what was quoted and the question's words marked.

import { useEffect, useRef, useState } from "preact/hooks";
import { getPassage, type Hit, type PassageDetail, type Sentence } from "./api";
import { Dialog } from "./dialog";
import { useStrings, type Strings } from "./strings";
import { Marked, type Span } from "./text";

export function placeOf(hit: Hit, strings: Strings): { name: string; detail: string } {
  const { source, title, page, row } = hit.metadata;
  const name = (source ?? hit.id).replace(/^uploads\//, "");
  const parts = [title ?? "", page ? strings.page(page) : "", row ? strings.row(row) : ""];
  return { name, detail: parts.filter(Boolean).join(" · ") };
}

export function PassageDialog({ hit, quotes, onClose }: { hit: Hit; quotes: Sentence[]; onClose: () => void }) {
  const strings = useStrings();
  const [around, setAround] = useState<PassageDetail | null>(null);
  const body = useRef<HTMLDivElement>(null);
  useEffect(() => {
    // Only the neighbours come from here; without them (the document may be gone by now) the passage still stands.
    getPassage(hit.id).then(setAround, () => undefined);
  }, [hit.id]);
  useEffect(() => {
    const target = body.current?.querySelector("mark.quoted") ?? body.current?.querySelector(".here");
    target?.scrollIntoView({ block: "center" });
  }, [around]);
  const { name, detail } = placeOf(hit, strings);
  const quoted = quotes
    .filter((sentence) => sentence.passage_id === hit.id)
    .map((sentence): Span => [sentence.start, sentence.start + Array.from(sentence.text).length]);
  return (
    <Dialog titleId="passage-title" class="sheet" onClose={onClose}>
      <header class="sheet-head">
        <div>
          <h2 id="passage-title">{name}</h2>
          {detail && <p class="muted">{detail}</p>}
        </div>
        <button type="button" class="icon-button" onClick={onClose} aria-label={strings.close} title={strings.close}>
          <svg viewBox="0 0 20 20" aria-hidden="true">
            <path d="M5 5l10 10M15 5L5 15" />
          </svg>
        </button>
      </header>
      <div class="sheet-text document-text" ref={body} tabIndex={0} role="region" aria-label={strings.passage}>
        {around?.before && <p class="around">{around.before}</p>}
        <p class="here">
          <Marked text={hit.text} quoted={quoted} words={hit.matches} />
        </p>
        {around?.after && <p class="around">{around.after}</p>}
      </div>
      <footer class="sheet-foot">
        {quoted.length > 0 && (
          <span>
            <mark class="quoted swatch" /> {strings.legendQuoted}
          </span>
        )}
        {hit.matches.length > 0 && (
          <span>
            <mark class="word swatch">{strings.sample}</mark> {strings.legendWord}
          </span>
        )}
      </footer>
    </Dialog>
  );
}
