// The state of one question: asked, its passages found, answered piece by piece, done or failed; and those before it.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { ask, Problem, type AskEvent, type End, type Opening, type Question, type Sentence } from "./api";
import { forgetHistory, keepAnswer, readHistory } from "./history";
import type { WithKey } from "./key";

/** What the reader said about an answer. `useful`: ids of passages. */
export interface Opinion {
  vote: "up" | "down";
  reason: string;
  useful: string[];
}

export interface Asked {
  /** 32 hexadecimal digits. */
  id: string;
  /** Milliseconds since 1970. */
  askedAt: number;
  question: Question;
  phase: "searching" | "answering" | "done" | "stopped" | "failed";
  opening: Opening | null;
  sentences: Sentence[];
  text: string;
  end: End | null;
  problem: Problem | null;
  opinion: Opinion | null;
}

function begin(question: Question): Asked {
  const empty = { opening: null, sentences: [], text: "", end: null, problem: null, opinion: null };
  return { id: newId(), askedAt: Date.now(), question, phase: "searching", ...empty };
}

function newId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function advance(asked: Asked, event: AskEvent): Asked {
  switch (event.event) {
    case "hits":
      return { ...asked, phase: "answering", opening: event.data };
    case "sentence":
      return { ...asked, sentences: [...asked.sentences, event.data] };
    case "delta":
      return { ...asked, text: asked.text + event.data.text };
    case "done":
      return { ...asked, phase: "done", end: event.data };
  }
}

export interface Asking {
  asked: Asked | null;
  busy: boolean;
  /** Answers of this tab, the newest first. */
  history: Asked[];
  start: (question: Question) => void;
  stop: () => void;
  show: (earlier: Asked) => void;
  setOpinion: (id: string, opinion: Opinion) => void;
  forget: () => void;
}

/** A new question takes the place of one that is still being answered. */
export function useAsk(withKey: WithKey): Asking {
  const [asked, setAsked] = useState<Asked | null>(null);
  const [history, setHistory] = useState(readHistory);
  const running = useRef<AbortController | null>(null);

  const start = useCallback(
    async (question: Question) => {
      running.current?.abort();
      const controller = new AbortController();
      running.current = controller;
      const update = (change: (current: Asked) => Asked) =>
        running.current === controller && setAsked((current) => current && change(current));
      setAsked(begin(question));
      try {
        const answered = await withKey(async () => {
          for await (const event of ask(question, controller.signal)) update((current) => advance(current, event));
          return true;
        });
        if (!answered) setAsked(null);
      } catch (error) {
        if (controller.signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem("unknown");
        update((current) => ({ ...current, phase: "failed", problem }));
      }
    },
    [withKey],
  );

  const stop = useCallback(() => {
    running.current?.abort();
    setAsked((current) => current && { ...current, phase: "stopped" });
  }, []);

  const show = useCallback((earlier: Asked) => {
    running.current?.abort();
    running.current = null;
    setAsked(earlier);
  }, []);

  const setOpinion = useCallback((id: string, opinion: Opinion) => {
    setAsked((current) => (current?.id === id ? { ...current, opinion } : current));
  }, []);

  const forget = useCallback(() => {
    forgetHistory();
    setHistory([]);
  }, []);

  useEffect(() => {
    if (asked?.phase === "done") setHistory((all) => keepAnswer(all, asked));
  }, [asked]);

  const busy = asked?.phase === "searching" || asked?.phase === "answering";
  return { asked, busy, history, start, stop, show, setOpinion, forget };
}
