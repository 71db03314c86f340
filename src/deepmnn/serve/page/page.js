// The page: the open conversation, its question field, and what runs.

import { AnswerView } from "./answer.js";
import { Conversations } from "./conversations.js";
import { icon, label, make } from "./elements.js";
import { Follow } from "./follow.js";
import { problemView } from "./problem.js";
import { questionView } from "./question.js";
import { emptyAnswer, Run } from "./run.js";
import { models } from "./server.js";
import * as settings from "./settings.js";
import { Sidebar } from "./sidebar.js";
import * as storage from "./storage.js";
import { grow, onEnter } from "./typing.js";
import { preferred, say, speak } from "./words.js";

const SAVE_EVERY = 2000; // ms between saves of an answer that comes
const ASK_AGAIN = 4; // seconds until the server is asked for its models again

const $ = (id) => document.getElementById(id);

class Page {
  chosen = settings.load();
  conversations = new Conversations();
  current = null; // the open conversation; null: a new one
  runs = new Map(); // conversation id → Run
  views = new Map(); // answer of the open conversation → AnswerView
  models = [];

  constructor() {
    this.follow = new Follow($("scroller"), $("latest"));
    this.sidebar = new Sidebar($("history"), {
      open: (id) => this.open(id),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id),
    });
    this.dialog = new settings.SettingsDialog($("settings"), (values) => this.choose(values, true));
    this.#connect();
    this.#appear();
    this.open(location.hash.slice(1));
    this.findModels();
  }

  #connect() {
    onEnter($("question"), () => this.send());
    $("question").addEventListener("input", () => this.#sendable());
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.stop();
      else this.send();
    });
    for (const button of document.querySelectorAll("[data-press]"))
      button.addEventListener("click", () => this[button.dataset.press]());
    $("model").addEventListener("change", () => this.choose({ model: $("model").value }));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
      if (this.#drawer()) this.toggleSidebar();
      else this.running?.stop();
    });
    addEventListener("resize", () => grow($("question")));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#appear());
    addEventListener("hashchange", () => this.open(location.hash.slice(1)));
    addEventListener("pagehide", () => this.runs.forEach((run) => this.conversations.save(run.conversation)));
    storage.onChange((key) => this.#otherTab(key));
  }

  get running() {
    return this.current && this.runs.get(this.current.id);
  }

  // Conversations

  open(id) {
    this.current = this.conversations.get(id) ?? null;
    history.replaceState(null, "", this.current ? `#${this.current.id}` : location.pathname + location.search);
    for (const message of this.current?.messages ?? [])
      if (message.role === "assistant" && !this.running) message.finish ??= "stopped"; // the page was closed
    this.#show();
    this.follow.toEnd();
    if (this.#drawer()) this.toggleSidebar();
    if (matchMedia("(pointer: fine)").matches) $("question").focus();
  }

  newChat() {
    this.open("");
  }

  rename(id, title) {
    const conversation = this.conversations.get(id);
    conversation.title = title;
    this.conversations.save(conversation);
    this.#list();
  }

  async remove(id) {
    if (!(await confirmed(say("removeQuestion", this.conversations.get(id).title)))) return;
    this.#forget(id);
    if (this.current?.id === id) this.open("");
    this.#list();
  }

  async removeAll() {
    $("settings").close();
    if (!(await confirmed(say("removeAllQuestion")))) return;
    for (const { id } of this.conversations.list()) this.#forget(id);
    this.open("");
  }

  #forget(id) {
    this.runs.get(id)?.stop();
    this.conversations.remove(id);
  }

  #otherTab(key) {
    const id = this.conversations.reload(key);
    if (id && id === this.current?.id && !this.running) this.open(id);
    this.#list();
  }

  // Questions and answers

  send() {
    const text = $("question").value.trim();
    if (!text || this.running) return;
    $("question").value = "";
    grow($("question"));
    this.current ??= Conversations.start(text);
    this.ask([...this.current.messages, { role: "user", content: text }]);
  }

  /** Asks for the answer to messages, which become the conversation. */
  async ask(messages) {
    const { current: conversation } = this;
    this.running?.stop();
    const answer = emptyAnswer(this.#model());
    const body = settings.request(this.chosen, answer.model, messages);
    conversation.messages = [...messages, answer];
    conversation.changed = Date.now();
    const run = new Run(conversation, answer, () => {
      const view = this.views.get(answer);
      view?.update(run.elapsed);
      if (view) this.follow.grown();
    });
    this.runs.set(conversation.id, run);
    this.#save(conversation);
    history.replaceState(null, "", `#${conversation.id}`);
    this.#show();
    this.follow.toEnd();
    const clock = setInterval(() => this.#save(conversation), SAVE_EVERY);
    await run.ask(body, this.chosen.key);
    clearInterval(clock);
    this.#ended(run);
  }

  #ended({ conversation, answer }) {
    if (this.runs.get(conversation.id)?.answer === answer) this.runs.delete(conversation.id);
    if (this.conversations.get(conversation.id) === conversation) this.#save(conversation);
    if (answer.problem?.kind === "unreachable" || answer.problem?.kind === "key") this.findModels();
    if (this.views.has(answer)) $("status").textContent = answer.problem ? "" : `${say("ended")} ${answer.content}`;
    this.#list();
    this.#sendable();
  }

  #save(conversation) {
    $("notice").hidden = this.conversations.save(conversation);
    $("notice").textContent = say("noRoom");
  }

  // What is seen

  #show() {
    const messages = this.current?.messages ?? [];
    this.views.clear();
    const nodes = messages.map((message, at) => {
      const before = () => this.current.messages.slice(0, at);
      if (message.role === "user")
        return questionView(message, (content) => this.ask([...before(), { role: "user", content }]));
      const view = new AnswerView(message, this.running?.elapsed ?? 0, {
        retry: () => this.ask(before()),
        enterKey: () => this.dialog.open(this.chosen, "key"),
      });
      this.views.set(message, view);
      return view.node;
    });
    $("messages").replaceChildren(...nodes);
    document.body.classList.toggle("empty", !messages.length);
    document.title = this.current ? `${this.current.title} – deepmnn` : "deepmnn";
    $("greeting-note").textContent = say("greetingNote", this.#model() ?? "deepmnn");
    this.#list();
    this.#sendable();
  }

  #list() {
    this.sidebar.show(this.conversations.list(), this.current?.id, this.runs);
  }

  #sendable() {
    const running = Boolean(this.running);
    const button = $("send");
    button.replaceChildren(icon(running ? "stop" : "send"));
    label(button, say(running ? "stop" : "send"));
    button.classList.toggle("stop", running);
    button.disabled = !running && !$("question").value.trim();
    $("messages").setAttribute("aria-busy", String(running));
  }

  // Choices

  choose(values, again = false) {
    Object.assign(this.chosen, values);
    settings.save(this.chosen);
    if (again) this.findModels();
  }

  openSettings() {
    if (this.#drawer()) this.toggleSidebar();
    this.dialog.open(this.chosen);
  }

  closeSettings() {
    $("settings").close();
  }

  switchLanguage() {
    this.choose({ language: preferred(this.chosen.language) === "zh" ? "en" : "zh" });
    this.#appear();
    this.#show();
    this.#showModels();
  }

  switchTheme() {
    const other = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    this.choose({ theme: other === systemTheme() ? null : other });
    this.#appear();
  }

  toggleSidebar() {
    if (wide()) this.choose({ sidebar: document.body.classList.contains("no-sidebar") });
    else document.body.classList.toggle("drawer");
    this.#appear();
  }

  #drawer() {
    return !wide() && document.body.classList.contains("drawer");
  }

  #appear() {
    document.documentElement.dataset.theme = this.chosen.theme ?? systemTheme();
    document.body.classList.toggle("no-sidebar", this.chosen.sidebar === false);
    const shown = wide() ? this.chosen.sidebar !== false : this.#drawer();
    for (const button of document.querySelectorAll("[data-press=toggleSidebar]"))
      button.setAttribute("aria-expanded", String(shown));
    speak(preferred(this.chosen.language));
  }

  // Models

  async findModels() {
    clearTimeout(this.later);
    try {
      this.models = await models(this.chosen.key);
      $("trouble").replaceChildren();
    } catch (error) {
      this.#trouble(error.problem ?? { kind: "failed", detail: String(error.message), wait: null });
    }
    this.#showModels();
  }

  #trouble(problem) {
    const locked = problem.kind === "key";
    const kind = locked && this.chosen.key ? "wrongKey" : problem.kind;
    const enter = [say("enterKey"), () => this.dialog.open(this.chosen, "key")];
    const known = { ...problem, kind, detail: locked ? "" : problem.detail };
    $("trouble").replaceChildren(problemView(known, locked && enter));
    if (!locked) this.later = setTimeout(() => this.findModels(), (problem.wait ?? ASK_AGAIN) * 1000);
  }

  #model() {
    return this.models.includes(this.chosen.model) ? this.chosen.model : (this.models[0] ?? this.chosen.model);
  }

  #showModels() {
    const name = this.#model();
    const options = this.models.map((each) => make("option", { value: each, text: each }));
    if (!options.length) options.push(make("option", { text: say("noModel") }));
    $("model").replaceChildren(...options);
    if (name) $("model").value = name;
    $("model").disabled = this.models.length < 2;
    $("greeting-note").textContent = say("greetingNote", name ?? "deepmnn");
  }
}

function wide() {
  return matchMedia("(min-width: 800px)").matches;
}

function systemTheme() {
  return matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

/** Asks whether something may go. */
function confirmed(question) {
  const dialog = $("confirm");
  $("confirm-question").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }),
  );
}

const page = new Page();
$("confirm-yes").addEventListener("click", () => $("confirm").close("yes"));
$("confirm-no").addEventListener("click", () => $("confirm").close());
document.body.hidden = false;
if (matchMedia("(pointer: fine)").matches) $("question").focus();
grow($("question"));
export { page };
