// A modal dialog: the browser's own, which keeps the focus inside, closes on Esc and gives the focus back.

import type { ComponentChildren } from "preact";
import { useLayoutEffect, useRef } from "preact/hooks";

interface Props {
  titleId: string;
  class: string;
  onClose: () => void;
  children: ComponentChildren;
}

/** Open for as long as it is part of the page. */
export function Dialog({ titleId, class: name, onClose, children }: Props) {
  const element = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const dialog = element.current!;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  return (
    <dialog
      ref={element}
      class={name}
      aria-labelledby={titleId}
      onCancel={(event) => {
        event.preventDefault();
        onClose();
      }}
      onClick={(event) => event.target === element.current && onClose()}
    >
      <div class="dialog-body">{children}</div>
    </dialog>
  );
}
