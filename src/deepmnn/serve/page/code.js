// What is shown as it was written: blocks of code, and formulas.

import { copyButton, make } from "./elements.js";
import { Highlighter } from "./highlight.js";
import { say } from "./words.js";

/** Lines that are added one by one, and a draft of the next. */
export class Lines {
  #draft = document.createTextNode("");
  #highlighter;
  #empty = true;

  /** node: what shows them. language: how they are coloured. */
  constructor(node, language = "") {
    this.#highlighter = new Highlighter(language);
    this.node = node;
    node.append(this.#draft);
  }

  add(line) {
    this.draft(null);
    this.#draft.before(this.#empty ? "" : "\n", ...this.#highlighter.line(line));
    this.#empty = false;
  }

  /** Shows a line that may still change; null takes it back. */
  draft(line) {
    this.#draft.data = line === null ? "" : (this.#empty ? "" : "\n") + line;
  }
}

/** A block of code with a button that copies it. Returns {node, lines}. */
export function codeBlock(language) {
  const code = make("code");
  const copy = copyButton(say("copyCode"), say("copied"), () => code.textContent);
  const head = make("div", { class: "code-head" }, make("span", { text: language }), copy);
  const node = make("div", { class: "code", dir: "ltr" }, head, make("pre", { tabindex: 0 }, code));
  return { node, lines: new Lines(code, language) };
}
