// Markdown into DOM nodes as it streams. Lines that are whole are parsed once; only the last line,
// which may go on, is taken back and parsed again when more comes.

import { codeBlock, Lines } from "./code.js";
import { make } from "./elements.js";
import { inline } from "./inline.js";

const DEEPEST = 24; // quotes and lists in one another
const MOST_COLUMNS = 40;
const LONGEST_DELIMITERS = 1000; // characters; the pattern takes quadratic time
const LONGEST_UNDECIDED = 40;

const QUOTE = /^ {0,3}> ?/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const ITEM = /^( *)([-*+]|(\d{1,9})[.)])( +(?=\S)|$)/;
const HEADING = /^ {0,3}(#{1,6})(?: (.*))?$/;
const FENCE = /^( *)(`{3,}|~{3,})([^`]*)$/;
const FORMULA = /^ *(\\\[|\$\$)(.*)$/;
const DELIMITERS = /^ *\|? *:?-+:? *(?:\| *:?-+:? *)*\|? *$/;

/** A last line that may become something else with its next character: it is not shown yet. */
const UNDECIDED = /^[ >]*(?:[-*+]|\d{1,9}[.)]|#{1,6}|`{1,2}|~{1,2}|\\|\$|[|:\- ]+|[*_ ]+)? *$/;

export class Markdown {
  #stack; // containers, outermost first: {kind: "root" | "quote" | "list" | "item", node, ...}
  #leaf = null; // what the next line may continue: {kind: "paragraph" | "code" | "formula" | "table", ...}
  #rest = ""; // the last line so far
  #mark = null; // how things were before the last line
  #trial = false;

  /** Renders into an element, which it owns. */
  constructor(node) {
    this.#stack = [{ kind: "root", node }];
  }

  push(text) {
    this.#takeBack();
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) this.#line(line);
    this.#mark = this.#position();
    this.#trial = true;
    const fence = this.#leaf?.kind === "code" && /^ *(`+|~+)$/.test(this.#rest);
    const short = !this.#leaf?.lines && this.#rest.length <= LONGEST_UNDECIDED;
    const undecided = short && UNDECIDED.test(this.#rest);
    if (this.#rest && !fence && !undecided) this.#line(this.#rest);
    this.#show(true);
    this.#trial = false;
  }

  /** No more text comes. */
  end() {
    this.#takeBack();
    if (this.#rest) this.#line(this.#rest);
    this.#rest = "";
    this.#close(1);
    this.#endLeaf();
  }

  #position() {
    const leaf = this.#leaf;
    return {
      stack: [...this.#stack],
      lasts: this.#stack.map(({ node }) => node.lastChild),
      leaf,
      text: leaf?.text,
      rows: leaf?.body?.lastChild,
    };
  }

  #takeBack() {
    if (!this.#mark) return;
    const { stack, lasts, leaf, text, rows } = this.#mark;
    this.#mark = null;
    stack.forEach(({ node }, at) => removeAfter(node, lasts[at]));
    this.#stack = stack;
    this.#leaf = leaf;
    if (leaf?.kind === "paragraph") leaf.text = text;
    if (leaf?.kind === "table") removeAfter(leaf.body, rows);
    leaf?.lines?.draft(null);
  }

  #line(raw) {
    raw = raw.replace(/\r$/, "");
    if (this.#leaf?.lines) return this.#verbatim(raw);
    const [line, depth] = this.#descend(raw.replaceAll("\t", "    "));
    if (!line.trim()) {
      this.#close(depth);
      this.#endLeaf();
      return;
    }
    if (depth < this.#stack.length) {
      if (this.#leaf?.kind === "paragraph" && !starts(line) && !this.#list(depth - 1, line)) {
        this.#paragraph(line); // a paragraph may go on without the marks of its container
        return;
      }
      this.#close(depth);
    }
    this.#block(this.#containers(line));
  }

  /** The line without the marks of the open containers, and how many of those it continues. */
  #descend(line) {
    const blank = !line.trim();
    let depth = 1;
    for (; depth < this.#stack.length; depth++) {
      const { kind, marker, content } = this.#stack[depth];
      if (kind === "quote") {
        if (!QUOTE.test(line)) break;
        line = line.replace(QUOTE, "");
      } else if (kind === "item" && !blank) {
        const indent = line.search(/\S/);
        if (indent < marker + 2) break;
        line = line.slice(Math.min(indent, content));
      }
    }
    return [line, depth];
  }

  /** Opens the quotes and items that a line starts with; returns what is inside. */
  #containers(line) {
    while (this.#stack.length < DEEPEST) {
      if (QUOTE.test(line)) {
        this.#open("quote", "blockquote");
        line = line.replace(QUOTE, "");
        continue;
      }
      const item = RULE.test(line) ? null : ITEM.exec(line);
      if (!item || !this.#startsItem(item)) break;
      const [whole, spaces, mark, number] = item;
      const ordered = number !== undefined;
      if (this.#list(this.#stack.length - 1, line)) this.#endLeaf();
      else {
        const list = this.#open("list", ordered ? "ol" : "ul", { ordered });
        if (ordered && number !== "1") list.setAttribute("start", number);
      }
      const marker = spaces.length;
      this.#enter("item", "li", { marker, content: marker + mark.length + 1 });
      line = line.slice(whole.length);
    }
    return line;
  }

  /** Whether the container at a depth is a list that the line's item belongs to. */
  #list(depth, line) {
    const list = this.#stack[depth];
    const item = RULE.test(line) ? null : ITEM.exec(line);
    return list?.kind === "list" && item && list.ordered === (item[3] !== undefined);
  }

  /** A number in the middle of a paragraph is no list, unless it is 1. */
  #startsItem([, , , number, space]) {
    if (this.#leaf?.kind !== "paragraph" || this.#stack.at(-1).kind === "list") return true;
    return space !== "" && (number === undefined || number === "1");
  }

  #block(line) {
    const heading = HEADING.exec(line);
    const fence = FENCE.exec(line);
    const formula = FORMULA.exec(line);
    if (RULE.test(line)) this.#add(make("hr"));
    else if (heading) this.#add(this.#heading(heading));
    else if (fence) this.#code(fence);
    else if (formula) this.#formula(formula);
    else if (this.#leaf?.kind === "table" && line.includes("|")) this.#row(line);
    else if (this.#startsTable(line)) this.#table(line);
    else if (line) this.#paragraph(line);
  }

  #heading([, marks, text = ""]) {
    const words = text.trim().replace(/(^| )#+$/, "");
    return make(`h${marks.length}`, {}, ...inline(words, this.#trial));
  }

  #paragraph(line) {
    if (this.#leaf?.kind !== "paragraph") {
      const node = this.#add(make("p"));
      this.#leaf = { kind: "paragraph", node, text: line.trimStart() };
    } else this.#leaf.text += `\n${line.trimStart()}`;
  }

  #code([, indent, fence, info]) {
    const { node, lines } = codeBlock(info.trim().split(/\s/)[0]);
    this.#add(node);
    this.#leaf = { kind: "code", lines, fence, indent: indent.length };
  }

  #formula([, mark, first]) {
    const node = this.#add(make("div", { class: "math", dir: "ltr" }));
    this.#leaf = { kind: "formula", lines: new Lines(node), close: mark === "$$" ? "$$" : "\\]", indent: 0 };
    if (first.trim()) this.#verbatim(first);
  }

  /** A line of code or of a formula; its fence ends it. */
  #verbatim(line) {
    const { kind, lines, fence, close, indent } = this.#leaf;
    for (const container of this.#stack) {
      if (container.kind === "quote" && !QUOTE.test(line)) return this.#afterQuote(line);
      if (container.kind === "quote") line = line.replace(QUOTE, "");
      if (container.kind === "item") line = line.slice(Math.min(indentation(line), container.content));
    }
    line = line.slice(Math.min(indentation(line), indent));
    if (kind === "code") {
      if (ends(line, fence)) this.#endLeaf();
      else this.#write(lines, line);
      return;
    }
    const at = line.indexOf(close);
    const formula = at < 0 ? line : line.slice(0, at);
    if (formula.trim()) this.#write(lines, formula.trim());
    if (at < 0) return;
    this.#endLeaf();
    const after = line.slice(at + close.length);
    if (/[^\s.,;。，；]/.test(after)) this.#paragraph(after);
  }

  #write(lines, line) {
    if (this.#trial) lines.draft(line);
    else lines.add(line);
  }

  #afterQuote(line) {
    this.#endLeaf();
    this.#line(line);
  }

  #startsTable(line) {
    const leaf = this.#leaf;
    if (this.#trial || leaf?.kind !== "paragraph" || line.length > LONGEST_DELIMITERS) return false;
    if (!DELIMITERS.test(line)) return false;
    const columns = cells(line).length;
    const head = leaf.text.slice(leaf.text.lastIndexOf("\n") + 1);
    return head.includes("|") && columns <= MOST_COLUMNS && cells(head).length === columns;
  }

  #table(line) {
    const leaf = this.#leaf;
    const align = cells(line).map((cell) => (/^:-+:$/.test(cell) ? "center" : /:$/.test(cell) ? "end" : null));
    const lines = leaf.text.split("\n");
    const head = lines.pop();
    leaf.text = lines.join("\n");
    const body = make("tbody");
    const table = make("table", {}, make("thead", {}, row("th", head, align)), body);
    if (!lines.length) {
      leaf.node.remove();
      this.#leaf = null;
    }
    this.#add(make("div", { class: "table", tabindex: 0 }, table));
    this.#leaf = { kind: "table", body, align };
  }

  #row(line) {
    this.#leaf.body.append(row("td", line, this.#leaf.align));
  }

  /** Adds a block to the innermost container that takes one. */
  #add(node) {
    this.#endLeaf();
    while (this.#stack.at(-1).kind === "list") this.#stack.pop();
    this.#stack.at(-1).node.append(node);
    return node;
  }

  #open(kind, tag, more = {}) {
    const node = this.#add(make(tag));
    this.#stack.push({ kind, node, ...more });
    return node;
  }

  #enter(kind, tag, more) {
    const node = make(tag);
    this.#stack.at(-1).node.append(node);
    this.#stack.push({ kind, node, ...more });
  }

  #close(depth) {
    if (depth >= this.#stack.length) return;
    this.#endLeaf();
    this.#stack.length = depth;
  }

  #endLeaf() {
    this.#show(false);
    this.#leaf = null;
  }

  /** Shows the paragraph that changed. open: it may go on. */
  #show(open) {
    if (this.#leaf?.kind === "paragraph") this.#leaf.node.replaceChildren(...inline(this.#leaf.text, open));
  }
}

function removeAfter(node, last) {
  while (node.lastChild !== last) node.lastChild.remove();
}

function indentation(line) {
  return line.length - line.trimStart().length;
}

function ends(line, fence) {
  const text = line.trim();
  return text.length >= fence.length && text === fence[0].repeat(text.length);
}

/** Whether a line starts a block of its own. */
function starts(line) {
  return [QUOTE, RULE, HEADING, FENCE, FORMULA, ITEM].some((pattern) => pattern.test(line));
}

function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inside.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function row(tag, line, align) {
  const texts = cells(line).slice(0, align.length);
  return make("tr", {}, ...align.map((side, at) => make(tag, { class: side }, ...inline(texts[at] ?? ""))));
}
