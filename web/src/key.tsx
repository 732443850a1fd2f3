// Asking for the server's key when something needs it.

import { useCallback, useState } from "preact/hooks";
import { Problem, key } from "./api";
import { Dialog } from "./dialog";
import { useStrings } from "./strings";

interface Prompt {
  wrong: boolean;
  settle: (entered: boolean) => void;
}

/** Runs an action that may need the key. Undefined: the reader did not give one. */
export type WithKey = <T>(action: () => Promise<T>, first?: boolean) => Promise<T | undefined>;

/** `withKey`, and the dialog to be shown while it waits for a key. With `first` the key is asked for before the action. */
export function useKey(): { withKey: WithKey; prompt: Prompt | null } {
  const [prompt, setPrompt] = useState<Prompt | null>(null);
  const askForKey = (wrong: boolean) =>
    new Promise<boolean>((resolve) => {
      const settle = (entered: boolean) => {
        setPrompt(null);
        resolve(entered);
      };
      setPrompt({ wrong, settle });
    });
  const withKey = useCallback(async <T,>(action: () => Promise<T>, first = false) => {
    if (first && !key.get() && !(await askForKey(false))) return undefined;
    for (;;) {
      try {
        return await action();
      } catch (error) {
        if (!(error instanceof Problem) || error.status !== 401) throw error;
        const wrong = key.get() !== "";
        key.forget();
        if (!(await askForKey(wrong))) return undefined;
      }
    }
  }, []);
  return { withKey, prompt };
}

export function KeyDialog({ prompt }: { prompt: Prompt }) {
  const strings = useStrings();
  const [value, setValue] = useState("");
  const [wrong, setWrong] = useState(prompt.wrong);
  return (
    <Dialog titleId="key-title" class="small" onClose={() => prompt.settle(false)}>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          const entered = value.trim();
          if (/^[!-~]+$/.test(entered)) {
            key.set(entered);
            prompt.settle(true);
          } else {
            setWrong(true); // it could not even travel in a header
          }
        }}
      >
        <h2 id="key-title">{strings.keyHeading}</h2>
        <p>{strings.keyText}</p>
        {wrong && (
          <p class="problem" role="alert" id="key-wrong">
            {strings.keyWrong}
          </p>
        )}
        <label for="key">{strings.keyLabel}</label>
        <input
          id="key"
          type="password"
          autocomplete="off"
          autofocus
          spellcheck={false}
          value={value}
          aria-describedby={wrong ? "key-wrong" : undefined}
          onInput={(event) => setValue(event.currentTarget.value)}
        />
        <div class="actions">
          <button type="button" class="plain" onClick={() => prompt.settle(false)}>
            {strings.cancel}
          </button>
          <button type="submit" class="primary">
            {strings.continue}
          </button>
        </div>
      </form>
    </Dialog>
  );
}
