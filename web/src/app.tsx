// The whole page: the question and its answer on one side, the documents on the other.

import { useCallback, useEffect, useLayoutEffect, useState } from "preact/hooks";
import { getInfo, Problem, type Hit, type Info, type Question, type Turn } from "./api";
import { Announcement, Answer, Hits } from "./answer";
import { useAsk, type Asked } from "./ask";
import { Documents, useLibrary, type Library } from "./documents";
import { AskForm, type Draft } from "./form";
import { History } from "./history-list";
import { KeyDialog, useKey, type WithKey } from "./key";
import { PassageDialog } from "./passage";
import { explain, firstStrings, Language, otherStrings, useStrings } from "./strings";

export function App() {
  const [strings, setStrings] = useState(firstStrings);
  const { withKey, prompt } = useKey();
  const { info, problem, reload } = useInfo(withKey);
  const library = useLibrary(withKey, info !== null && info.passages !== null);
  useLayoutEffect(() => {
    document.documentElement.lang = strings.code;
    document.title = strings.title;
  }, [strings]);
  return (
    <Language.Provider value={strings}>
      <a class="skip" href="#question">
        {strings.skip}
      </a>
      <header class="top">
        <span class="brand">
          <img src="./icon.svg" alt="" width="24" height="24" /> peg-rag
        </span>
        <nav aria-label={strings.navigation}>
          {library && (
            <a class="narrow-only" href="#documents">
              {strings.toDocuments(library.total)}
            </a>
          )}
          <a class="wide-only" href="docs">
            {strings.api}
          </a>
          <button type="button" class="plain" lang={strings.otherCode} onClick={() => setStrings(otherStrings)}>
            {strings.other}
          </button>
        </nav>
      </header>
      {problem && (
        <main class="alone">
          <div class="problem" role="alert">
            <p>{explain(problem, strings)}</p>
            <p class="actions">
              <button type="button" class="plain" onClick={reload}>
                {strings.retry}
              </button>
            </p>
          </div>
        </main>
      )}
      {info && info.passages === null && (
        <main class="alone">
          <h1>peg-rag</h1>
          <p>{strings.noStore}</p>
        </main>
      )}
      {info && library && <Desk info={info} library={library} withKey={withKey} onChanged={reload} />}
      {prompt && <KeyDialog prompt={prompt} />}
    </Language.Provider>
  );
}

function useInfo(withKey: WithKey) {
  const [info, setInfo] = useState<Info | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const reload = useCallback(async () => {
    try {
      const told = await withKey(getInfo);
      if (told) setInfo(told);
      setProblem(told ? null : new Problem("invalid_api_key"));
    } catch (error) {
      setProblem(error as Problem);
    }
  }, [withKey]);
  useEffect(() => void reload(), [reload]);
  return { info, problem, reload };
}

interface Props {
  info: Info;
  library: Library;
  withKey: WithKey;
  onChanged: () => Promise<void>;
}

function Desk({ info, library, withKey, onChanged }: Props) {
  const strings = useStrings();
  const [draft, setDraft] = useState<Draft>({ question: "", mode: "hybrid", answers: info.answers[0]!, scope: null });
  const { asked, busy, history, start, stop, show, setOpinion, forget } = useAsk(withKey);
  const [open, setOpen] = useState<Hit | null>(null);
  const [topic, setTopic] = useState(0); // when the reader changed it, in milliseconds since 1970

  // What is only quoted sends nothing to a language model.
  const turnsFor = (wanted: Draft) => (info.history && wanted.answers === "generated" ? turnsOf(history, topic) : []);
  const turns = turnsFor(draft);
  const ask = (wanted: Draft) => start(questionOf(wanted, turnsFor(wanted)));
  const change = (wanted: Draft) => {
    setDraft(wanted);
    const other = wanted.mode !== draft.mode || wanted.answers !== draft.answers || wanted.scope !== draft.scope;
    // Comparing ways to search costs the server little; what a language model writes is only written when asked for.
    if (asked && other && wanted.answers === "extractive" && wanted.question === asked.question.question) ask(wanted);
  };
  const empty = library.total === 0;
  const intro = empty ? (info.writable ? strings.introEmpty : strings.introEmptyReadOnly) : strings.intro(library.total);
  return (
    <div class="desk">
      <main>
        {!asked && (
          <div class="welcome">
            <h1>{strings.heading}</h1>
            <p>{intro}</p>
          </div>
        )}
        {asked && <h1 class="unseen">{strings.heading}</h1>}
        <AskForm info={info} draft={draft} busy={busy} onChange={change} onAsk={() => ask(draft)} onStop={stop} />
        {turns.length > 0 && (
          <p class="notice follow">
            {strings.follows(turns.length)}
            <button type="button" class="link" onClick={() => setTopic(Date.now())}>
              {strings.newTopic}
            </button>
          </p>
        )}
        {asked && (
          <Answer
            asked={asked}
            onOpen={setOpen}
            onRetry={() => start(asked.question)}
            onQuote={() => {
              setDraft({ ...draft, answers: "extractive" });
              start({ ...asked.question, answers: "extractive", history: [] });
            }}
            rating={info.feedback ? { withKey, onOpinion: setOpinion } : null}
          />
        )}
        {asked && <Hits asked={asked} onOpen={setOpen} />}
        <History
          history={history}
          current={asked?.id}
          onShow={(earlier) => {
            show(earlier);
            setDraft({ ...draft, question: earlier.question.question });
            document.querySelector(".answer")?.scrollIntoView({ block: "nearest" });
          }}
          onForget={forget}
        />
        <Announcement asked={asked} />
      </main>
      <Documents
        info={info}
        library={library}
        withKey={withKey}
        scope={draft.scope?.source ?? null}
        onScope={({ source, name }) => {
          change({ ...draft, scope: draft.scope?.source === source ? null : { source, name } });
          document.getElementById("question")?.focus();
        }}
        onChanged={async (deleted) => {
          if (deleted && deleted.source === draft.scope?.source) setDraft({ ...draft, scope: null });
          await Promise.all([library.reload(), onChanged()]);
        }}
        onForget={forget} // what was read with the key goes with it
      />
      {open && asked && <PassageDialog hit={open} quotes={asked.sentences} onClose={() => setOpen(null)} />}
    </div>
  );
}

function questionOf(draft: Draft, history: Turn[]): Question {
  const { question, mode, answers, scope } = draft;
  return { question: question.trim(), mode, answers, source: scope?.source ?? null, history };
}

const TURNS = 3; // earlier ones that a follow-up is read by

/** The last turns since the reader changed the topic, the oldest first. */
function turnsOf(history: readonly Asked[], topic: number): Turn[] {
  const turns = history.filter((asked) => asked.end?.found && asked.askedAt >= topic).slice(0, TURNS);
  return turns.reverse().map((asked) => ({ question: asked.question.question, answer: asked.end!.text.slice(0, 2000) }));
}
