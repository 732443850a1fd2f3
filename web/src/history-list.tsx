// The earlier questions of this tab: one click shows the answer again.

import type { Asked } from "./ask";
import { useStrings } from "./strings";

interface Props {
  history: Asked[];
  current: string | undefined;
  onShow: (earlier: Asked) => void;
  onForget: () => void;
}

export function History({ history, current, onShow, onForget }: Props) {
  const strings = useStrings();
  if (history.length === 0 || (history.length === 1 && history[0]!.id === current)) return null;
  return (
    <section class="history" aria-labelledby="history-title">
      <h2 id="history-title">
        {strings.history} <span class="muted">{strings.historyNote}</span>
      </h2>
      <ol>
        {history.map((earlier) => (
          <li key={earlier.id}>
            <button type="button" aria-current={earlier.id === current ? "true" : undefined} onClick={() => onShow(earlier)}>
              <span>{earlier.question.question}</span>
              <span class="muted">{earlier.end?.found ? earlier.end.text.replace(/\[\d+\]/g, " ") : strings.notFound}</span>
            </button>
          </li>
        ))}
      </ol>
      <button type="button" class="link" onClick={onForget}>
        {strings.forgetHistory}
      </button>
    </section>
  );
}
