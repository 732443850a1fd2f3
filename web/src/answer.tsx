// The answer with its citations, and the passages it was found in.

import { useState } from "preact/hooks";
import type { Hit } from "./api";
import type { Asked, Opinion } from "./ask";
import { Feedback } from "./feedback";
import type { WithKey } from "./key";
import { placeOf } from "./passage";
import { explain, useStrings, type Strings } from "./strings";
import { excerpt, Marked } from "./text";

interface Props {
  asked: Asked;
  onOpen: (hit: Hit) => void;
  onRetry: () => void;
  onQuote: () => void;
  /** Keeps what the reader thinks of the answer; null where the server keeps nothing. */
  rating: { withKey: WithKey; onOpinion: (id: string, opinion: Opinion) => void } | null;
}

export function Answer({ asked, onOpen, onRetry, onQuote, rating }: Props) {
  const strings = useStrings();
  const { phase, opening, end, problem } = asked;
  const generated = isGenerated(asked);
  const begun = asked.sentences.length > 0 || asked.text !== "";
  return (
    <section class="answer" aria-labelledby="answer-title" aria-busy={phase === "searching" || phase === "answering"}>
      <h2 class="unseen" id="answer-title">
        {strings.answer}
      </h2>
      <p class="asked">{asked.question.question}</p>
      {opening?.question && opening.question !== asked.question.question && (
        <p class="muted fine">{strings.understood(opening.question)}</p>
      )}
      {(begun || end?.found) && <Label asked={asked} generated={generated} />}
      {generated ? <Written asked={asked} onOpen={onOpen} /> : <Quoted asked={asked} onOpen={onOpen} />}
      {(phase === "searching" || (phase === "answering" && !begun)) && <p class="waiting">{waitingFor(asked, strings)}</p>}
      {end && !end.found && (
        <div class="not-found">
          <p class="lead">{strings.notFound}</p>
          <p class="muted">{opening?.hits.length ? strings.notFoundNote : strings.nothingFound}</p>
        </div>
      )}
      {end && !end.complete && <p class="problem">{strings.cutShort}</p>}
      {end?.found && generated && end.citations.length === 0 && <p class="problem">{strings.uncited}</p>}
      {problem && (
        <div class="problem" role="alert">
          <p>
            <strong>{strings.failed}</strong> {explain(problem, strings)}
          </p>
          <p class="actions">
            <button type="button" class="plain" onClick={onRetry}>
              {strings.retry}
            </button>
            {generated && (
              <button type="button" class="plain" onClick={onQuote}>
                {strings.quoteInstead}
              </button>
            )}
          </p>
        </div>
      )}
      {end?.found && <Sources asked={asked} onOpen={onOpen} />}
      {end && rating && opening && opening.hits.length > 0 && <Feedback asked={asked} {...rating} />}
    </section>
  );
}

const isGenerated = (asked: Asked): boolean => (asked.opening?.kind ?? asked.question.answers) === "generated";

function waitingFor(asked: Asked, strings: Strings): string {
  if (asked.phase === "searching") return strings.searching;
  return isGenerated(asked) ? strings.writing : strings.reading;
}

/** What a screen reader is told: that something is going on, then the whole answer at once. */
export function Announcement({ asked }: { asked: Asked | null }) {
  const strings = useStrings();
  const words = () => {
    if (!asked || asked.phase === "failed" || asked.phase === "stopped") return "";
    if (asked.phase === "done") return asked.end?.found ? asked.end.text : strings.notFound;
    return waitingFor(asked, strings);
  };
  return (
    <p class="unseen" role="status" id="announcement">
      {words()}
    </p>
  );
}

function Label({ asked, generated }: { asked: Asked; generated: boolean }) {
  const strings = useStrings();
  const model = asked.opening?.model ?? "";
  return (
    <p class="label">
      <span class={`badge ${generated ? "by-model" : ""}`}>{generated ? strings.generated(model) : strings.extracted}</span>
      <span class="muted">{generated ? strings.generatedNote : strings.extractedNote}</span>
    </p>
  );
}

