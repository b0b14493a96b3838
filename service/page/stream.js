// One job's server-sent events, over fetch: an EventSource can send no key, and gives up at a status.

import { Away, Problem, call } from "./api.js";

const ENDS = new Set(["succeeded", "failed", "canceled"]);
const LONGEST_PAUSE_MS = 8000;

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/**
 * Follows a job to its end, through any number of connections.
 * @param onJob called with each state of the job; the last one has ended.
 * @returns "ended", "gone" (the gateway knows it no longer) or "aborted".
 */
export async function follow(jobId, onJob, signal) {
  let seen = "";
  let broken = 0;
  while (!signal.aborted) {
    try {
      const headers = { Accept: "text/event-stream", ...(seen ? { "Last-Event-ID": seen } : {}) };
      const response = await call(`/jobs/${jobId}/events?preview=1`, { headers, signal });
      if (response.status === 204) return "ended";
      for await (const event of events(response.body)) {
        broken = 0;
        if (event.id) seen = event.id;
        if (event.name === "error") {
          if (JSON.parse(event.data).code === "not_found") return "gone";
          break;
        }
        onJob(JSON.parse(event.data));
        if (ENDS.has(event.name)) return "ended";
      }
    } catch (error) {
      if (signal.aborted) break;
      if (error instanceof Problem && [401, 403, 404].includes(error.status)) return "gone";
      if (!(error instanceof Away || error instanceof Problem || error instanceof TypeError)) throw error;
    }
    broken += 1;
    await pause(Math.min(500 * 2 ** broken, LONGEST_PAUSE_MS), signal);
  }
  return "aborted";
}

/** The events of a stream, by the parsing rules of the HTML standard (9.2.6). */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { name: "message", id: "", data: [] };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (event.data.length) yield { ...event, data: event.data.join("\n") };
          event = { name: "message", id: event.id, data: [] };
          continue;
        }
        const [, field, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (field === "event") event.name = text;
        else if (field === "id") event.id = text;
        else if (field === "data") event.data.push(text);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
