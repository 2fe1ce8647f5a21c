// Calls of the server's JSON API, and what went wrong in words that a visitor understands.

import { t } from "./words.js";

/** An answer of the server that is not a success, or no answer at all. */
export class Failure extends Error {
  /** @param {string} code the server's code; "unreachable" without an answer
   *  @param {number} wait seconds after which another try may succeed, 0 if unknown */
  constructor(code, wait = 0) {
    super(code);
    this.code = code;
    this.wait = wait;
  }

  get text() {
    const texts = {
      unreachable: navigator.onLine ? t("The server can't be reached.") : t("You are offline."),
      too_busy: this.wait
        ? t("Many people are asking right now. Please try again in {seconds} seconds.", { seconds: this.wait })
        : t("Many people are asking right now. Please try again in a moment."),
      too_large: t("That is too long."),
      not_found: t("That is no longer there."),
      conflict: t("This has already been decided."),
      unauthorized: t("Please sign in again."),
      forbidden: t("That is not allowed here."),
      not_ready: t("The server is starting. Please try again in a moment."),
    };
    return texts[this.code] ?? t("Something went wrong. Please try again.");
  }
}

/** The parsed JSON of a request. Throws Failure. */
export async function call(method, path, body) {
  return (await send(method, path, body)).json().catch(() => {
    throw new Failure("internal");
  });
}

export const get = (path) => call("GET", path);
export const post = (path, body) => call("POST", path, body);
export const put = (path, body) => call("PUT", path, body);
export const remove = (path) => call("DELETE", path);

async function send(method, path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method,
      signal,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("unreachable");
  }
  if (response.ok) return response;
  const answer = await response.json().catch(() => ({}));
  throw new Failure(answer?.error?.code ?? "internal", Number(response.headers.get("Retry-After")) || 0);
}

/**
 * Ask a question; `onEvent(name, data)` gets each server-sent event. Resolves with the reply.
 * Throws Failure, or AbortError when `signal` ended it.
 */
export async function ask(question, signal, onEvent) {
  const response = await send("POST", "/api/ask", { ...question, stream: true }, signal);
  let reply;
  try {
    for await (const { name, data } of events(response.body)) {
      if (name === "error") throw new Failure(data?.error?.code ?? "internal");
      if (name === "done") reply = data;
      onEvent(name, data);
    }
  } catch (error) {
    if (error instanceof Failure || error.name === "AbortError") throw error;
    throw new Failure("unreachable");
  }
  if (!reply) throw new Failure("unreachable"); // the stream broke off
  return reply;
}

/** The events of a text/event-stream body: name and parsed data. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value.replaceAll("\r\n", "\n");
    for (let end; (end = rest.indexOf("\n\n")) >= 0; rest = rest.slice(end + 2)) {
      const event = parse(rest.slice(0, end));
      if (event) yield event;
    }
  }
}

function parse(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}