function Quoted({ asked, onOpen }: Pick<Props, "asked" | "onOpen">) {
  return (
    <div class="quotes document-text">
      {asked.sentences.map((sentence) => (
        <p key={`${sentence.passage_id}/${sentence.start}`}>
          {sentence.text}
          <Cite number={sentence.citation} hit={hitOf(asked, sentence.passage_id)} onOpen={onOpen} />
        </p>
      ))}
    </div>
  );
}

const CITATIONS = /(\[\s*\d{1,2}(?:\s*[,，、]\s*\d{1,2})*\s*\]|【\s*\d{1,2}(?:\s*[,，、]\s*\d{1,2})*\s*】)/;

/** A model's text; its numbers in brackets become buttons where there is such a passage. */
function Written({ asked, onOpen }: Pick<Props, "asked" | "onOpen">) {
  const hits = asked.opening?.hits ?? [];
  return (
    <p class={`written ${asked.phase === "answering" && asked.text ? "growing" : ""}`}>
      {asked.text.split(CITATIONS).map((part, place) => {
        if (place % 2 === 0) return part;
        const numbers = (part.match(/\d+/g) ?? []).map(Number);
        if (numbers.some((number) => !hits[number - 1])) return part;
        return numbers.map((number) => <Cite key={`${place}/${number}`} number={number} hit={hits[number - 1]} onOpen={onOpen} />);
      })}
    </p>
  );
}

function Cite({ number, hit, onOpen }: { number: number; hit: Hit | undefined; onOpen: (hit: Hit) => void }) {
  const strings = useStrings();
  if (!hit) return null;
  const label = strings.cite(number, placeOf(hit, strings).name);
  return (
    <>
      {"\u2060" /* no line begins with a citation */}
      <button type="button" class="cite" aria-label={label} title={label} aria-haspopup="dialog" onClick={() => onOpen(hit)}>
        {number}
      </button>
    </>
  );
}

function Sources({ asked, onOpen }: Pick<Props, "asked" | "onOpen">) {
  const strings = useStrings();
  const cited = asked.end!.citations.flatMap(({ number, passage_id }) => {
    const hit = hitOf(asked, passage_id);
    return hit ? [{ number, hit, ...placeOf(hit, strings) }] : [];
  });
  const text = () => `${asked.end!.text}\n\n${cited.map((c) => `[${c.number}] ${c.name}${c.detail && ` · ${c.detail}`}`).join("\n")}\n`;
  return (
    <div class="sources">
      {cited.length > 0 && (
        <>
          <h3>{strings.sources}</h3>
          <ul>
            {cited.map(({ number, hit, name, detail }) => (
              <li key={number}>
                <button type="button" class="source" aria-haspopup="dialog" onClick={() => onOpen(hit)}>
                  <span class="cite" aria-hidden="true">
                    {number}
                  </span>
                  <span>
                    {name}
                    {detail && <span class="muted"> · {detail}</span>}
                  </span>
                </button>
              </li>
            ))}
          </ul>
        </>
      )}
      <Copy text={text} />
    </div>
  );
}

/** Only where the browser lets a page copy: over https, or on the machine itself. */
function Copy({ text }: { text: () => string }) {
  const strings = useStrings();
  const [copied, setCopied] = useState(false);
  if (!navigator.clipboard) return null;
  const copy = async () => {
    await navigator.clipboard.writeText(text());
    setCopied(true);
    setTimeout(() => setCopied(false), 2000);
  };
  return (
    <button type="button" class="plain copy" onClick={() => void copy()}>
      <span aria-live="polite">{copied ? strings.copied : strings.copy}</span>
    </button>
  );
}

function hitOf(asked: Asked, passageId: string): Hit | undefined {
  return asked.opening?.hits.find((hit) => hit.id === passageId);
}

