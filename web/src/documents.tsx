// The documents: listed, uploaded by button or by dropping them anywhere on the page, deleted once confirmed.

import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { deleteDocument, key, listDocuments, Problem, upload, type DocumentCard, type Info, type Step } from "./api";
import { Dialog } from "./dialog";
import type { WithKey } from "./key";
import { explain, useStrings, type Strings } from "./strings";

const PAGE = 50;

export interface Library {
  documents: DocumentCard[];
  total: number;
  problem: Problem | null;
  reload: () => Promise<void>;
  more: () => Promise<void>;
}

/** The list of documents, as far as it was loaded. Null until it is there for the first time. */
export function useLibrary(withKey: WithKey, present: boolean): Library | null {
  const [state, setState] = useState<{ documents: DocumentCard[]; total: number } | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const load = useCallback(
    async (known: DocumentCard[]) => {
      try {
        const page = await withKey(() => listDocuments(known.length, PAGE));
        if (page) setState({ documents: [...known, ...page.documents], total: page.total });
        setProblem(null);
      } catch (error) {
        setProblem(error as Problem);
        setState((current) => current ?? { documents: [], total: 0 });
      }
    },
    [withKey],
  );
  useEffect(() => {
    if (present) void load([]);
  }, [present, load]);
  return state && { ...state, problem, reload: () => load([]), more: () => load(state.documents) };
}

type Sending =
  | { state: "waiting" | "cancelled" }
  | ({ state: "working" } & Step)
  | { state: "done"; passages: number; replaced: boolean }
  | { state: "failed"; problem: Problem };

type Item = Sending & { id: number; name: string };

/** Sends files one after another, so that each has its own progress and its own error. */
function useUploads(info: Info, withKey: WithKey, onAdded: () => Promise<void>) {
  const [items, setItems] = useState<Item[]>([]);
  const line = useRef<Promise<void>>(Promise.resolve());
  const next = useRef(0);
  const running = useRef(new Map<number, AbortController>());

  const send = async (file: File, id: number) => {
    const tell = (sending: Sending) => setItems((all) => all.map((item) => (item.id === id ? { ...sending, id, name: item.name } : item)));
    try {
      const { signal } = running.current.get(id)!;
      signal.throwIfAborted();
      refuse(file, info);
      const added = await withKey(() => {
        tell({ state: "working", step: "sending", done: 0, total: file.size });
        return upload(file, (step) => tell({ state: "working", ...step }), signal);
      }, true);
      if (!added) {
        setItems((all) => all.filter((item) => item.id !== id));
        return;
      }
      tell({ state: "done", passages: added.passages, replaced: added.replaced });
      await onAdded();
    } catch (error) {
      if (running.current.get(id)?.signal.aborted) {
        tell({ state: "cancelled" });
        await onAdded(); // it may have been added at the very last moment
      } else {
        tell({ state: "failed", problem: error instanceof Problem ? error : new Problem("unknown") });
      }
    } finally {
      running.current.delete(id);
    }
  };

  const add = (files: Iterable<File>) => {
    for (const file of files) {
      const id = next.current++;
      running.current.set(id, new AbortController());
      setItems((all) => [...all, { id, name: file.name, state: "waiting" }]);
      line.current = line.current.then(() => send(file, id));
    }
  };
  const keep = (wanted: (item: Item) => boolean) => setItems((all) => all.filter(wanted));
  return {
    items,
    add,
    cancel: (id: number) => {
      running.current.get(id)?.abort();
      setItems((all) => all.map((item) => (item.id === id ? { id, name: item.name, state: "cancelled" } : item)));
    },
    clear: () => keep(isActive),
    forget: (name: string) => keep((item) => item.state !== "done" || item.name !== name),
  };
}

const isActive = (item: Sending): boolean => item.state === "waiting" || item.state === "working";

/** What the server would refuse anyway is said before anything is sent. */
function refuse(file: File, info: Info): void {
  const suffix = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
  if (!info.suffixes.includes(suffix)) throw new Problem("unsupported_media_type");
  if (file.size > info.max_upload_bytes) throw new Problem("too_large");
}

interface Props {
  info: Info;
  library: Library;
  withKey: WithKey;
  scope: string | null;
  onScope: (document: DocumentCard) => void;
  onChanged: (deleted?: DocumentCard) => Promise<void>;
  onForget: () => void;
}

