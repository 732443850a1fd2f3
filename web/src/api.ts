// The server, as the page sees it. Addresses are relative, so that the page works under a path of a reverse proxy too.

import { createParser, type EventSourceMessage } from "eventsource-parser";
import { EventSourceParserStream } from "eventsource-parser/stream";
import type { Span } from "./text";

export type Mode = "hybrid" | "dense" | "lexical";
export type Kind = "extractive" | "generated";

export interface Info {
  version: string;
  model: string;
  passages: number | null;
  writable: boolean;
  private: boolean;
  suffixes: string[];
  max_upload_bytes: number;
  answers: Kind[];
  language_model: { name: string; host: string; local: boolean } | null;
  feedback: boolean;
  /** Whether `/ask` reads a follow-up by the turns before it. */
  history?: boolean;
}

/** Where a piece of a passage stands on a page: points from its top left corner. */
export type Box = readonly [page: number, left: number, top: number, right: number, bottom: number];

export interface Hit {
  id: string;
  text: string;
  score: number;
  scores: Partial<Record<"dense" | "lexical" | "fused" | "rerank", number>>;
  matches: Span[];
  metadata: Metadata;
}

export interface Metadata {
  source?: string;
  title?: string;
  page?: number;
  row?: number;
  sheet?: string;
  chunk?: number;
  start?: number;
  boxes?: Box[];
}

export interface Sentence {
  text: string;
  citation: number;
  passage_id: string;
  start: number;
  spans: Span[];
}

export interface Citation {
  number: number;
  passage_id: string;
}

export interface Opening {
  hits: Hit[];
  /** What was searched for: the question, or a follow-up as the language model put it. */
  question?: string;
  kind: Kind;
  model: string | null;
}

export interface End {
  found: boolean;
  confidence: number | null;
  complete: boolean;
  citations: Citation[];
  text: string;
}

export type AskEvent =
  | { event: "hits"; data: Opening }
  | { event: "sentence"; data: Sentence }
  | { event: "delta"; data: { text: string } }
  | { event: "done"; data: End };

export interface DocumentCard {
  id: string;
  name: string;
  source: string;
  title: string;
  uploaded: boolean;
  size_bytes: number | null;
}

export interface AddedDocument extends DocumentCard {
  passages: number;
  replaced: boolean;
}

export interface Passage {
  id: string;
  text: string;
  metadata: Metadata;
}

export interface PassageDetail extends Passage {
  before: string;
  after: string;
  document: DocumentCard | null;
}

/** What went wrong, for `explain` to put into words. `code` is the server's, or `unreachable`, `interrupted`. */
export class Problem extends Error {
  constructor(
    readonly code: string,
    message = "",
    readonly status = 0,
    readonly retryAfterS: number | null = null,
  ) {
    super(message);
  }
}

const KEY = "peg-rag-key";

/** The server's key, for this tab only: the browser forgets it when the tab is closed. */
export const key = {
  get: (): string => sessionStorage.getItem(KEY) ?? "",
  set: (value: string): void => sessionStorage.setItem(KEY, value),
  forget: (): void => sessionStorage.removeItem(KEY),
};

function authorization(): Record<string, string> {
  return key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
}

function problemOf(status: number, body: string, retryAfter: string | null): Problem {
  const seconds = retryAfter && /^\d+$/.test(retryAfter) ? Number(retryAfter) : null;
  try {
    const { error } = JSON.parse(body) as { error: { code: string; message: string } };
    return new Problem(error.code, error.message, status, seconds);
  } catch {
    return new Problem("unknown", "", status, seconds);
  }
}

async function request(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(path, { ...init, headers: { ...init.headers, ...authorization() } });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem("unreachable");
  }
  if (!response.ok) throw problemOf(response.status, await response.text(), response.headers.get("Retry-After"));
  return response;
}

async function json<T>(path: string, init?: RequestInit): Promise<T> {
  return (await (await request(path, init)).json()) as T;
}

export const getInfo = (): Promise<Info> => json("info");

export const listDocuments = (offset: number, limit: number): Promise<{ documents: DocumentCard[]; total: number }> =>
  json(`documents?offset=${offset}&limit=${limit}`);

