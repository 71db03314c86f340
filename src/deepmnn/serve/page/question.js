// A question in the conversation, and how it is changed.

import { copyButton, iconButton, label, make } from "./elements.js";
import { grow, onEnter } from "./typing.js";
import { say } from "./words.js";

/** message: {content}. change: called with the new text when the question was edited. */
export function questionView(message, change) {
  const node = make("article", { class: "question", "aria-label": say("you") });
  const show = () => {
    const copy = copyButton(say("copy"), say("copied"), () => message.content);
    const edit = iconButton("edit", say("edit"), () => editor(node, message.content, show, change));
    const text = make("div", { class: "bubble", dir: "auto", text: message.content });
    node.replaceChildren(text, make("div", { class: "actions" }, copy, edit));
  };
  show();
  return node;
}

function editor(node, text, cancel, change) {
  const area = make("textarea", { rows: 1 });
  label(area, say("editLabel"));
  area.value = text;
  const send = () => {
    if (area.value.trim()) change(area.value.trim());
  };
  onEnter(area, send);
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    event.stopPropagation();
    cancel();
  });
  const buttons = make(
    "div",
    { class: "buttons" },
    make("small", { text: say("editNote") }),
    make("button", { type: "button", text: say("cancel"), on: { click: cancel } }),
    make("button", { type: "button", class: "strong", text: say("send"), on: { click: send } }),
  );
  node.replaceChildren(make("div", { class: "editor" }, area, buttons));
  grow(area);
  area.focus();
}