export function Documents({ info, library, withKey, scope, onScope, onChanged, onForget }: Props) {
  const strings = useStrings();
  const { items, add, cancel, clear, forget } = useUploads(info, withKey, onChanged);
  const [doomed, setDoomed] = useState<DocumentCard | null>(null);
  const [said, setSaid] = useState("");
  const [problem, setProblem] = useState<Problem | null>(null);
  const heading = useRef<HTMLHeadingElement>(null);
  const dragging = useDrop(info.writable, add);

  const remove = async (document: DocumentCard) => {
    setDoomed(null);
    setProblem(null);
    try {
      if (!(await withKey(() => deleteDocument(document.id), true))) return;
      setSaid(strings.removed(document.name));
      forget(document.name);
      await onChanged(document);
      heading.current?.focus(); // the button that was pressed is gone
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem("unknown"));
    }
  };

  const shown = problem ?? library.problem;
  return (
    <aside class="documents" id="documents" aria-labelledby="documents-title">
      <h2 id="documents-title" tabIndex={-1} ref={heading}>
        {strings.documents} <span class="muted">{strings.documentsCount(library.total, info.passages ?? 0)}</span>
      </h2>
      {info.writable ? <Chooser info={info} onFiles={add} /> : <p class="notice">{strings.readOnly}</p>}
      {items.length > 0 && <Uploads items={items} onCancel={cancel} onClear={clear} />}
      {shown && (
        <p class="problem" role="alert">
          {explain(shown, strings)}
        </p>
      )}
      <ul class="cards">
        {library.documents.map((document) => (
          <Card
            key={document.id}
            document={document}
            scoped={scope === document.source}
            deletable={info.writable && document.uploaded}
            onScope={() => onScope(document)}
            onDelete={() => setDoomed(document)}
          />
        ))}
      </ul>
      {library.documents.length === 0 && !shown && <p class="muted">{strings.noDocuments}</p>}
      {library.documents.length < library.total && (
        <button type="button" class="plain" onClick={() => void library.more()}>
          {strings.more}
        </button>
      )}
      {info.writable && library.documents.some((document) => !document.uploaded) && <p class="muted fine">{strings.fromFolder}</p>}
      <Forget onForget={onForget} />
      <p class="unseen" role="status">
        {said}
      </p>
      {doomed && <Confirm document={doomed} onCancel={() => setDoomed(null)} onConfirm={() => void remove(doomed)} />}
      {dragging && (
        <div class="drop-cover" aria-hidden="true">
          <p>{strings.dropNow}</p>
        </div>
      )}
    </aside>
  );
}

function Chooser({ info, onFiles }: { info: Info; onFiles: (files: Iterable<File>) => void }) {
  const strings = useStrings();
  return (
    <div class="drop">
      <label class="plain">
        <input
          class="unseen"
          type="file"
          multiple
          accept={info.suffixes.join(",")}
          aria-describedby="accepted"
          onChange={(event) => {
            onFiles([...(event.currentTarget.files ?? [])]);
            event.currentTarget.value = ""; // so that the same file can be chosen again
          }}
        />
        <span>{strings.choose}</span>
      </label>
      <span class="muted wide-only">{strings.dropHere}</span>
      <p class="muted fine" id="accepted">
        {strings.accepted(info.suffixes, info.max_upload_bytes)}
      </p>
    </div>
  );
}

function Uploads({ items, onCancel, onClear }: { items: Item[]; onCancel: (id: number) => void; onClear: () => void }) {
  const strings = useStrings();
  const busy = items.some(isActive);
  return (
    <section class="uploads" aria-label={strings.uploads}>
      <ul>
        {items.map((item) => (
          <li key={item.id}>
            <span class="name">{item.name}</span>
            {item.state === "working" && <progress aria-label={item.name} {...shareOf(item)} />}
            {isActive(item) && (
              <button type="button" class="link" aria-label={strings.cancelUpload(item.name)} onClick={() => onCancel(item.id)}>
                {strings.cancel}
              </button>
            )}
            <span class={item.state === "failed" ? "problem" : "muted"} role="status">
              {stateOf(item, strings)}
            </span>
          </li>
        ))}
      </ul>
      {!busy && (
        <button type="button" class="plain" onClick={onClear}>
          {strings.dismiss}
        </button>
      )}
    </section>
  );
}

