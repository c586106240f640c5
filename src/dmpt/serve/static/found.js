// The ranked gallery: who is the same, who is not, and nothing that a picture says better.

import { el } from "./dom.js";
import { show } from "./service.js";
import { VERDICTS } from "./verdict.js";
import { SPECTRA, expected, moment, named, oneIn, scored, strangers, whole } from "./words.js";

const DECADES = 4; // a bar is full where one stranger in 10^4 scores as high
const tiles = new WeakMap();

/** An item's pictures beside each other, or below each other where they lie. */
function panes(item, modalities, compared = null) {
  const made = modalities.map((modality) => {
    const pane = el("span", { class: "pane", "data-modality": modality });
    if (compared && !compared.includes(modality)) pane.classList.add("off");
    const path = item.pictures[modality];
    pane.classList.toggle("empty", !item.has.includes(modality));
    if (!path) return pane;
    const image = el("img", { alt: SPECTRA[modality], loading: "lazy", decoding: "async", draggable: "false" });
    image.addEventListener("error", () => image.remove());
    image.addEventListener("load", () => pane.classList.add("there"));
    pane.append(image);
    show(image, path);
    return pane;
  });
  return el("span", { class: "panes" }, ...made);
}

/** How rarely a stranger is as like in one spectrum: a bar, longer the rarer. */
export function bar(own) {
  const made = el("span", { class: "bar" });
  if (own?.fmr) made.style.setProperty("--rare", Math.min(1, -Math.log10(own.fmr) / DECADES));
  return made;
}

export const alone = (own) => (own.fmr === null ? scored(own.score) : oneIn(own.fmr));

/** "of 384 strangers, at most 0.3 score as high". */
export const meant = (hit, items) =>
  `of ${whole(items)} strangers, at most ${expected(hit.expected_false_matches)} would score as high`;

/** `groups`: [[verdict or null, hits], ...]. */
export function listing(groups, { modalities, items, open }) {
  return groups.map(([verdict, hits]) => {
    const list = el("ol", { class: "hits", role: "list" }, ...hits.map((hit) => one(hit, verdict, modalities, items, open)));
    if (!verdict) return el("section", { "aria-label": "Nearest" }, list);
    const heading = el("h2", { id: `group-${verdict}` }, VERDICTS[verdict], el("span", { class: "many" }, whole(hits.length)));
    const none = hits.length ? null : el("p", { class: "none" }, "Nobody at this rate.");
    return el("section", { class: verdict, "aria-labelledby": heading.id }, heading, none ?? list);
  });
}

/** A hit's place in the list; its verdict may change, its pictures stay. */
function one(hit, verdict, modalities, items, open) {
  if (!tiles.has(hit)) tiles.set(hit, tile(hit, modalities, items, open));
  const place = tiles.get(hit);
  const rate = hit.expected_false_matches === null ? null : meant(hit, items);
  const said = [
    `${hit.rank}: ${hit.pid ?? "without a label"}`,
    verdict && VERDICTS[verdict].toLowerCase(),
    where(hit),
    `score ${scored(hit.score)}`,
    rate,
    hit.modalities.length ? null : "nothing in common",
  ];
  place.firstChild.setAttribute("aria-label", said.filter(Boolean).join(", "));
  return place;
}

export const where = (hit) => [hit.camera && `camera ${hit.camera}`, hit.time && moment(hit.time)].filter(Boolean).join(", ");

function tile(hit, modalities, items, open) {
  const pictures = panes(hit, modalities, hit.modalities.length ? hit.modalities : null);
  if (hit.fmr !== null) {
    for (const pane of pictures.children) pane.append(bar(hit.spectra[pane.dataset.modality]));
  }
  const rate = hit.expected_false_matches === null ? "" : strangers(hit.expected_false_matches);
  const text = el(
    "span",
    { class: "text" },
    el("span", { class: hit.pid === null ? "pid none" : "pid" }, named(hit)),
    el("span", { class: "score" }, scored(hit.score)),
    el("span", { class: "where" }, hit.modalities.length ? where(hit) : "nothing in common"),
    el("span", { class: "rate" }, rate),
  );
  const button = el(
    "button",
    { type: "button", class: "hit", "data-key": hit.key, tabindex: "-1", on: { click: () => open(hit) } },
    pictures,
    text,
  );
  return el("li", {}, button);
}

/** Rows of the gallery to start from. */
export function examples(items, modalities, take) {
  const made = items.map((item) => {
    const button = el(
      "button",
      {
        type: "button", class: "hit", tabindex: "-1", "data-key": item.key,
        "aria-label": `Search for ${item.pid ?? "a sample without a label"}${item.camera ? `, camera ${item.camera}` : ""}`,
        on: { click: () => take(item) },
      },
      panes(item, modalities),
    );
    return el("li", {}, button);
  });
  return el("section", { "aria-labelledby": "examples" },
    el("h2", { id: "examples" }, "From the gallery"),
    el("ol", { class: "hits", role: "list" }, ...made));
}

/** One stop of the Tab key in the whole list; arrow keys go through it, as it lies on the screen. */
export function walkable(found) {
  const all = () => [...found.querySelectorAll(".hit")];
  const stop = (button) => {
    for (const each of all()) each.tabIndex = each === button ? 0 : -1;
  };
  found.addEventListener("focusin", (event) => event.target.matches(".hit") && stop(event.target));
  found.addEventListener("keydown", (event) => {
    const here = event.target.closest?.(".hit");
    if (!here || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = step(all(), here, event.key);
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  return () => stop(found.querySelector(".hit:focus") ?? all()[0]);
}

function step(all, here, key) {
  const at = all.indexOf(here);
  if (key === "ArrowRight") return all[at + 1];
  if (key === "ArrowLeft") return all[at - 1];
  if (key === "Home") return all[0];
  if (key === "End") return all.at(-1);
  if (key !== "ArrowDown" && key !== "ArrowUp") return null;
  const { top, left } = here.getBoundingClientRect();
  const beyond = all
    .map((button) => [button, button.getBoundingClientRect()])
    .filter(([, box]) => (key === "ArrowDown" ? box.top > top + 2 : box.top < top - 2));
  const rows = beyond.map(([, box]) => box.top);
  const row = key === "ArrowDown" ? Math.min(...rows) : Math.max(...rows);
  const near = beyond.filter(([, box]) => Math.abs(box.top - row) < 2);
  near.sort((a, b) => Math.abs(a[1].left - left) - Math.abs(b[1].left - left));
  return near[0]?.[0];
}
