// An answer in the conversation: folded reasoning, text, tool calls, what went wrong, what it took.

import { copyButton, icon, iconButton, make } from "./elements.js";
import { Markdown } from "./markdown.js";
import { problemView } from "./problem.js";
import { speed } from "./run.js";
import { count, duration, say } from "./words.js";

const PREVIEW = 160; // characters of reasoning beside its time

export class AnswerView {
  #text = new Growing("text");
  #thoughts = null; // made with the first reasoning
  #calls = [];

  /** answer: a message of a conversation. elapsed: as for `update`. actions: {retry(), enterKey()}. */
  constructor(answer, elapsed, actions) {
    this.answer = answer;
    this.actions = actions;
    this.waiting = make("p", { class: "waiting" }, make("i"), make("span"));
    this.node = make("article", { class: "answer", "aria-label": say("answer") }, this.waiting, this.#text.node);
    this.update(elapsed);
  }

  /** Shows what is new. elapsed: ms since the question, while the answer comes. */
  update(elapsed) {
    const { answer, node } = this;
    const running = answer.finish === null;
    node.setAttribute("aria-busy", String(running));
    this.waiting.hidden = !running || answer.times.first !== null;
    if (!this.waiting.hidden)
      this.waiting.lastChild.textContent = elapsed > 2000 ? say("waited", duration(elapsed)) : "";
    if (answer.reasoning) this.#think(elapsed, running);
    this.#text.show(answer.content, !running);
    answer.toolCalls.forEach((call, at) => this.#call(call, at));
    if (!running) this.#finish();
  }

  #think(elapsed, running) {
    if (!this.#thoughts) {
      this.#thoughts = new Thoughts();
      this.#text.node.before(this.#thoughts.node);
    }
    this.#thoughts.show(this.answer, elapsed, running);
  }

  #call({ name, arguments: facts }, at) {
    if (!this.#calls[at]) {
      const head = make("div", { class: "code-head" }, icon("tool"), make("span"));
      this.#calls[at] = make("div", { class: "code call" }, head, make("pre", { tabindex: 0 }, make("code")));
      this.node.append(this.#calls[at]);
    }
    this.#calls[at].querySelector("span").textContent = `${say("toolCall")}: ${name}`;
    this.#calls[at].querySelector("code").textContent = facts;
  }

  #finish() {
    const { answer, node } = this;
    node.append(...[this.#note(), this.#problem(), this.#foot()].filter(Boolean));
  }

  #note() {
    const { finish, content, toolCalls } = this.answer;
    const usual = ["stop", "tool_calls", "error", "stopped", "length"].includes(finish);
    const words =
      finish === "stopped" ? say("stopped")
      : finish === "length" ? say("length")
      : !usual ? say("filtered", finish)
      : finish === "stop" && !content && !toolCalls.length ? say("empty")
      : null;
    return words && make("p", { class: "note", text: words });
  }

  #problem() {
    const { problem } = this.answer;
    const { retry, enterKey } = this.actions;
    const key = problem?.kind === "key" && [say("enterKey"), enterKey];
    return problem && problemView(problem, key, [say("retry"), retry]);
  }

  #foot() {
    const { answer, actions } = this;
    const copy = answer.content && copyButton(say("copy"), say("copied"), () => answer.content);
    const retry = !answer.problem && iconButton("retry", say("retry"), actions.retry);
    const facts = make("span", { class: "facts", text: took(answer) });
    return make("footer", { class: "actions" }, copy, retry, facts);
  }
}

/** Reasoning, folded: its text is made when a reader opens it. */
class Thoughts {
  #text = new Growing("text");
  #answer = null;

  constructor() {
    this.time = make("span", { class: "time" });
    this.preview = make("span", { class: "preview", "aria-hidden": "true" }, make("span"));
    const summary = make("summary", {}, icon("fold"), this.time, this.preview);
    this.node = make("details", { class: "thoughts", on: { toggle: () => this.#fill() } }, summary, this.#text.node);
  }

  show(answer, elapsed, running) {
    this.#answer = answer;
    const { first, thought } = answer.times;
    const thinking = running && thought === null;
    const time = duration(thought ?? elapsed - first);
    const cut = !running && !answer.content && !answer.toolCalls.length;
    this.time.textContent = say(thinking ? "thinkingFor" : cut ? "thoughtStopped" : "thoughtFor", time);
    this.node.classList.toggle("running", thinking);
    const tail = thinking ? answer.reasoning.slice(-PREVIEW).replaceAll("\n", " ") : "";
    this.preview.firstChild.textContent = tail;
    this.#fill();
  }

  #fill() {
    if (this.node.open) this.#text.show(this.#answer.reasoning, this.#answer.times.thought !== null);
  }
}

/** Markdown that grows: only what is new goes into it. */
class Growing {
  #shown = 0;
  #ended = false;

  constructor(name) {
    this.node = make("div", { class: name, dir: "auto" });
    this.markdown = new Markdown(this.node);
  }

  show(text, whole) {
    if (text.length > this.#shown) this.markdown.push(text.slice(this.#shown));
    this.#shown = text.length;
    if (whole && !this.#ended) this.markdown.end();
    this.#ended ||= whole;
  }
}

/** "120 tokens (80 of reasoning) · 31 tok/s · ..." */
function took(answer) {
  const { usage, times } = answer;
  if (!usage) return times.total === null ? "" : duration(times.total);
  const perSecond = speed(answer);
  const inside = usage.reasoning ? ` (${say("reasoningTokens", count(usage.reasoning))})` : "";
  const cached = usage.cached ? ` (${say("cachedTokens", count(usage.cached))})` : "";
  return [
    say("tokens", count(usage.completion)) + inside,
    perSecond && say("speed", perSecond < 10 ? perSecond.toFixed(1) : count(Math.round(perSecond))),
    times.first !== null && say("firstToken", duration(times.first)),
    say("promptTokens", count(usage.prompt)) + cached,
  ]
    .filter(Boolean)
    .join(" · ");
}
