// What can be drawn: /models, looked at every few seconds, so that a new version is seen when it goes live.

import { Away, Problem, getJson } from "./api.js";

const LOOK_MS = 2500;

/** Tells `change` when what can be asked for has changed, and `state` with `ready`, `waiting` or `away`. */
export class Models extends EventTarget {
  list = [];
  default = null;
  #seen = "";
  #state = "";
  #wake = () => {};

  get(name) {
    return this.list.find((model) => model.name === name);
  }

  /** Look again now. */
  look() {
    this.#wake();
  }

  async run() {
    for (;;) {
      await this.#look();
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, document.hidden ? 4 * LOOK_MS : LOOK_MS);
      });
    }
  }

  async #look() {
    try {
      const answer = await getJson("/models");
      const isAlive = Object.keys(answer.memory ?? {}).length > 0;
      this.#tell(!isAlive ? "waiting" : answer.models.some((model) => model.version) ? "ready" : "loading");
      const seen = JSON.stringify([answer.default, answer.models]);
      if (seen === this.#seen) return;
      this.#seen = seen;
      this.list = answer.models;
      this.default = answer.default;
      this.dispatchEvent(new Event("change"));
    } catch (error) {
      if (error instanceof Away) this.#tell("away");
      else if (error instanceof Problem) this.#tell(error.status === 401 ? "locked" : "waiting");
      else throw error;
    }
  }

  #tell(state) {
    if (state === this.#state) return;
    this.#state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: state }));
  }
}

/** "step 12 000" (a narrow space between), from 000012000-3f2a9c1b. */
export function stepOf(version) {
  const step = Number.parseInt(version ?? "", 10);
  return Number.isNaN(step) ? "" : `step ${step.toLocaleString("en").replaceAll(",", "\u202f")}`;
}
