// The page: a question on one side, its answer on the other.

import { compare } from "./compare.js";
import { byId, el } from "./dom.js";
import { cameras, clear, filtered, filters } from "./filters.js";
import { alone, bar, examples, listing, meant, walkable } from "./found.js";
import { looks } from "./looks.js";
import { Query } from "./query.js";
import { Refused, address, ask, takeToken } from "./service.js";
import { Strictness } from "./strictness.js";
import { verdictOf } from "./verdict.js";
import { count, megabytes, names } from "./words.js";

const STEP = 12; // hits, and as many more each time
const EXAMPLES = 12;
const SLOW = 150; // milliseconds; what is faster shows no waiting

const known = new Map(); // samples of the gallery that were seen, by key
let there = null; // GET /service
let model = null;
let query = null;
let answer = null; // POST /search
let strictness = null;
let k = STEP;
let running = null; // the request whose answer will be shown
let focusTiles = () => {};

async function start() {
  takeToken();
  byId("token").querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("token").close();
  });
  document.querySelector(".skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address is for samples
    byId("answer").focus();
  });
  there = await ask("/service");
  const gallery = there.gallery;
  model = there.models.find(({ name }) => name === gallery?.model) ?? there.models[0];
  document.body.classList.toggle("lying", model.size[1] > model.size[0]);
  document.documentElement.style.setProperty("--shape", `${model.size[1]} / ${model.size[0]}`);
  focusTiles = walkable(byId("found"));
  document.body.classList.toggle("bare", !gallery);
  if (!gallery) return sayState("No gallery", "The service was started without one: ", command("dmpt serve RUN --gallery g.lance"));
  query = new Query(model.modalities, asked, failed);
  byId("choose").hidden = false;
  facts();
  filters(gallery, refilter);
  strictness = new Strictness(draw);
  byId("look").addEventListener("click", look);
  addEventListener("hashchange", fromAddress);
  await (window.dropped ? query.add(window.dropped) : fromAddress());
}

/** A sample that the address names is searched for; so the browser's back button works. */
async function fromAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key === null) {
    if (query.now?.files) return;
    query.take(null);
  } else if (query.now?.key !== key) {
    const item = known.get(key) ?? (await sampleOf(key));
    if (key === new URLSearchParams(location.hash.slice(1)).get("key")) query.take(item);
  }
}

/** What the gallery says of a sample: it is what is most like itself. */
async function sampleOf(key) {
  const bare = { key, pid: null, camera: null, time: null, has: model.modalities };
  const path = address("/search", { k: 1, group: "none", exclude_self: false });
  const { hits } = await ask(path, { body: { key } }).catch(() => ({ hits: [] }));
  return hits[0]?.key === key ? hits[0] : bare;
}

function invitation(examples) {
  const what = document.body.classList.contains("lying") ? "vehicle" : "person";
  const many = ["one picture", "one or two pictures", "up to three pictures"][model.modalities.length - 1];
  const how = matchMedia("(pointer: coarse)").matches ? `Choose ${many} of a ${what}` : `Drop ${many} of a ${what} anywhere on this page`;
  return ["Who is this?", `${how}, one for each spectrum.${examples ? " Or take one of these." : ""}`];
}

const goTo = (item) => {
  byId("answer").focus({ preventScroll: true }); // what had the focus goes away
  scrollTo({ top: 0 });
  const hash = new URLSearchParams({ key: item.key });
  if (location.hash === `#${hash}`) query.take(item);
  else location.hash = hash;
};

/** The query changed, or a spectrum of it was switched. */
function asked(now) {
  k = STEP;
  byId("look").hidden = !now || !model.attention;
  showLooks(null);
  byId("filters").hidden = !now;
  cameras(there.gallery, now?.camera);
  if (now?.files && location.hash) history.pushState(null, "", location.pathname);
  document.body.classList.toggle("asked", Boolean(now));
  return now ? search() : welcome();
}

async function welcome() {
  running?.abort();
  answer = null;
  strictness?.hide();
  query.tell(null);
  byId("found").replaceChildren();
  sayState(...invitation(true));
  try {
    const { items } = await ask(`/gallery/examples?n=${EXAMPLES}`);
    if (query.now) return;
    if (!items.length) return sayState(...invitation(false));
    for (const item of items) known.set(item.key, item);
    byId("found").replaceChildren(examples(items, model.modalities, goTo));
    focusTiles();
  } catch (error) {
    failed(error);
  }
}