/** Passages that are listed under an answer; those cited are listed beside them, wherever they stand. */
const SHOWN_HITS = 10;

export function Hits({ asked, onOpen }: Pick<Props, "asked" | "onOpen">) {
  const strings = useStrings();
  const hits = asked.opening?.hits ?? [];
  if (hits.length === 0) return null;
  const numbers = new Map(asked.end?.citations.map((citation) => [citation.passage_id, citation.number]));
  const shown = hits.map((hit, place) => ({ hit, rank: place + 1 })).filter(({ hit, rank }) => rank <= SHOWN_HITS || numbers.has(hit.id));
  return (
    <section class="hits" aria-labelledby="hits-title">
      <h2 id="hits-title">
        {strings.hits} <span class="muted">{strings.hitsNote(shown.length)}</span>
      </h2>
      <ol>
        {shown.map(({ hit, rank }) => (
          <li key={hit.id}>
            <HitCard
              hit={hit}
              rank={rank}
              cited={numbers.get(hit.id)}
              quote={asked.sentences.find((sentence) => sentence.passage_id === hit.id)?.start}
              best={bestOf(hits)}
              onOpen={onOpen}
            />
          </li>
        ))}
      </ol>
    </section>
  );
}

type Component = "dense" | "lexical" | "fused" | "rerank";
const COMPONENTS: Component[] = ["dense", "lexical", "fused", "rerank"];

/** What a full bar stands for: a cosine or a reranker's score of 1, and for scores without a bound the best of the list. */
function bestOf(hits: Hit[]): Record<Component, number> {
  const best = (name: Component) => Math.max(...hits.map((hit) => hit.scores[name] ?? 0));
  return { dense: 1, lexical: best("lexical"), fused: best("fused"), rerank: 1 };
}

interface CardProps {
  hit: Hit;
  rank: number;
  cited: number | undefined;
  quote: number | undefined;
  best: Record<Component, number>;
  onOpen: (hit: Hit) => void;
}

/** A passage that was found, shown around what was quoted of it or else around the question's words. */
function HitCard({ hit, rank, cited, quote, best, onOpen }: CardProps) {
  const strings = useStrings();
  const { name, detail } = placeOf(hit, strings);
  const title = hit.metadata.title ?? "";
  const skip = title && hit.text.startsWith(`${title}\n`) ? Array.from(title).length + 1 : 0;
  const body = Array.from(hit.text).slice(skip).join("");
  const words = hit.matches.filter(([start]) => start >= skip).map(([start, end]) => [start - skip, end - skip] as const);
  const shown = excerpt(body, words, quote === undefined ? undefined : quote - skip);
  return (
    <button type="button" class="hit" aria-haspopup="dialog" onClick={() => onOpen(hit)}>
      <span class="hit-head">
        <span class="rank">{rank}</span>
        <span class="name">{name}</span>
        {detail && <span class="muted">{detail}</span>}
        {cited !== undefined && <span class="badge">{strings.cited(cited)}</span>}
      </span>
      <span class="hit-text document-text">
        <Marked text={shown.text} words={shown.words} />
      </span>
      <span class="scores">
        {COMPONENTS.filter((part) => hit.scores[part] !== undefined).map((part) => (
          <Score key={part} part={part} value={hit.scores[part]!} best={best[part]} />
        ))}
      </span>
    </button>
  );
}

function Score({ part, value, best }: { part: Component; value: number; best: number }) {
  const strings = useStrings();
  const share = best > 0 ? Math.min(1, Math.max(0, value / best)) : 0;
  return (
    <span class={`score ${part}`}>
      <span>{strings.scores[part]}</span>
      <svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
        <rect class="track" width="100" height="6" rx="3" />
        <rect class="bar" width={100 * share} height="6" rx="3" />
      </svg>
      <span class="number">{value.toFixed(part === "lexical" ? 1 : 3)}</span>
    </span>
  );
}
