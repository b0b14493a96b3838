// Calls of the gateway: its problem documents as errors, the API key, and whether it answers at all.

import { kept } from "./dom.js";

/** The gateway refused; `document` is its problem document (RFC 9457). */
export class Problem extends Error {
  constructor(status, document, retryAfterS) {
    super(document.detail || document.title || `the gateway answered ${status}`);
    this.status = status;
    this.document = document;
    this.retryAfterS = retryAfterS;
  }
}

/** No answer, or one that says to come again: 502 to 504. */
export class Away extends Error {}

/** Tells whether the gateway answers (`state`: its last word), and when it asks for a key (`key`). */
export const gateway = new EventTarget();

let state = "unknown";

function tell(next) {
  if (next === state) return;
  state = next;
  gateway.dispatchEvent(new CustomEvent("state", { detail: next }));
}

export const hasKey = () => Boolean(kept.get("key", ""));

export function useKey(key) {
  kept.set("key", key);
  gateway.dispatchEvent(new CustomEvent("state", { detail: state }));
}

/** fetch, with the key; throws Problem and Away. */
export async function call(path, { headers = {}, ...rest } = {}) {
  const key = kept.get("key", "");
  let response;
  try {
    response = await fetch(path, { ...rest, headers: key ? { ...headers, Authorization: `Bearer ${key}` } : headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    tell("away");
    throw new Away("The gateway does not answer.");
  }
  if (response.ok) {
    tell("here");
    return response;
  }
  throw await refusal(response);
}

async function refusal(response) {
  let document = {};
  try {
    document = await response.json();
  } catch {
    // Not the gateway's own words: a proxy's, say.
  }
  const problem = new Problem(response.status, document, Number(response.headers.get("Retry-After")) || undefined);
  if (response.status === 401) gateway.dispatchEvent(new CustomEvent("key"));
  if (response.status >= 502 && !document.code) {
    tell("away");
    return new Away("The gateway does not answer.");
  }
  tell("here");
  return problem;
}

export const getJson = async (path) => (await call(path)).json();

/** Shows a file of the gateway in an <img>; with a key it has to be fetched first, for an image sends no headers. */
export async function showImage(img, url) {
  if (!hasKey() || url.startsWith("data:")) {
    img.src = url;
    return;
  }
  const blob = await (await call(url)).blob();
  img.addEventListener("load", () => URL.revokeObjectURL(img.src), { once: true });
  img.src = URL.createObjectURL(blob);
}

/** Random and unguessable; `crypto.randomUUID` is missing where a page came without TLS. */
export function token() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
