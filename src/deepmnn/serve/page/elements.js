// DOM nodes. Text goes in as text: nothing here, or anywhere in the page, parses HTML.

/**
 * Makes an element.
 * options: class, text, on: {event: handler}, label (a name for assistive technology and a
 * tooltip); everything else becomes an attribute, unless it is null or false.
 */
export function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "label") label(element, value);
    else if (name === "on")
      for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => typeof child === "string" || child instanceof Node));
  return element;
}

export function label(element, words) {
  element.setAttribute("aria-label", words);
  element.title = words;
}

/** A picture of the sprite in index.html. */
export function icon(name) {
  const picture = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${name}`);
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  picture.append(use);
  return picture;
}

export function iconButton(name, words, press) {
  return make("button", { type: "button", class: "quiet", label: words, on: { click: press } }, icon(name));
}

/** A button that copies what `text()` returns and shows for a moment that it did. */
export function copyButton(words, done, text) {
  const button = iconButton("copy", words, async () => {
    await copy(text());
    button.replaceChildren(icon("done"));
    label(button, done);
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      label(button, words);
    }, 1500);
  });
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without https only loopback has a clipboard; a selection can be copied everywhere.
    const area = make("textarea", { class: "hidden", readonly: true });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}
