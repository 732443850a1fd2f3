// The state of one question: asked, its passages found, answered piece by piece, done or failed.

import { useCallback, useRef, useState } from "preact/hooks";
import { ask, Problem, type AskEvent, type End, type Opening, type Question, type Sentence } from "./api";
import type { WithKey } from "./key";

export interface Asked {
  question: Question;
  phase: "searching" | "answering" | "done" | "stopped" | "failed";
  opening: Opening | null;
  sentences: Sentence[];
  text: string;
  end: End | null;
  problem: Problem | null;
}

function begin(question: Question): Asked {
  return { question, phase: "searching", opening: null, sentences: [], text: "", end: null, problem: null };
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
  start: (question: Question) => void;
  stop: () => void;
}

/** A new question takes the place of one that is still being answered. */
export function useAsk(withKey: WithKey): Asking {
  const [asked, setAsked] = useState<Asked | null>(null);
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

  const busy = asked?.phase === "searching" || asked?.phase === "answering";
  return { asked, busy, start, stop };
}
