// What a reader thinks of an answer: a thumb, then, if they like, which passage was the right one, and why.

import { useEffect, useState } from "preact/hooks";
import { Problem, rate, type Hit } from "./api";
import type { Asked, Opinion } from "./ask";
import type { WithKey } from "./key";
import { placeOf } from "./passage";
import { explain, useStrings } from "./strings";
import { excerpt } from "./text";

interface Props {
  asked: Asked;
  withKey: WithKey;
  onOpinion: (id: string, opinion: Opinion) => void;
}

const THUMB = "M7 9v8H4V9zM7 9l3-6c1.4 0 2 1 2 2v3h4c1 0 1.6.9 1.4 1.8l-1.2 6c-.2.7-.8 1.2-1.6 1.2H7";

export function Feedback({ asked, withKey, onOpinion }: Props) {
  const strings = useStrings();
  const [draft, setDraft] = useState<Opinion | null>(asked.opinion);
  const [state, setState] = useState<"idle" | "sending" | "sent" | "complete">(asked.opinion ? "complete" : "idle");
  const [problem, setProblem] = useState<Problem | null>(null);
  useEffect(() => {
    setDraft(asked.opinion);
    setState(asked.opinion ? "complete" : "idle");
    setProblem(null);
  }, [asked.id]);

  const send = async (opinion: Opinion, after: "sent" | "complete") => {
    setDraft(opinion);
    setState("sending");
    setProblem(null);
    try {
      const kept = await withKey(() => rate(ratingOf(asked, opinion)), true);
      if (kept === undefined) {
        setDraft(asked.opinion);
        setState(asked.opinion ? "sent" : "idle");
        return;
      }
      onOpinion(asked.id, opinion);
      setState(after);
    } catch (error) {
      setState(asked.opinion ? "sent" : "idle");
      setProblem(error instanceof Problem ? error : new Problem("unknown"));
    }
  };
  const vote = (chosen: Opinion["vote"]) => {
    const same = draft?.vote === chosen;
    void send(same ? draft : { vote: chosen, reason: draft?.reason ?? "", useful: draft?.useful ?? [] }, "sent");
  };
  const thumb = (chosen: Opinion["vote"], label: string) => (
    <button
      type="button"
      class={`icon-button thumb ${chosen}`}
      aria-label={label}
      title={label}
      aria-pressed={draft?.vote === chosen}
      disabled={state === "sending"}
      onClick={() => vote(chosen)}
    >
      <svg viewBox="0 0 20 20" aria-hidden="true">
        <path d={THUMB} />
      </svg>
    </button>
  );
  return (
    <section class="feedback" aria-label={strings.feedback}>
      <p class="feedback-line">
        <span class="muted">{strings.feedbackQuestion}</span>
        {thumb("up", strings.thumbUp)}
        {thumb("down", strings.thumbDown)}
        <span class="muted" role="status">
          {state === "sent" || state === "complete" ? strings.feedbackKept : ""}
        </span>
      </p>
      {problem && (
        <p class="problem" role="alert">
          {explain(problem, strings)}
        </p>
      )}
      {draft && state === "sent" && (
        <form
          class="feedback-more"
          onSubmit={(event) => {
            event.preventDefault();
            void send(draft, "complete");
          }}
        >
          <fieldset>
            <legend>{draft.vote === "up" ? strings.whichHelped : strings.whichWasRight}</legend>
            {candidatesOf(asked).map((hit) => (
              <label key={hit.id} class="candidate">
                <input
                  type="checkbox"
                  checked={draft.useful.includes(hit.id)}
                  onChange={(event) => {
                    const others = draft.useful.filter((id) => id !== hit.id);
                    setDraft({ ...draft, useful: event.currentTarget.checked ? [...others, hit.id] : others });
                  }}
                />
                <span>
                  <span class="name">{placeOf(hit, strings).name}</span>
                  <span class="muted"> {excerpt(hit.text, hit.matches, undefined, 60).text}</span>
                </span>
              </label>
            ))}
          </fieldset>
          <label for="reason">{strings.reason}</label>
          <textarea
            id="reason"
            rows={2}
            maxLength={2000}
            value={draft.reason}
            placeholder={draft.vote === "up" ? "" : strings.reasonHint}
            onInput={(event) => setDraft({ ...draft, reason: event.currentTarget.value })}
          />
          <button type="submit" class="plain">
            {strings.sendFeedback}
          </button>
        </form>
      )}
    </section>
  );
}

function citedIds(asked: Asked): Set<string> {
  return new Set(asked.end?.found ? asked.end.citations.map((citation) => citation.passage_id) : []);
}

/** The passages to choose from, the cited ones first. */
function candidatesOf(asked: Asked): Hit[] {
  const cited = citedIds(asked);
  const hits = asked.opening?.hits ?? [];
  return [...hits.filter((hit) => cited.has(hit.id)), ...hits.filter((hit) => !cited.has(hit.id))].slice(0, 20);
}

function ratingOf(asked: Asked, { vote, reason, useful }: Opinion) {
  const cited = citedIds(asked);
  const passages = candidatesOf(asked).map(({ id }) => ({ passage_id: id, cited: cited.has(id), useful: useful.includes(id) }));
  return { id: asked.id, question: asked.question.question, vote, reason: reason.trim(), passages };
}