export const getPassage = (id: string): Promise<PassageDetail> => json(`passages/${encodeURIComponent(id)}`);

export const listPassages = async (document: string, offset: number, limit: number): Promise<Passage[]> =>
  (await json<{ passages: Passage[] }>(`documents/${document}/passages?offset=${offset}&limit=${limit}`)).passages;

/** Where the file of a document is, and what a reader of it must send along. */
export const originalOf = (document: string): { url: string; headers: Record<string, string> } => ({
  url: `documents/${document}/original`,
  headers: authorization(),
});

export const getOriginal = async (document: string): Promise<Blob> => (await request(originalOf(document).url)).blob();

export interface Rating {
  id: string;
  question: string;
  vote: "up" | "down";
  reason: string;
  passages: { passage_id: string; cited: boolean; useful: boolean }[];
}

export const rate = (rating: Rating): Promise<unknown> =>
  json("feedback", { method: "POST", body: JSON.stringify(rating), headers: { "Content-Type": "application/json" } });

export const deleteDocument = (id: string): Promise<unknown> => json(`documents/${id}`, { method: "DELETE" });

/** An earlier question and its answer, for the server to read a follow-up by. */
export interface Turn {
  question: string;
  answer: string;
}

export interface Question {
  question: string;
  mode: Mode;
  answers: Kind;
  source: string | null;
  history: Turn[];
}

/** The answer's events as they come. Ends after `done`; anything else that ends it is a `Problem`. */
export async function* ask({ question, mode, answers, source, history }: Question, signal: AbortSignal): AsyncGenerator<AskEvent> {
  const body = JSON.stringify({ question, mode, answers, ...(source === null ? {} : { where: { source } }), ...(history.length ? { history } : {}) });
  const response = await request("ask", {
    method: "POST",
    body,
    headers: { "Content-Type": "application/json" },
    signal,
  });
  const events = response.body!.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream()).getReader();
  for (;;) {
    const { done, value } = await events.read().catch((error: unknown) => {
      if (signal.aborted) throw error;
      throw new Problem("interrupted");
    });
    if (done) throw new Problem("interrupted");
    if (value.event === "error") throw problemOf(0, value.data, null);
    yield { event: value.event, data: JSON.parse(value.data) } as AskEvent;
    if (value.event === "done") return;
  }
}

/** How far an upload is. `sending` counts bytes, `reading` pages, `indexing` passages; a total of 0 is not known. */
export interface Step {
  step: "sending" | "reading" | "indexing";
  done: number;
  total: number;
}

/** Sends one file, and tells how far it is. (`fetch` tells no progress of what it sends.) */
export function upload(file: File, onStep: (step: Step) => void, signal: AbortSignal): Promise<AddedDocument> {
  return new Promise((resolve, reject) => {
    const sending = new XMLHttpRequest();
    let taken = 0; // characters of the answer
    const hear = (event: EventSourceMessage) => {
      if (event.event === "step") onStep(JSON.parse(event.data) as Step);
      if (event.event === "done") resolve((JSON.parse(event.data) as { added: [AddedDocument] }).added[0]);
      if (event.event === "error") reject(problemOf(0, event.data, null));
    };
    const parser = createParser({ onEvent: hear });
    const read = () => {
      if (sending.status !== 200) return;
      parser.feed(sending.responseText.slice(taken));
      taken = sending.responseText.length;
    };
    sending.open("POST", "documents");
    sending.setRequestHeader("Accept", "text/event-stream");
    for (const [name, value] of Object.entries(authorization())) sending.setRequestHeader(name, value);
    sending.upload.onprogress = (event) =>
      event.lengthComputable && onStep({ step: "sending", done: event.loaded, total: event.total });
    sending.onprogress = read;
    sending.onerror = () => reject(new Problem("unreachable"));
    sending.onabort = () => reject(new Problem("cancelled"));
    sending.onload = () => {
      if (sending.status !== 200) {
        reject(problemOf(sending.status, sending.responseText, sending.getResponseHeader("Retry-After")));
        return;
      }
      read();
      reject(new Problem("interrupted")); // does nothing where the last event said how it ended
    };
    signal.addEventListener("abort", () => sending.abort());
    const form = new FormData();
    form.append("files", file);
    sending.send(form);
  });
}
