// The list of conversations.

import { iconButton, label, make } from "./elements.js";
import { say } from "./words.js";

const DAY = 24 * 3600 * 1000;

export class Sidebar {
  /** actions: {open(id), rename(id, title), remove(id)}. */
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
  }

  /** conversations: newest first. current: the open one's id. running: ids of those that are answered now. */
  show(conversations, current, running) {
    const groups = Map.groupBy(conversations, ({ changed }) => age(changed));
    const parts = [...groups].flatMap(([name, members]) => [
      make("h2", { text: say(name) }),
      make("ul", {}, ...members.map((each) => this.#entry(each, each.id === current, running.has(each.id)))),
    ]);
    if (!parts.length) parts.push(make("p", { class: "faint", text: say("nothingYet") }));
    this.node.replaceChildren(...parts);
  }

  #entry({ id, title }, current, running) {
    const entry = make("li", { class: running ? "running" : null });
    const open = make("button", {
      type: "button",
      class: "title",
      title,
      text: title,
      dir: "auto",
      "aria-current": current ? "true" : null,
      on: { click: () => this.actions.open(id) },
    });
    const rename = iconButton("edit", say("rename"), () => this.#rename(entry, id, title));
    const remove = iconButton("trash", say("remove"), () => this.actions.remove(id));
    entry.append(open, make("span", { class: "tools" }, rename, remove));
    return entry;
  }

  #rename(entry, id, title) {
    const field = make("input", { type: "text", maxlength: 200 });
    label(field, say("rename"));
    field.value = title;
    let done = false;
    const finish = (chosen) => {
      if (done) return; // removing the field takes the focus from it, too
      done = true;
      this.actions.rename(id, chosen.trim() || title);
    };
    field.addEventListener("blur", () => finish(field.value));
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter") finish(field.value);
      if (event.key !== "Escape") return;
      event.stopPropagation(); // it stops no answer
      finish(title);
    });
    entry.replaceChildren(field);
    field.focus();
    field.select();
  }
}

/** Which heading a conversation stands under. */
function age(changed) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (changed >= midnight) return "today";
  if (changed >= midnight - DAY) return "yesterday";
  return changed >= midnight - 7 * DAY ? "week" : "older";
}
