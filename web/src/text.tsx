// Marked text. Everything goes into the page as text nodes, so that markup in a document is shown and never run.

/** [start, end) in characters, as the server counts them: code points, not UTF-16 units. */
export type Span = readonly [start: number, end: number];

interface Piece {
  text: string;
  quoted: boolean;
  word: boolean;
}

/** The text cut wherever a span begins or ends. */
export function pieces(text: string, quoted: readonly Span[], words: readonly Span[]): Piece[] {
  const characters = Array.from(text);
  const bounds = [0, characters.length, ...quoted.flat(), ...words.flat()].filter((at) => at >= 0 && at <= characters.length);
  const cuts = [...new Set(bounds)].sort((a, b) => a - b);
  const inside = (spans: readonly Span[], at: number) => spans.some(([start, end]) => start <= at && at < end);
  return cuts.slice(0, -1).map((start, place) => ({
    text: characters.slice(start, cuts[place + 1]).join(""),
    quoted: inside(quoted, start),
    word: inside(words, start),
  }));
}

export function Marked({ text, quoted = [], words = [] }: { text: string; quoted?: readonly Span[]; words?: readonly Span[] }) {
  return (
    <>
      {pieces(text, quoted, words).map((piece) =>
        piece.quoted || piece.word ? (
          <mark class={`${piece.quoted ? "quoted" : ""} ${piece.word ? "word" : ""}`.trim()}>{piece.text}</mark>
        ) : (
          piece.text
        ),
      )}
    </>
  );
}

/** About `length` characters of a text around `first`, or else its first marked word, with the spans moved along. */
export function excerpt(
  text: string,
  words: readonly Span[],
  first = words[0]?.[0] ?? 0,
  length = 110,
): { text: string; words: Span[] } {
  const characters = Array.from(text);
  const start = first > length * 0.6 ? first - Math.floor(length * 0.3) : 0;
  const end = Math.min(characters.length, start + length);
  const lead = start > 0 ? "…" : "";
  const shift = Array.from(lead).length - start;
  return {
    text: lead + characters.slice(start, end).join("").replaceAll("\n", " ") + (end < characters.length ? "…" : ""),
    words: words.filter(([from, to]) => from >= start && to <= end).map(([from, to]) => [from + shift, to + shift]),
  };
}
