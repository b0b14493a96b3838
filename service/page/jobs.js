// The jobs of this browser: their ids are kept here, their states are the gateway's.

import { Away, Problem, call, getJson, token } from "./api.js";
import { kept } from "./dom.js";
import { follow } from "./stream.js";

const MOST_KEPT = 200;
/** A browser opens six connections to one server; the rest is for calls and images. */
const MOST_STREAMS = 3;
const POLL_MS = 1500;

const hasEnded = (job) => ["succeeded", "failed", "canceled"].includes(job.status);

/** Tells `change` (a job is new or has changed), `gone` (the gateway has forgotten it); `detail` is the job or its id. */
export class Jobs extends EventTarget {
  #name;
  #jobs = new Map();
  #streams = new Map();
  #pending = null;

  /** @param name of the list in this browser's storage. */
  constructor(name) {
    super();
    this.#name = name;
  }

  /** Newest first. */
  get ids() {
    return kept.get(this.#name, []).filter((id) => typeof id === "string");
  }

  get(id) {
    return this.#jobs.get(id);
  }

  /**
   * Queues a request. Sent again after no answer, the same request gives the same job.
   * @param options `isAnew`: it is to be drawn, and not taken from what was drawn before.
   */
  async submit(request, { isAnew = false } = {}) {
    const body = JSON.stringify(request);
    if (this.#pending?.body !== body) this.#pending = { body, key: token() };
    const headers = { "Content-Type": "application/json", "Idempotency-Key": this.#pending.key };
    if (isAnew) headers["Cache-Control"] = "no-cache";
    let response;
    try {
      response = await call("/generate", { method: "POST", body, headers });
    } catch (error) {
      if (error instanceof Problem) this.#pending = null;
      throw error;
    }
    this.#pending = null;
    const job = await response.json();
    kept.set(this.#name, [job.id, ...this.ids].slice(0, MOST_KEPT));
    this.#take(job);
    return job;
  }

  async cancel(id) {
    this.#take(await (await call(`/jobs/${id}`, { method: "DELETE" })).json());
  }

  /** Takes it out of this browser's list; the gateway keeps it until it expires. */
  forget(id) {
    this.#streams.get(id)?.abort();
    this.#jobs.delete(id);
    kept.set(this.#name, this.ids.filter((other) => other !== id));
    this.dispatchEvent(new CustomEvent("gone", { detail: id }));
  }

  /** Reads what the gateway still has of the jobs of earlier visits, and follows those that have not ended. */
  async load() {
    for (const id of this.ids) {
      if (this.#jobs.has(id)) continue;
      await this.#read(id);
    }
  }

  /** One that can't be read now is tried again with the next poll. */
  async #read(id) {
    try {
      this.#take(await getJson(`/jobs/${id}`));
    } catch (error) {
      if (error instanceof Problem && error.status === 404) this.forget(id);
      else if (!(error instanceof Away || error instanceof Problem)) throw error;
    }
  }

  /** Follows by streams the jobs that end next, and looks at the others now and then. */
  async run() {
    for (;;) {
      const open = [...this.#jobs.values()].filter((job) => !hasEnded(job)).reverse();
      for (const job of open) if (this.#streams.size < MOST_STREAMS) this.#follow(job.id);
      for (const job of open) if (!this.#streams.has(job.id)) await this.#read(job.id);
      for (const id of this.ids) if (!this.#jobs.has(id)) await this.#read(id);
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  async #follow(id) {
    if (this.#streams.has(id)) return;
    const control = new AbortController();
    this.#streams.set(id, control);
    try {
      const end = await follow(id, (job) => this.#take(job), control.signal);
      if (end === "gone") this.forget(id);
      else if (end === "ended" && !hasEnded(this.#jobs.get(id))) await this.#read(id);
    } finally {
      this.#streams.delete(id);
    }
  }

  #take(job) {
    const known = this.#jobs.get(job.id);
    if (known && hasEnded(known)) return;
    this.#jobs.set(job.id, job);
    this.dispatchEvent(new CustomEvent("change", { detail: job }));
    if (!hasEnded(job) && this.#streams.size < MOST_STREAMS) this.#follow(job.id);
  }
}
