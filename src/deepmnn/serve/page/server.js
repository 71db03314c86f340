// The server's API as the page uses it. Addresses are relative: a proxy may put the page in a folder.

import { events } from "./sse.js";

/**
 * What went wrong, in a form that survives localStorage.
 * kind: "unreachable" | "key" | "busy" | "notReady" | "refused" | "failed" | "cut"
 * detail: the server's own words; wait: seconds until another try makes sense.
 */
export class ServerError extends Error {
  constructor(kind, detail = "", wait = null) {
    super(detail || kind);
    this.problem = { kind, detail, wait };
  }
}

const KINDS = { 401: "key", 403: "key", 429: "busy", 503: "notReady" };

async function request(address, key, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(address, { ...options, headers, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let detail = text.slice(0, 2000);
  try {
    const found = JSON.parse(text);
    detail = String(found.error?.message ?? found.message ?? found.detail ?? detail);
  } catch {
    if (/^\s*</.test(text)) detail = ""; // a proxy's page
  }
  const wait = Number.parseFloat(response.headers.get("Retry-After")) || null;
  const kind = KINDS[response.status] ?? (response.status < 500 ? "refused" : "failed");
  return new ServerError(kind, detail || `HTTP ${response.status}`, wait);
}

/** Names of the models that the server has. */
export async function models(key) {
  const response = await request("v1/models", key);
  const found = await response.json().catch(() => ({}));
  return (found.data ?? []).map((model) => String(model.id));
}

/** Yields the chunks of a streamed answer; returns only after the server said that it is whole. */
export async function* chat(body, key, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const options = { method: "POST", body: JSON.stringify(asked), signal };
  const response = await request("v1/chat/completions", key, options);
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = parsed(data);
      if (chunk.error) throw new ServerError("failed", String(chunk.error.message ?? chunk.error));
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ServerError || signal.aborted) throw error;
    throw new ServerError("cut");
  }
  throw new ServerError("cut");
}

function parsed(data) {
  try {
    const chunk = JSON.parse(data);
    if (chunk !== null && typeof chunk === "object") return chunk;
  } catch {
    // Said below.
  }
  throw new ServerError("failed", `no JSON: ${data.slice(0, 200)}`);
}
