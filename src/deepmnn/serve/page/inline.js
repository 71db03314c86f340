// The inside of a Markdown paragraph as DOM nodes. Every search ahead is bounded or remembered, so
// that no text takes more than linear time.

import { make } from "./elements.js";

const LONGEST_LINK = 2000; // characters
const LONGEST_MATH = 2000;
const DEEPEST = 20; // emphasis in emphasis
const SPECIAL = /[\\`*_~[!<$h\n]/g;
const PUNCTUATION = /[\p{P}\p{S}]/u;
const URL_TEXT = /https?:\/\/[^\s<>"'`\p{Script=Han}\u3000-\u303f\uff00-\uffef]{1,2000}/uy;

/**
 * Parses one paragraph.
 * open: more text may follow, so bold text and code without an end reach to the end of the text.
 */
export function inline(text, open = false) {
  return new Inline(text, open, true).run();
}

class Inline {
  constructor(text, open, links) {
    this.text = text;
    this.open = open;
    this.links = links; // a link has no links inside
    this.at = 0;
    this.plain = "";
    this.items = []; // nodes, and runs of emphasis marks that may still pair
    this.next = new Map(); // closing mark → where it comes next; Infinity: nowhere
  }

  run() {
    while (this.at < this.text.length) {
      SPECIAL.lastIndex = this.at;
      const next = SPECIAL.exec(this.text)?.index ?? this.text.length;
      this.plain += this.text.slice(this.at, next);
      this.at = next;
      if (next < this.text.length) this.special(this.text[next]);
    }
    this.flush();
    return emphasise(this.items, this.open);
  }

  special(mark) {
    const taken =
      mark === "\\" ? this.escape()
      : mark === "`" ? this.code()
      : mark === "\n" ? this.line()
      : mark === "[" ? this.link(this.at)
      : mark === "!" ? this.text[this.at + 1] === "[" && this.link(this.at + 1)
      : mark === "<" ? this.bracketed()
      : mark === "$" ? this.dollars()
      : mark === "h" ? this.address()
      : this.marks(mark);
    if (!taken) this.plain += this.text[this.at++];
  }

  flush() {
    if (this.plain) this.items.push(document.createTextNode(this.plain));
    this.plain = "";
  }

  /** Adds a node that ends before `end`. */
  add(node, end) {
    this.flush();
    this.items.push(node);
    this.at = end;
    return true;
  }

