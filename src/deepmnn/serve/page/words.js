// What the page says, in the language of its reader.

import { CHINESE } from "./chinese.js";
import { ENGLISH } from "./english.js";

const LANGUAGES = { en: ENGLISH, zh: CHINESE };
let language = "en";

/** What a key says in the chosen language. */
export function say(key, ...facts) {
  const words = LANGUAGES[language][key];
  return typeof words === "function" ? words(...facts) : words;
}

/** "en" or "zh": what was chosen before, or what the browser prefers. */
export function preferred(chosen) {
  if (chosen in LANGUAGES) return chosen;
  return /^zh\b/i.test(navigator.language) ? "zh" : "en";
}

/** Chooses a language, and says everything in the document that has `data-say` or `data-label` in it. */
export function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = say(node.dataset.hint);
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", say(node.dataset.label));
    if (node.matches("button, select")) node.title = say(node.dataset.label);
  }
}

export function count(n) {
  return new Intl.NumberFormat(document.documentElement.lang).format(n);
}

/** A duration in words: "0.42 s", "3.2 s", "12 s", "2 min 5 s". */
export function duration(ms) {
  const seconds = ms / 1000;
  if (seconds >= 99.5) {
    const whole = Math.round(seconds);
    return say("minutes", Math.floor(whole / 60), whole % 60);
  }
  return say("seconds", seconds.toFixed(seconds < 0.995 ? 2 : seconds < 10 ? 1 : 0));
}
