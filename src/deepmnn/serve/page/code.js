// What is shown as it was written: blocks of code, and formulas.

import { copyButton, make } from "./elements.js";
import { Highlighter } from "./highlight.js";
import { say } from "./words.js";

const CHUNK = 100; // lines that the browser lays out again when one more comes

/** Lines that are added one by one, and a draft of the next. */
export class Lines {
  #draft = document.createTextNode("");
  #highlighter;
  #count = 0;

  /** node: what shows them. language: how they are coloured. */
  constructor(node, language = "") {
    this.#highlighter = new Highlighter(language);
    this.node = node;
    this.#begin();
  }

  add(line) {
    this.draft(null);
    this.#draft.before(this.#newline, ...this.#highlighter.line(line));
    this.#count += 1;
    if (this.#count % CHUNK === 0) {
      this.#draft.before("\n"); // a break at the end of a chunk is not seen, but copied
      this.#begin();
    }
  }

  /** Shows a line that may still change; null takes it back. */
  draft(line) {
    this.#draft.data = line === null ? "" : this.#newline + line;
  }

  get #newline() {
    return this.#count % CHUNK ? "\n" : "";
  }

  #begin() {
    this.node.append(make("span", { class: "chunk" }, this.#draft));
  }
}

/** A block of code with a button that copies it. Returns {node, lines}. */
export function codeBlock(language) {
  const code = make("code");
  const copy = copyButton(say("copyCode"), say("copied"), () => code.textContent.replace(/\n$/, ""));
  const head = make("div", { class: "code-head" }, make("span", { text: language }), copy);
  const node = make("div", { class: "code", dir: "ltr" }, head, make("pre", { tabindex: 0 }, code));
  return { node, lines: new Lines(code, language) };
}