  /** Where `close` comes next within `most` characters, or -1. */
  find(close, from, most) {
    let found = this.next.get(close) ?? -1;
    if (found < from) {
      found = this.text.indexOf(close, from);
      if (found < 0) found = Infinity;
      this.next.set(close, found);
    }
    return found - from > most ? -1 : found;
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "(" || next === "[") {
      const end = this.find(next === "(" ? "\\)" : "\\]", this.at + 2, LONGEST_MATH);
      if (end > 0) return this.math(this.at + 2, end, 2);
    }
    if (next === undefined || !/[!-/:-@[-`{-~]/.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  math(start, end, closing) {
    return this.add(make("span", { class: "math", text: this.text.slice(start, end).trim() }), end + closing);
  }

  dollars() {
    const width = this.text[this.at + 1] === "$" ? 2 : 1;
    const start = this.at + width;
    const end = this.find("$".repeat(width), start, LONGEST_MATH);
    if (end <= start) return false;
    // One dollar is a price unless it touches its formula: "$5 and $6".
    const inside = this.text.slice(start, end);
    const after = this.text[end + width] ?? "";
    if (width === 1 && (/^\s|\s$|\n/.test(inside) || /[0-9]/.test(after))) return false;
    return this.math(start, end, width);
  }

  code() {
    const fence = /`+/y;
    fence.lastIndex = this.at;
    const width = fence.exec(this.text)[0].length;
    const start = this.at + width;
    let end = this.closing(width, start);
    let closing = width;
    if (end < 0) {
      if (!this.open || width > 1 || start === this.text.length) {
        this.plain += "`".repeat(width);
        this.at = start;
        return true;
      }
      end = this.text.length;
      closing = 0;
    }
    let inside = this.text.slice(start, end).replaceAll("\n", " ");
    if (inside.startsWith(" ") && inside.endsWith(" ") && inside.trim()) inside = inside.slice(1, -1);
    return this.add(make("code", { text: inside }), end + closing);
  }

  /** Where a run of exactly `width` backticks starts, or -1. */
  closing(width, from) {
    const name = `code ${width}`;
    if (this.next.get(name) === Infinity) return -1;
    const run = /`+/g;
    run.lastIndex = from;
    for (let found = run.exec(this.text); found; found = run.exec(this.text))
      if (found[0].length === width) return found.index;
    this.next.set(name, Infinity);
    return -1;
  }

  line() {
    this.plain = this.plain.trimEnd();
    return this.add(make("br"), this.at + 1);
  }

  /** [text](address "title"); a picture becomes a link, because the page loads nothing. */
  link(start) {
    if (!this.links) return false;
    const middle = this.find("](", start + 1, LONGEST_LINK);
    if (middle < 0) return false;
    const words = this.text.slice(start + 1, middle);
    if (words.includes("[") || words.includes("\n\n")) return false;
    const rest = /\s*<?([^\s<>]*?)>?(?:\s+(?:"[^"]{0,500}"|'[^']{0,500}'))?\s*\)/y;
    rest.lastIndex = middle + 2;
    const found = rest.exec(this.text.slice(0, middle + LONGEST_LINK));
    if (!found) return false;
    let address = found[1];
    let end = rest.lastIndex;
    // Parentheses that pair belong to the address: https://en.wikipedia.org/wiki/C_(disambiguation)
    if (address.split("(").length > address.split(")").length && this.text[end] === ")") {
      address += ")";
      end += 1;
    }
    const link = anchor(address);
    if (!link) return false;
    link.append(...new Inline(words, false, false).run());
    return this.add(link, end);
  }

  bracketed() {
    const end = this.find(">", this.at + 1, LONGEST_LINK);
    const address = this.text.slice(this.at + 1, Math.max(end, this.at + 1));
    const link = this.links && anchor(address);
    if (!link) return false;
    link.textContent = address;
    return this.add(link, end + 1);
  }

  address() {
    URL_TEXT.lastIndex = this.at;
    const found = URL_TEXT.exec(this.text)?.[0].replace(/[.,:;!?*_~)\]]+$/, "");
    const link = this.links && found && !/\w/.test(this.text[this.at - 1] ?? "") && anchor(found);
    if (!link) return false;
    link.textContent = found;
    return this.add(link, this.at + found.length);
  }

  marks(mark) {
    let end = this.at;
    while (this.text[end] === mark) end++;
    const width = end - this.at;
    if (width > 3 || (mark === "~" && width !== 2)) {
      this.plain += mark.repeat(width);
      this.at = end;
      return true;
    }
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[end] ?? " ";
    const space = /\s/;
    const left = !space.test(after) && (!PUNCTUATION.test(after) || space.test(before) || PUNCTUATION.test(before));
    const right = !space.test(before) && (!PUNCTUATION.test(before) || space.test(after) || PUNCTUATION.test(after));
    // Chinese has no spaces: "**注意：**下一步" means bold although the mark is between signs.
    const cjk = mark === "*" && width > 1;
    const inWord = mark === "_" && left && right;
    this.flush();
    this.items.push({
      mark,
      width,
      opens: inWord ? PUNCTUATION.test(before) : left || (cjk && !space.test(after)),
      closes: inWord ? PUNCTUATION.test(after) : right || (cjk && !space.test(before)),
    });
    this.at = end;
    return true;
  }
}

/** A link to a web address; null for any other address, "javascript:" above all. */
function anchor(address) {
  if (!/^https?:\/\/\S+$/i.test(address)) return null;
  return make("a", { href: address, rel: "noopener noreferrer nofollow", target: "_blank" });
}

/** Pairs the marks of emphasis and returns nodes. */
function emphasise(items, open) {
  const top = [];
  const opened = []; // {mark, width, nodes}: emphasis that lacks its end

  const add = (...nodes) => (opened.at(-1)?.nodes ?? top).push(...nodes);

  const finish = (paired) => {
    const { mark, width, nodes } = opened.pop();
    if (!paired || !nodes.length) add(mark.repeat(width), ...nodes);
    else add(make(mark === "~" ? "del" : width === 2 ? "strong" : "em", {}, ...nodes));
  };

  /** Ends what `width` marks can end; returns how many are left. */
  const close = (mark, width) => {
    while (width > 0) {
      const fits = (each) => each.mark === mark && each.width <= width && each.nodes.length;
      const at = opened.findLastIndex(fits);
      if (at < 0) return width;
      width -= opened[at].width;
      while (opened.length > at + 1) finish(false);
      finish(true);
    }
    return width;
  };

  for (const item of items) {
    if (item instanceof Node) add(item);
    else {
      let left = item.closes ? close(item.mark, item.width) : item.width;
      while (left > 0 && item.opens && opened.length < DEEPEST) {
        const width = left === 2 ? 2 : 1;
        opened.push({ mark: item.mark, width, nodes: [] });
        left -= width;
      }
      if (left > 0) add(item.mark.repeat(left));
    }
  }
  while (opened.length) finish(open && opened.at(-1).width === 2);
  return top;
}
