// Keeps the newest text in sight, until the reader scrolls up.

const NEAR = 48; // pixels from the end that count as the end

export class Follow {
  #following = true;
  #before = 0;

  /** scroller: what scrolls. button: leads back to the end. */
  constructor(scroller, button) {
    this.scroller = scroller;
    this.button = button;
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    button.addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.grown()).observe(scroller);
  }

  /** Call after the text grew. */
  grown() {
    if (this.#following) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.button.hidden = this.#following;
  }

  toEnd() {
    this.#following = true;
    this.grown();
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const distance = scrollHeight - scrollTop - clientHeight;
    // Text that grows moves the end away; only the reader moves the view up.
    if (scrollTop < this.#before) this.#following = distance < 2;
    else if (distance < NEAR) this.#following = true;
    this.#before = scrollTop;
    this.button.hidden = this.#following;
  }
}