async function search() {
  running?.abort();
  const bytes = Object.values(query.now.files ?? {}).reduce((sum, { size }) => sum + size, 0);
  if (bytes > there.limits.body_bytes) {
    return failed(`These pictures have ${megabytes(bytes)} together; the service takes ${megabytes(there.limits.body_bytes)}.`);
  }
  const mine = (running = new AbortController());
  const slow = setTimeout(waiting, SLOW);
  try {
    const path = address("/search", { k, use: query.used, ...filtered() });
    const found = await ask(path, { body: query.body(), signal: mine.signal });
    if (mine !== running) return;
    answer = found;
    for (const hit of answer.hits) known.set(hit.key, hit);
    strictness.offer(model.calibration, answer);
    draw();
  } catch (error) {
    if (error.name !== "AbortError") failed(error);
  } finally {
    clearTimeout(slow);
    if (mine === running) byId("answer").removeAttribute("aria-busy");
  }
}

function waiting() {
  byId("answer").setAttribute("aria-busy", "true");
  if (answer) return;
  sayState("Looking\u2026", "");
  const frames = Array.from({ length: 6 }, () => el("li", {}, el("span", { class: "hit waiting" },
    el("span", { class: "panes" }, ...model.modalities.map(() => el("span", { class: "pane" }))))));
  byId("found").replaceChildren(el("ol", { class: "hits", "aria-hidden": "true" }, ...frames));
}

/** The answer as it is at this rate. */
function draw() {
  const { hits, items } = answer;
  const { fmr } = strictness;
  const calibrated = fmr !== null;
  const groups = new Map(calibrated ? [["same", []], ["other", []], ["unsaid", []]] : [[null, []]]);
  for (const hit of hits) groups.get(calibrated ? verdictOf(hit, fmr, model.calibration) : null).push(hit);
  const shown = [...groups].filter(([verdict, own]) => own.length || verdict === "same");
  const focused = document.activeElement?.dataset?.key;
  const about = { modalities: model.modalities, items, open: opened };
  const more = hits.length === k && k < there.limits.k && items > k;
  byId("found").replaceChildren(
    ...(hits.length ? listing(shown, about) : []),
    more ? el("button", { type: "button", id: "more", on: { click: () => grow() } }, "Show more") : "",
  );
  if (focused !== undefined) byId("found").querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  focusTiles();
  headline(groups.get("same") ?? [], hits, items, calibrated);
  const nearest = hits[0];
  if (!nearest || !Object.keys(nearest.spectra).length) return query.tell(null);
  const whose = nearest.pid ?? "the nearest";
  const what = calibrated ? `strangers who score as high as ${whose}` : `the score of ${whose}`;
  return query.tell(nearest.spectra, `Each spectrum alone: ${what}`, (own) => [own.fmr === null ? "" : bar(own), alone(own)]);
}

function headline(same, hits, items, calibrated) {
  if (!hits.length) {
    const clear = el("button", { type: "button", on: { click: clearFilters } }, "Clear the filters");
    return sayState("Nobody to compare with", "No sample passes the filters. ", clear);
  }
  const [nearest] = hits;
  if (!calibrated) {
    const what = model.calibration ? "What these have in common" : "This model";
    const why = `${what} is not calibrated: scores order, and do not say who is the same. `;
    return sayState(["Most like ", nearest.pid ?? "a sample without a label"], why, command("dmpt calibrate"), " measures that.");
  }
  const meaning = nearest.fmr === null ? "what they have in common is not calibrated" : meant(nearest, items);
  if (same.length) return sayState(["Matches ", names(same)], `${meaning.charAt(0).toUpperCase()}${meaning.slice(1)}.`);
  return sayState("No match", `The nearest is ${nearest.pid ?? "a sample without a label"}: ${meaning}.`);
}

/** The first thing that the eye meets; what stands out in it is the last part. */
function sayState(said, meaning, ...more) {
  const [before, name] = Array.isArray(said) ? said : ["", said];
  byId("headline").replaceChildren(before ? el("span", { class: "lead" }, before) : "", name);
  byId("headline").title = name.length > 60 ? name : "";
  byId("meaning").replaceChildren(meaning, ...more);
  byId("meaning").classList.remove("wrong");
  byId("heard").textContent = `${before}${name}. ${byId("meaning").textContent}`;
  document.title = answer ? `${before}${name}` : "Who is this?";
}

