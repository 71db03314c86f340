// What a reader chose: how the model is asked, the key, language and theme.

import * as storage from "./storage.js";

const DEFAULTS = {
  system: "",
  reasoning: "auto", // "auto" | "on" | "off"
  temperature: null, // null: the model's own default
  topP: null,
  maxTokens: null,
  seed: null,
  key: "",
  model: null,
  language: null, // null: the browser's
  theme: null, // null: the system's
  sidebar: null, // null: shown where there is room
};

export function load() {
  const found = storage.read("settings");
  const known = Object.entries(found ?? {}).filter(([name, value]) => sound(DEFAULTS[name], value));
  return { ...DEFAULTS, ...Object.fromEntries(known) };
}

function sound(byDefault, value) {
  if (byDefault === null) return value === null || ["string", "number", "boolean"].includes(typeof value);
  return typeof value === typeof byDefault; // never, where there is no such setting
}

export function save(settings) {
  storage.write("settings", settings);
}

/** The request for an answer to messages, without what the model decides. */
export function request(settings, model, messages) {
  const { system, reasoning, temperature, topP, maxTokens, seed } = settings;
  const history = messages.map(({ role, content }) => ({ role, content }));
  const body = {
    model,
    messages: system.trim() ? [{ role: "system", content: system }, ...history] : history,
  };
  if (temperature !== null) body.temperature = temperature;
  if (topP !== null) body.top_p = topP;
  if (maxTokens !== null) body.max_tokens = maxTokens;
  if (seed !== null) body.seed = seed;
  if (reasoning !== "auto") body.thinking = { type: reasoning === "on" ? "enabled" : "disabled" };
  return body;
}

/** Connects a form whose fields are named as settings are; `saved` is called with the changed ones. */
export class SettingsDialog {
  constructor(dialog, saved) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.dialog.close();
      saved(this.#values());
    });
  }

  /** focus: the name of the field to start in. */
  open(settings, focus = "system") {
    for (const field of this.#fields()) field.value = settings[field.name] ?? "";
    this.dialog.showModal();
    this.form.elements[focus].focus();
  }

  #fields() {
    return [...this.form.elements].filter(({ name }) => name in DEFAULTS);
  }

  #values() {
    const value = (field) => {
      if (field.type !== "number") return field.value;
      return field.value === "" ? null : field.valueAsNumber;
    };
    return Object.fromEntries(this.#fields().map((field) => [field.name, value(field)]));
  }
}
