// The questions of this tab and their answers: gone when it is closed, and when the reader says so.

import type { Asked } from "./ask";

const HISTORY = "peg-rag-history";
const MOST = 20;

/** The newest first. */
export function readHistory(): Asked[] {
  try {
    return JSON.parse(sessionStorage.getItem(HISTORY) ?? "[]") as Asked[];
  } catch {
    return [];
  }
}

/** Keeps an answer, in place of an earlier state of it; where the browser has no more room, the oldest go. */
export function keepAnswer(history: readonly Asked[], asked: Asked): Asked[] {
  const known = history.some((earlier) => earlier.id === asked.id);
  const next = known
    ? history.map((earlier) => (earlier.id === asked.id ? asked : earlier))
    : [asked, ...history].slice(0, MOST);
  for (let kept = next; ; kept = kept.slice(0, -1)) {
    try {
      sessionStorage.setItem(HISTORY, JSON.stringify(kept));
      return kept;
    } catch (error) {
      if (kept.length === 0) return next; // nothing can be kept: the page still works
    }
  }
}

export function forgetHistory(): void {
  sessionStorage.removeItem(HISTORY);
}
