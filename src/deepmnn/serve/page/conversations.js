// The history: conversations in the browser, each under a key of its own so that tabs don't
// overwrite one another's.

import * as storage from "./storage.js";

const MOST = 200; // conversations
const ROOM = 4_000_000; // characters of all of them; browsers give an origin about 5 million
const PREFIX = "conversation.";

/**
 * A conversation: {id, title, changed (ms), messages}. A message is a question {role: "user",
 * content} or an answer:
 * {role: "assistant", model, content, reasoning, toolCalls: [{name, arguments}],
 *  finish: null (runs) | "stop" | "length" | "tool_calls" | "stopped" | "error",
 *  problem: null | ServerError.problem, usage: null | {prompt, cached, completion, reasoning},
 *  times: {first, thought, total} (ms from the question, or null)}.
 */
export class Conversations {
  #known = new Map();
  #sizes = new Map();

  constructor() {
    for (const key of storage.keys(PREFIX)) this.reload(key);
  }

  /** Takes what another tab wrote under a key. Returns the conversation's id, or null for other keys. */
  reload(key) {
    if (!key.startsWith(PREFIX)) return null;
    const id = key.slice(PREFIX.length);
    const found = storage.read(key);
    if (sound(found, id)) this.#keep(found);
    else this.#known.delete(id);
    return id;
  }

  /** Newest first. */
  list() {
    return [...this.#known.values()].sort((a, b) => b.changed - a.changed);
  }

  get(id) {
    return this.#known.get(id);
  }

  /** A new one, which is kept once it is saved. */
  static start(question) {
    const words = question.trim().split(/\s+/).join(" ");
    const title = words.length > 60 ? `${words.slice(0, 59).trimEnd()}…` : words;
    const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), (n) => n.toString(16).padStart(2, "0"));
    return { id: id.join(""), title, changed: Date.now(), messages: [] };
  }

  /** Keeps it; where there is no room, the oldest others go. Returns false if even that was not enough. */
  save(conversation) {
    this.#keep(conversation);
    this.#shorten(conversation.id);
    let written = storage.write(PREFIX + conversation.id, conversation);
    while (!written && this.#forgetOldest(conversation.id))
      written = storage.write(PREFIX + conversation.id, conversation);
    return written;
  }

  remove(id) {
    this.#known.delete(id);
    storage.remove(PREFIX + id);
  }

  #keep(conversation) {
    this.#known.set(conversation.id, conversation);
    this.#sizes.set(conversation.id, JSON.stringify(conversation).length);
  }

  #shorten(spared) {
    const sum = () => [...this.#known.keys()].reduce((total, id) => total + this.#sizes.get(id), 0);
    while ((this.#known.size > MOST || sum() > ROOM) && this.#forgetOldest(spared));
  }

  #forgetOldest(spared) {
    const oldest = this.list().findLast((each) => each.id !== spared);
    if (oldest) this.remove(oldest.id);
    return oldest;
  }
}

function sound(found, id) {
  const texts = (message, ...names) => names.every((name) => typeof message?.[name] === "string");
  const question = (message) => message.role === "user" && texts(message, "content");
  const answer = (message) =>
    message.role === "assistant" &&
    texts(message, "content", "reasoning") &&
    Array.isArray(message.toolCalls) &&
    message.toolCalls.every((call) => texts(call, "name", "arguments")) &&
    message.times instanceof Object;
  return (
    texts(found, "title") &&
    found.id === id &&
    Number.isFinite(found.changed) &&
    Array.isArray(found.messages) &&
    found.messages.every((message) => message && (question(message) || answer(message)))
  );
}
