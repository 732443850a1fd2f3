// The question and how it is to be answered.

import { useEffect, useRef } from "preact/hooks";
import type { Info, Kind, Mode } from "./api";
import { useStrings } from "./strings";

const MODES: Mode[] = ["hybrid", "dense", "lexical"];

export interface Draft {
  question: string;
  mode: Mode;
  answers: Kind;
  scope: { source: string; name: string } | null;
}

interface Props {
  info: Info;
  draft: Draft;
  busy: boolean;
  onChange: (draft: Draft) => void;
  onAsk: () => void;
  onStop: () => void;
}

export function AskForm({ info, draft, busy, onChange, onAsk, onStop }: Props) {
  const strings = useStrings();
  const box = useRef<HTMLTextAreaElement>(null);
  useEffect(() => focusOnSlash(box.current!), []);
  const model = info.language_model;
  return (
    <form
      class="ask"
      onSubmit={(event) => {
        event.preventDefault();
        if (draft.question.trim()) onAsk();
        else box.current?.focus();
      }}
    >
      <div class="ask-box">
        <label class="unseen" for="question">
          {strings.question}
        </label>
        <textarea
          id="question"
          ref={box}
          rows={2}
          maxLength={2000}
          placeholder={strings.placeholder}
          aria-describedby="question-keys"
          enterkeyhint="go"
          value={draft.question}
          onInput={(event) => onChange({ ...draft, question: event.currentTarget.value })}
          onKeyDown={(event) => {
            // While an input method composes, Enter takes its suggestion and is not meant for us.
            if (event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229) {
              event.preventDefault();
              event.currentTarget.form?.requestSubmit();
            }
          }}
        />
        <div class="ask-foot">
          {draft.scope ? (
            <span class="scope">
              <span>{strings.scope(draft.scope.name)}</span>
              <button type="button" onClick={() => onChange({ ...draft, scope: null })} aria-label={strings.clearScope} title={strings.clearScope}>
                <svg viewBox="0 0 20 20" aria-hidden="true">
                  <path d="M5 5l10 10M15 5L5 15" />
                </svg>
              </button>
            </span>
          ) : (
            <span class="muted hint" id="question-keys">
              {strings.keys}
            </span>
          )}
          {busy ? (
            <button type="button" class="primary" onClick={onStop}>
              {strings.stop}
            </button>
          ) : (
            <button type="submit" class="primary">
              {strings.ask}
            </button>
          )}
        </div>
      </div>
      <div class="choices">
        <Choice
          legend={strings.mode}
          name="mode"
          options={MODES.map((mode) => ({ value: mode, label: strings.modes[mode], hint: strings.modeHints[mode] }))}
          value={draft.mode}
          onChange={(mode) => onChange({ ...draft, mode })}
        />
        {info.answers.length > 1 && (
          <Choice
            legend={strings.kind}
            name="kind"
            options={info.answers.map((kind) => ({ value: kind, label: strings.kinds[kind], hint: "" }))}
            value={draft.answers}
            onChange={(answers) => onChange({ ...draft, answers })}
          />
        )}
      </div>
      {model && draft.answers === "generated" && (
        <p class={`notice ${model.local ? "" : "outward"}`}>
          {model.local ? strings.stays(model.name) : strings.leaves(model.name, model.host)}
        </p>
      )}
    </form>
  );
}

interface ChoiceProps<T extends string> {
  legend: string;
  name: string;
  options: { value: T; label: string; hint: string }[];
  value: T;
  onChange: (value: T) => void;
}

function Choice<T extends string>({ legend, name, options, value, onChange }: ChoiceProps<T>) {
  return (
    <fieldset class="choice">
      <legend>{legend}</legend>
      <div class="segments">
        {options.map((option) => (
          <label key={option.value} title={option.hint || undefined}>
            <input
              type="radio"
              name={name}
              value={option.value}
              checked={option.value === value}
              onChange={() => onChange(option.value)}
            />
            <span>{option.label}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}

/** As on many pages, "/" goes to the question. */
function focusOnSlash(box: HTMLTextAreaElement): () => void {
  const listen = (event: KeyboardEvent) => {
    const typing = (event.target as Element).closest("input, textarea, dialog");
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || typing) return;
    event.preventDefault();
    box.focus();
  };
  document.addEventListener("keydown", listen);
  return () => document.removeEventListener("keydown", listen);
}
