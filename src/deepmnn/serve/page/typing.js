// What every field for questions does: grow with its text, and send on Enter.

/** Calls `send` on Enter, but not while an input method composes: there Enter picks a word. */
export function onEnter(area, send) {
  area.addEventListener("keydown", (event) => {
    const composing = event.isComposing || event.keyCode === 229; // Safari says it only by the code
    if (event.key !== "Enter" || event.shiftKey || composing) return;
    event.preventDefault();
    send();
  });
  area.addEventListener("input", () => grow(area));
}

/** Makes it as high as its text; CSS sets the most. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
