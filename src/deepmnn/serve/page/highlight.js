// Colours for code, line by line as it streams: comments, strings, numbers, words. It knows how
// families of languages write these, not their grammars.

import { make } from "./elements.js";

const FAMILIES = [
  {
    names: "python py sh bash shell zsh fish yaml yml toml ruby rb r perl makefile make dockerfile cmake ini conf powershell ps1 elixir julia nim",
    comment: "#.*",
    blocks: [['"""', '"""', "string"], ["'''", "'''", "string"]],
  },
  {
    names: "javascript js jsx mjs typescript ts tsx java c h cpp c++ cc cxx hpp cuda cs csharp go golang rust rs swift kotlin kt php scala dart css scss less json jsonc json5 zig proto glsl objc groovy",
    comment: "\\/\\/.*",
    blocks: [["/*", "*/", "comment"]],
  },
  { names: "sql lua haskell hs elm ada vhdl", comment: "--.*", blocks: [] },
  { names: "tex latex matlab erlang prolog", comment: "%.*", blocks: [] },
  { names: "html xml svg vue svelte", comment: null, words: "<\\/?[\\w:-]+|\\/?>", blocks: [["<!--", "-->", "comment"]] },
];

const KEYWORDS = new Set(
  ("and as assert async await auto begin bool boolean break case catch char class const constexpr continue def default defer del do double " +
    "elif else elseif end enum except export extends extern false False finally float fn for foreach from func function global go if impl implements " +
    "import in include instanceof int interface is lambda let local long loop match mod module mut namespace new nil None nonlocal not null NULL " +
    "or override package pass private protected pub public raise return select self short signed sizeof static str string struct super switch template " +
    "then this throw trait true True try type typedef typename undefined union unsigned unsafe use using val var virtual void volatile where while with yield " +
    "SELECT FROM WHERE INSERT INTO VALUES UPDATE SET DELETE CREATE TABLE JOIN LEFT RIGHT INNER ON GROUP ORDER BY HAVING LIMIT AS AND OR NOT IN IS LIKE " +
    "echo fi done esac export sudo").split(" "),
);

const STRING = "\"(?:[^\"\\\\]|\\\\.)*\"?|'(?:[^'\\\\]|\\\\.)*'|`(?:[^`\\\\]|\\\\.)*`";
const NUMBER = "\\b\\d[\\w.]*";
const WORD = "[A-Za-z_]\\w*";
const MOST_LINES = 3000; // of one block; the rest stays plain
const LONGEST_LINE = 2000; // characters

export class Highlighter {
  #family;
  #tokens;
  #inside = null; // the block that a line before has opened
  #lines = 0;

  constructor(language) {
    this.#family = FAMILIES.find(({ names }) => names.split(" ").includes(language.toLowerCase()));
    if (!this.#family) return;
    const { comment, words, blocks } = this.#family;
    const starts = blocks.map(([start]) => start.replace(/[*/]/g, "\\$&"));
    const parts = { block: starts.join("|"), comment, string: STRING, number: NUMBER, word: words ?? WORD };
    const named = Object.entries(parts).filter(([, pattern]) => pattern);
    this.#tokens = new RegExp(named.map(([name, pattern]) => `(?<${name}>${pattern})`).join("|"), "g");
  }

  /** Nodes and strings of one line. */
  line(text) {
    this.#lines += 1;
    if (!this.#family || this.#lines > MOST_LINES || text.length > LONGEST_LINE) return [text];
    const parts = [];
    let at = 0;
    while (at < text.length) {
      if (this.#inside) {
        const end = text.indexOf(this.#inside[1], at);
        const stop = end < 0 ? text.length : end + this.#inside[1].length;
        parts.push(colour(this.#inside[2], text.slice(at, stop)));
        at = stop;
        if (end >= 0) this.#inside = null;
        continue;
      }
      this.#tokens.lastIndex = at;
      const token = this.#tokens.exec(text);
      parts.push(text.slice(at, token?.index ?? text.length));
      if (!token) break;
      at = token.index + token[0].length;
      const { block, comment, string, number } = token.groups;
      if (block) {
        this.#inside = this.#family.blocks.find(([start]) => start === block);
        parts.push(colour(this.#inside[2], block));
      } else if (comment) parts.push(colour("comment", comment));
      else if (string) parts.push(colour("string", string));
      else if (number) parts.push(colour("number", number));
      else parts.push(this.#word(token[0], text[at]));
    }
    return parts;
  }

  #word(word, next) {
    if (this.#family.words || KEYWORDS.has(word)) return colour("keyword", word);
    return next === "(" ? colour("called", word) : word;
  }
}

function colour(kind, text) {
  return make("span", { class: kind, text });
}
