// One answer that comes: the stream into a message, and what it took.

import { chat } from "./server.js";

/** An answer that has nothing yet. */
export function emptyAnswer(model) {
  return {
    role: "assistant",
    model,
    content: "",
    reasoning: "",
    toolCalls: [],
    finish: null,
    problem: null,
    usage: null,
    times: { first: null, thought: null, total: null },
  };
}

export class Run {
  #abort = new AbortController();
  #begun = performance.now();
  #frame = null;
  #reason = "stop"; // the server's finish_reason

  /** changed: called at most once a frame while the answer grows, and once when it has ended. */
  constructor(conversation, answer, changed) {
    this.conversation = conversation;
    this.answer = answer;
    this.changed = changed;
  }

  /** Milliseconds since the question. */
  get elapsed() {
    return performance.now() - this.#begun;
  }

  stop() {
    this.#abort.abort();
  }

  /** Asks, and returns when the answer has ended, in whatever way. */
  async ask(body, key) {
    const { answer } = this;
    const clock = setInterval(() => this.#soon(), 200);
    try {
      for await (const chunk of chat(body, key, this.#abort.signal)) this.#take(chunk);
      answer.finish = this.#reason;
    } catch (error) {
      answer.finish = this.#abort.signal.aborted ? "stopped" : "error";
      if (answer.finish === "error")
        answer.problem = error.problem ?? { kind: "failed", detail: String(error.message), wait: null };
    }
    clearInterval(clock);
    cancelAnimationFrame(this.#frame);
    answer.times.total = this.elapsed;
    if (answer.reasoning) answer.times.thought ??= this.elapsed - answer.times.first;
    this.changed();
  }

  #take(chunk) {
    const { answer } = this;
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    const reasoning = delta.reasoning_content ?? delta.reasoning;
    if (reasoning || delta.content || delta.tool_calls?.length) answer.times.first ??= this.elapsed;
    if (reasoning) answer.reasoning += reasoning;
    if (delta.content || delta.tool_calls?.length) {
      if (answer.reasoning) answer.times.thought ??= this.elapsed - answer.times.first;
      answer.content += delta.content ?? "";
    }
    for (const call of delta.tool_calls ?? []) this.#call(call);
    if (choice?.finish_reason) this.#reason = String(choice.finish_reason);
    if (chunk.usage) answer.usage = counts(chunk.usage);
    this.#soon();
  }

  #call({ index = 0, function: called = {} }) {
    const calls = this.answer.toolCalls;
    const at = Math.min(Number(index) || 0, calls.length);
    calls[at] ??= { name: "", arguments: "" };
    calls[at].name += called.name ?? "";
    calls[at].arguments += called.arguments ?? "";
  }

  #soon() {
    this.#frame ??= requestAnimationFrame(() => {
      this.#frame = null;
      this.changed();
    });
  }
}

function counts(usage) {
  return {
    prompt: usage.prompt_tokens ?? 0,
    completion: usage.completion_tokens ?? 0,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    reasoning: usage.completion_tokens_details?.reasoning_tokens ?? 0,
  };
}

const SHORTEST = 0.05; // seconds; in less, tokens come in one piece and tell nothing of their speed

/** Tokens per second after the first token, which waits for the prompt; null where it was not measured. */
export function speed({ usage, times }) {
  const seconds = (times.total - times.first) / 1000;
  if (!usage || times.first === null || usage.completion < 2 || !(seconds > SHORTEST)) return null;
  return (usage.completion - 1) / seconds;
}
