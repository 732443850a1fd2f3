// A passage where it stands in its document: on the original page of a PDF, else in the document's text.

import { useEffect, useState } from "preact/hooks";
import { getOriginal, getPassage, Problem, type Hit, type PassageDetail, type Sentence } from "./api";
import { Dialog } from "./dialog";
import { DocumentText } from "./document-text";
import { PdfView } from "./pdf-view";
import { explain, useStrings, type Strings } from "./strings";
import { Marked, type Span } from "./text";

export function placeOf(hit: Hit, strings: Strings): { name: string; detail: string } {
  const { source, title, page, row, sheet } = hit.metadata;
  const name = (source ?? hit.id).replace(/^uploads\//, "");
  const parts = [title ?? "", page ? strings.page(page) : "", sheet ?? "", row ? strings.row(row) : ""];
  return { name, detail: parts.filter(Boolean).join(" · ") };
}

type View = "original" | "text";

export function PassageDialog({ hit, quotes, onClose }: { hit: Hit; quotes: Sentence[]; onClose: () => void }) {
  const strings = useStrings();
  const boxes = hit.metadata.boxes ?? [];
  const isPdf = /\.pdf$/i.test(hit.metadata.source ?? "");
  const [view, setView] = useState<View>(isPdf ? "original" : "text");
  const [problem, setProblem] = useState<Problem | null>(null);
  const [detail, setDetail] = useState<PassageDetail | null>(null);
  useEffect(() => {
    getPassage(hit.id).then(setDetail, (error: unknown) => {
      setView("text"); // as it was found, the passage still stands
      setProblem(error instanceof Problem ? error : new Problem("unknown"));
    });
  }, [hit.id]);
  const place = placeOf(hit, strings);
  const quoted = quotes.filter((sentence) => sentence.passage_id === hit.id).flatMap((sentence) => sentence.spans);
  const document = detail?.document;
  const characters = Array.from(hit.text);
  const save = async () => {
    try {
      saveFile(await getOriginal(document!.id), document!.name.slice(document!.name.lastIndexOf("/") + 1));
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem("unknown"));
    }
  };
  return (
    <Dialog titleId="passage-title" class={`sheet ${view === "original" ? "wide" : ""}`} onClose={onClose}>
      <header class="sheet-head">
        <div>
          <h2 id="passage-title">{place.name}</h2>
          {place.detail && <p class="muted">{place.detail}</p>}
        </div>
        <button type="button" class="icon-button" onClick={onClose} aria-label={strings.close} title={strings.close}>
          <svg viewBox="0 0 20 20" aria-hidden="true">
            <path d="M5 5l10 10M15 5L5 15" />
          </svg>
        </button>
      </header>
      <div class="sheet-body">
        {(isPdf || problem) && (
          <div class="sheet-views">
            {isPdf && (
              <div class="views" role="group" aria-label={strings.views}>
                {(["original", "text"] as const).map((name) => (
                  <button
                    key={name}
                    type="button"
                    aria-pressed={view === name}
                    onClick={() => {
                      setProblem(null);
                      setView(name);
                    }}
                  >
                    {name === "original" ? strings.originalPage : strings.asText}
                  </button>
                ))}
              </div>
            )}
            {problem && (
              <p class="notice" role="alert">
                {explain(problem, strings)}
                {isPdf && view === "text" && ` ${strings.textInstead}`}
              </p>
            )}
          </div>
        )}
        {view === "original" ? (
          document ? (
            <PdfView
              document={document.id}
              boxes={boxes}
              quotes={quoted.map(([start, end]) => characters.slice(start, end).join(""))}
              first={boxes[0]?.[0] ?? hit.metadata.page ?? 1}
              onProblem={(wrong) => {
                setProblem(wrong);
                setView("text");
              }}
            />
          ) : (
            <p class="pdf-waiting muted">{strings.opening}</p>
          )
        ) : document && hit.metadata.chunk !== undefined ? (
          <DocumentText document={document.id} here={hit} quoted={quoted} words={hit.matches} />
        ) : (
          <PlainText hit={hit} around={detail} quoted={quoted} />
        )}
      </div>
      <footer class="sheet-foot">
        {quoted.length > 0 && (
          <span>
            <mark class="quoted swatch" /> {strings.legendQuoted}
          </span>
        )}
        {view === "original" && boxes.length > 0 && (
          <span>
            <span class="swatch outlined" /> {strings.legendPassage}
          </span>
        )}
        {view === "text" && hit.matches.length > 0 && (
          <span>
            <mark class="word swatch">{strings.sample}</mark> {strings.legendWord}
          </span>
        )}
        {document && (
          <button type="button" class="link save" onClick={() => void save()}>
            {strings.saveOriginal}
          </button>
        )}
      </footer>
    </Dialog>
  );
}

/** The passage and its neighbours, of a store that does not number its passages. */
function PlainText({ hit, around, quoted }: { hit: Hit; around: PassageDetail | null; quoted: readonly Span[] }) {
  const strings = useStrings();
  return (
    <div class="sheet-text document-text" tabIndex={0} role="region" aria-label={strings.passage}>
      {around?.before && <p class="around">{around.before}</p>}
      <p class="here">
        <Marked text={hit.text} quoted={quoted} words={hit.matches} />
      </p>
      {around?.after && <p class="around">{around.after}</p>}
    </div>
  );
}

function saveFile(content: Blob, name: string): void {
  const link = window.document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