/** The share that is done; nothing where it is not known how long the rest takes. */
function shareOf({ step, done, total }: Step): { value?: number } {
  const known = total > 0 && step !== "indexing" && !(step === "sending" && done >= total);
  return known ? { value: done / total } : {};
}

function stateOf(item: Sending, strings: Strings): string {
  switch (item.state) {
    case "waiting":
      return strings.waiting;
    case "cancelled":
      return strings.cancelled;
    case "working":
      return workOf(item, strings);
    case "done":
      return strings.added(item.passages, item.replaced);
    case "failed":
      return explain(item.problem, strings);
  }
}

function workOf({ step, done, total }: Step, strings: Strings): string {
  if (step === "sending") return done < total ? strings.uploading(Math.round((100 * done) / total)) : strings.readingFile;
  if (step === "reading") return total > 0 ? strings.readingPages(done, total) : strings.readingFile;
  return strings.indexing;
}

interface CardProps {
  document: DocumentCard;
  scoped: boolean;
  deletable: boolean;
  onScope: () => void;
  onDelete: () => void;
}

function Card({ document, scoped, deletable, onScope, onDelete }: CardProps) {
  const strings = useStrings();
  const slash = document.name.lastIndexOf("/") + 1;
  const about = [document.title, sizeOf(document.size_bytes)];
  return (
    <li class="card">
      <span class="name">
        <span class="path">{document.name.slice(0, slash)}</span>
        {document.name.slice(slash)}
      </span>
      <span class="muted fine">{about.filter(Boolean).join(" · ")}</span>
      <span class="actions">
        <button type="button" class="link" aria-pressed={scoped} aria-label={strings.askWithin(document.name)} onClick={onScope}>
          {strings.within}
        </button>
        {deletable && (
          <button type="button" class="link danger" aria-label={strings.removeNamed(document.name)} aria-haspopup="dialog" onClick={onDelete}>
            {strings.remove}
          </button>
        )}
      </span>
    </li>
  );
}

function sizeOf(bytes: number | null): string {
  if (bytes === null) return "";
  if (bytes < 1024) return `${bytes} B`;
  return bytes < 1 << 20 ? `${Math.round(bytes / 1024)} KB` : `${(bytes / (1 << 20)).toFixed(1)} MB`;
}

function Confirm({ document, onCancel, onConfirm }: { document: DocumentCard; onCancel: () => void; onConfirm: () => void }) {
  const strings = useStrings();
  return (
    <Dialog titleId="remove-title" class="small" onClose={onCancel}>
      <h2 id="remove-title">{strings.removeHeading}</h2>
      <p>{strings.removeText(document.name)}</p>
      <div class="actions">
        <button type="button" class="plain" autofocus onClick={onCancel}>
          {strings.cancel}
        </button>
        <button type="button" class="primary danger" onClick={onConfirm}>
          {strings.remove}
        </button>
      </div>
    </Dialog>
  );
}

function Forget({ onForget }: { onForget: () => void }) {
  const strings = useStrings();
  const [, redraw] = useState(0);
  if (!key.get()) return null;
  const forget = () => {
    key.forget();
    onForget();
    redraw((count) => count + 1);
  };
  return (
    <button type="button" class="link" onClick={forget}>
      {strings.forgetKey}
    </button>
  );
}

/** Takes files dropped anywhere on the page; true while some are held above it. */
function useDrop(enabled: boolean, onFiles: (files: Iterable<File>) => void): boolean {
  const [dragging, setDragging] = useState(false);
  const take = useRef(onFiles);
  take.current = onFiles;
  useEffect(() => {
    if (!enabled) return undefined;
    const holdsFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") ?? false;
    const over = (event: DragEvent) => {
      if (!holdsFiles(event) || document.querySelector("dialog[open]")) return;
      event.preventDefault();
      setDragging(true);
    };
    const leave = (event: DragEvent) => event.relatedTarget === null && setDragging(false);
    const drop = (event: DragEvent) => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      setDragging(false);
      take.current([...(event.dataTransfer?.files ?? [])]);
    };
    document.addEventListener("dragover", over);
    document.addEventListener("dragleave", leave);
    document.addEventListener("drop", drop);
    return () => {
      document.removeEventListener("dragover", over);
      document.removeEventListener("dragleave", leave);
      document.removeEventListener("drop", drop);
    };
  }, [enabled]);
  return dragging;
}
