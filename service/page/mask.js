// A mask painted over a picture, by a pointer or by keys: what is painted is drawn anew.

import { el } from "./dom.js";

const COLOUR = "#fff";
/** From this opacity on: the edge of a brush is half painted. */
const PAINTED = 128;
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const LABEL = "Mask: arrow keys move the brush, with Shift by one pixel; Space paints, or erases where Erase is pressed";

/** Its elements are placed by whoever makes it: `canvas`, and the `brush` right behind it; `size`, `erase`, `said`. */
export class Mask {
  #onChange;
  #isPainted = false;
  #isDown = false;
  /** The brush's middle, in pixels of the canvas. */
  #at = { x: 0, y: 0 };

  /** @param onChange is called whenever something was painted or erased. */
  constructor(onChange) {
    this.#onChange = onChange;
    this.canvas = el("canvas", { className: "mask", tabIndex: 0, role: "application", "aria-label": LABEL });
    this.brush = el("div", { className: "brush", "aria-hidden": "true" });
    this.size = el("input", { type: "range", id: "brush", min: 1, max: 100, value: 25, oninput: () => this.#showBrush() });
    this.erase = el("button", { type: "button", className: "quiet toggle", "aria-pressed": "false", onclick: () => this.#toggleErase() }, "Erase");
    this.said = el("p", { className: "hidden-title", role: "status" });
    this.canvas.addEventListener("pointerdown", (event) => this.#onPointer(event));
    this.canvas.addEventListener("pointermove", (event) => event.buttons && this.#onPointer(event));
    this.canvas.addEventListener("keydown", (event) => this.#onKey(event));
    this.canvas.addEventListener("keyup", (event) => event.key === " " && (this.#isDown = false));
    this.canvas.addEventListener("blur", () => (this.#isDown = false));
  }

  /** Whether anything is to be drawn anew. */
  get isPainted() {
    return this.#isPainted;
  }

  /** Empties it, too. */
  resize(width, height) {
    [this.canvas.width, this.canvas.height] = [width, height];
    this.#isPainted = false;
    this.#at = { x: Math.floor(width / 2) + 0.5, y: Math.floor(height / 2) + 0.5 };
    this.#showBrush();
  }

  invert() {
    const context = this.#context;
    context.globalCompositeOperation = "xor";
    context.fillStyle = COLOUR;
    context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    context.globalCompositeOperation = "source-over";
    this.#changed();
  }

  clear() {
    this.#context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    this.#changed();
  }

  /** Paints what is bright in a picture. */
  load(picture) {
    const context = this.#context;
    context.drawImage(picture, 0, 0, this.canvas.width, this.canvas.height);
    eachPixel(context, (isBright) => [255, 255, 255, isBright ? 255 : 0]);
    this.#changed();
  }

  /** What is painted in white, the rest black. */
  picture() {
    const picture = el("canvas", { width: this.canvas.width, height: this.canvas.height });
    const context = picture.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, picture.width, picture.height);
    context.drawImage(this.canvas, 0, 0);
    // One or the other, so that a mask that is used again is the same.
    eachPixel(context, (isBright) => (isBright ? [255, 255, 255, 255] : [0, 0, 0, 255]));
    return picture;
  }

  get #context() {
    return this.canvas.getContext("2d", { willReadFrequently: true });
  }

  get #radius() {
    return Math.max(0.5, (this.size.value / 200) * Math.max(this.canvas.width, this.canvas.height));
  }

  get #erases() {
    return this.erase.getAttribute("aria-pressed") === "true";
  }

  #toggleErase() {
    this.erase.setAttribute("aria-pressed", String(!this.#erases));
  }

  #onPointer(event) {
    const box = this.canvas.getBoundingClientRect();
    this.#moveTo(
      ((event.clientX - box.left) / box.width) * this.canvas.width,
      ((event.clientY - box.top) / box.height) * this.canvas.height,
    );
    this.#paint();
  }

  /** Moving while Space is held paints the way. */
  #onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const move = MOVES[event.key];
    if (move) {
      const by = event.shiftKey ? 1 : Math.max(1, this.#radius);
      this.#moveTo(this.#at.x + by * move[0], this.#at.y + by * move[1]);
    } else if (event.key === " ") {
      this.#isDown = true;
    } else return;
    event.preventDefault(); // or the form would scroll
    if (this.#isDown) this.#paint();
    this.#say();
  }

  #moveTo(x, y) {
    const { width, height } = this.canvas;
    this.#at = { x: Math.min(width, Math.max(0, x)), y: Math.min(height, Math.max(0, y)) };
    this.#showBrush();
  }

  #showBrush() {
    const { width, height } = this.canvas;
    this.brush.style.left = `${(100 * this.#at.x) / width}%`;
    this.brush.style.top = `${(100 * this.#at.y) / height}%`;
    this.brush.style.width = `${(200 * this.#radius) / width}%`;
  }

  #paint() {
    const context = this.#context;
    context.globalCompositeOperation = this.#erases ? "destination-out" : "source-over";
    context.fillStyle = COLOUR;
    context.beginPath();
    context.arc(this.#at.x, this.#at.y, this.#radius, 0, 2 * Math.PI);
    context.fill();
    context.globalCompositeOperation = "source-over";
    this.#changed();
  }

  #say() {
    const { width, height } = this.canvas;
    const [column, row] = [Math.min(width - 1, Math.floor(this.#at.x)), Math.min(height - 1, Math.floor(this.#at.y))];
    const isPainted = this.#context.getImageData(column, row, 1, 1).data[3] >= PAINTED;
    this.said.textContent = `Column ${column + 1} of ${width}, row ${row + 1} of ${height}: ${isPainted ? "painted" : "kept"}`;
  }

  #changed() {
    const { width, height } = this.canvas;
    const { data } = this.#context.getImageData(0, 0, width, height);
    this.#isPainted = data.some((value, at) => at % 4 === 3 && value >= PAINTED);
    this.#onChange();
  }
}

function eachPixel(context, colour) {
  const { width, height } = context.canvas;
  const pixels = context.getImageData(0, 0, width, height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set(colour(pixels.data[at] >= PAINTED), at);
  context.putImageData(pixels, 0, 0);
}
