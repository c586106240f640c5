// The HTTP service behind the page: requests, its token, its pictures.

import { byId } from "./dom.js";

const KEPT = "dmpt-token";
const MOST_PICTURES = 600;

let token = "";
let asking = null;
const shown = new Map();

/** What the service refused, in its own sentence; `again`: trying again may help. */
export class Refused extends Error {
  constructor(sentence, again = false) {
    super(sentence);
    this.again = again;
  }
}

/** The token of the address or of this tab; it leaves the address at once. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1));
  token = given.get("token") ?? sessionStorage.getItem(KEPT) ?? "";
  if (!given.has("token")) return;
  sessionStorage.setItem(KEPT, token);
  given.delete("token");
  history.replaceState(null, "", given.size ? `#${given}` : location.pathname);
}

/**
 * A parsed answer, or a blob.
 * body: a FormData, or what becomes JSON.
 */
export async function ask(path, { body, signal, blob = false } = {}) {
  for (;;) {
    const used = token;
    const answer = await fetched(path, body, signal);
    if (answer.ok) return blob ? answer.blob() : answer.json();
    if (answer.status !== 401) throw new Refused(await sentence(answer));
    if (used === token) await (asking ??= askToken());
  }
}

/** Parameters as the service reads them: lists by repeating; what is empty is left out. */
export function address(path, options) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(options)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one !== "" && one != null) query.append(name, one);
  }
  return `${path}?${query}`;
}

export const pictureOf = (key, modality) => address("/gallery/picture", { key, modality });

/** Shows a picture of the service; an image cannot send a token, so with one it is fetched. */
export async function show(image, path) {
  if (!token) {
    image.src = path;
    return;
  }
  try {
    if (!shown.has(path)) {
      const taken = await ask(path, { blob: true });
      shown.set(path, URL.createObjectURL(taken));
      if (shown.size > MOST_PICTURES) forget(shown.keys().next().value);
    }
    image.src = shown.get(path);
  } catch {
    image.dispatchEvent(new Event("error"));
  }
}

function forget(path) {
  URL.revokeObjectURL(shown.get(path));
  shown.delete(path);
}

async function fetched(path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const options = { headers, signal, method: body === undefined ? "GET" : "POST", body };
  if (body !== undefined && !(body instanceof FormData)) {
    headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service does not answer. Is it still running?", true);
  }
}

async function sentence(answer) {
  try {
    const { error } = await answer.json();
    if (typeof error === "string" && error) return error;
  } catch {
    // No JSON: something between the page and the service answered.
  }
  return `The service answered ${answer.status}.`;
}

function askToken() {
  const dialog = byId("token");
  const given = byId("token-given");
  if (token) byId("token-said").textContent = "That was not the one.";
  given.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener(
      "close",
      () => {
        token = given.value.trim();
        sessionStorage.setItem(KEPT, token);
        asking = null;
        resolve();
      },
      { once: true },
    );
  });
}
