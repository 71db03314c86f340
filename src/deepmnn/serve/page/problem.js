// What went wrong, in words, with what can be done about it.

import { icon, make } from "./elements.js";
import { say } from "./words.js";

/** problem: ServerError.problem. actions: buttons, as [words, what a press does]; missing ones are skipped. */
export function problemView({ kind, detail, wait }, ...actions) {
  const words = kind === "busy" && wait ? say("busyWait", say("seconds", Math.ceil(wait))) : say(kind);
  const buttons = actions.filter(Boolean).map(([text, press]) => make("button", { type: "button", text, on: { click: press } }));
  return make(
    "div",
    { class: "problem", role: "alert" },
    icon("alert"),
    make("div", {}, make("strong", { text: words }), detail && make("p", { text: detail })),
    ...buttons,
  );
}