const command = (text) => el("code", {}, text);

/** An error is one sentence, where the answer would be. */
function failed(error) {
  if (!(error instanceof Refused) && typeof error !== "string") console.error(error);
  answer = null;
  strictness?.hide();
  byId("found").replaceChildren();
  query?.tell(null);
  const text = error instanceof Refused || typeof error === "string" ? String(error.message ?? error) : "This page made a mistake; its console says which.";
  const again = el("button", { type: "button", on: { click: () => (query?.now ? search() : location.reload()) } }, "Try again");
  sayState("That did not work", /[.?!]$/.test(text) ? text : `${text}.`, ...(error.again ? [again] : []));
  byId("meaning").classList.add("wrong");
}

async function grow() {
  const last = answer.hits.length;
  k = Math.min(there.limits.k, k + STEP);
  await search();
  byId("found").querySelectorAll(".hit")[last]?.focus();
}

// Filters ------------------------------------------------------------------------------------------------------------

function facts() {
  const { rows, identities, cameras: own } = there.gallery;
  const said = [count(rows, "sample", "samples")];
  if (identities) said.push(count(identities, "label", "labels"));
  if (Object.keys(own).length) said.push(count(Object.keys(own).length, "camera", "cameras"));
  byId("facts").textContent = said.join(" \u00b7 ");
}

function refilter() {
  k = STEP;
  if (query.now) search();
}

function clearFilters() {
  clear();
  refilter();
}

// Where it looks -----------------------------------------------------------------------------------------------------

async function look() {
  if (byId("look").getAttribute("aria-pressed") === "true") return showLooks(null);
  const now = query.now;
  try {
    const found = await ask(address("/attention", { use: query.used, model: model.name }), { body: query.body() });
    if (query.now === now) showLooks(looks(found));
  } catch (error) {
    say(String(error.message));
  }
}

function showLooks(canvases) {
  byId("look").setAttribute("aria-pressed", String(canvases !== null));
  for (const [modality, { frame }] of query.slots) {
    frame.querySelector(".look")?.remove();
    if (canvases?.[modality]) frame.append(canvases[modality]);
    frame.classList.toggle("looked", Boolean(canvases?.[modality]));
  }
}

// One hit, and its label ---------------------------------------------------------------------------------------------

function opened(hit) {
  const { hits, items } = answer;
  const at = hits.indexOf(hit);
  const { fmr } = strictness;
  const pids = [...new Set([query.now.pid, ...hits.map(({ pid }) => pid)])].filter(Boolean);
  compare({
    hit, items, pids, query: query.now, modalities: model.modalities,
    verdict: fmr === null ? null : verdictOf(hit, fmr, model.calibration),
    beside: (by) => hits[at + by],
    open: opened,
    label,
    search: (item) => {
      byId("compare").close();
      goTo(item);
    },
  });
  byId("compare").onclose = () => byId("found").querySelector(`[data-key="${CSS.escape(hit.key)}"]`)?.focus();
}

async function label(hit, pid) {
  await change("/gallery/label", { labels: { [hit.key]: pid } }, pid === null ? `${hit.key} has no label now.` : `${hit.key} is ${pid} now.`);
}

/** A write, what it says, and the way back. */
async function change(path, body, done) {
  try {
    const { version, undo } = await ask(path, { body });
    Object.assign(there.gallery, { version, undo });
    byId("compare").close();
    say(done, path === "/gallery/undo" ? null : undo);
    ({ gallery: there.gallery } = await ask("/service"));
    facts();
    if (query.now) await search();
  } catch (error) {
    byId("compare").close();
    say(String(error.message));
  }
}

/** A line that stays until the next, or until it is closed. */
function say(text, undo = null) {
  const back = undo && el("button", { type: "button", on: { click: () => change("/gallery/undo", { version: undo.version }, "Undone.") } }, "Undo");
  const away = el("button", { type: "button", class: "quiet", "aria-label": "Close", on: { click: () => byId("done").replaceChildren() } }, "\u00d7");
  byId("done").replaceChildren(el("p", {}, text), ...(back ? [back] : []), away);
}

start().catch(failed);
