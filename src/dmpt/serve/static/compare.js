// Query and hit beside each other, spectrum by spectrum; the hit's label.

import { byId, el } from "./dom.js";
import { alone, bar, meant } from "./found.js";
import { pictureOf, show } from "./service.js";
import { VERDICTS } from "./verdict.js";
import { SPECTRA, fullMoment, named, scored } from "./words.js";

const SMALL = 256; // what lists show, and what is there at once
const LARGE = 768;

/**
 * Opens the dialog.
 * about: {hit, query, verdict, items, modalities, pids, beside(by), open(hit), label(hit, pid), search(hit)}
 */
export function compare(about) {
  const { hit, query, verdict, items, modalities, pids } = about;
  const dialog = byId("compare");
  const close = el("button", { type: "button", class: "quiet close", "aria-label": "Close", on: { click: () => dialog.close() } }, "\u00d7");
  const heading = el("h2", { id: "verdict", class: verdict ?? "" }, verdict ? VERDICTS[verdict] : `Score ${scored(hit.score)}`);
  const sentence = hit.fmr === null
    ? "Nothing is calibrated for what these two have in common, so no rate of strangers is known."
    : `Score ${scored(hit.score)}: ${meant(hit, items)}.`;
  const step = (by) => about.beside(by) && about.open(about.beside(by));
  const turn = (by, text, arrow) => el(
    "button",
    { type: "button", class: "quiet", "data-turn": by, "aria-label": text, disabled: !about.beside(by), on: { click: () => step(by) } },
    arrow,
  );
  const turned = document.activeElement.dataset.turn;
  dialog.replaceChildren(
    el("div", { class: "head" },
      el("div", {}, heading, el("p", {}, sentence)),
      el("div", { class: "turns" }, turn(-1, "The one before", "\u2190"), turn(1, "The next one", "\u2192"), close)),
    el("div", { class: "pairs" }, ...modalities.map((modality) => pair(modality, query, hit))),
    el("div", { class: "beside" }, facts(hit), labelling(hit, pids, about)),
  );
  dialog.onkeydown = (event) => {
    if (event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  };
  if (!dialog.open) dialog.showModal();
  (dialog.querySelector(`[data-turn="${turned}"]:enabled`) ?? close).focus({ preventScroll: true });
}

function pair(modality, query, hit) {
  const own = hit.spectra[modality];
  const name = SPECTRA[modality];
  const both = el("div", { class: "both" }, asked(modality, query), picture(hit.pictures[modality], `${named(hit)}, ${name}`));
  const said = own
    ? own.fmr === null ? [`score ${alone(own)}`] : [bar(own), `${alone(own)} strangers`]
    : ["not compared"];
  return el("figure", { class: own ? "pair" : "pair off" }, both, el("figcaption", {}, el("span", {}, name), ...said));
}

function asked(modality, query) {
  const shown = byId("slots").querySelector(`[data-modality=${modality}] img`);
  if (query.files) return picture(query.files[modality] && URL.createObjectURL(query.files[modality]), shown?.alt ?? "");
  if (!query.has.includes(modality)) return picture(null);
  return picture(query.pictures?.[modality] ?? pictureOf(query.key, modality), shown?.alt ?? "");
}

function picture(path, alt = "") {
  const pane = el("span", { class: "pane" });
  if (!path) {
    pane.classList.add("empty");
    return pane;
  }
  const image = el("img", { alt });
  const own = path.startsWith("blob:");
  image.addEventListener("error", () => image.remove());
  image.addEventListener(
    "load",
    () => {
      pane.classList.add("there");
      if (own) URL.revokeObjectURL(path);
      else if (Math.max(image.naturalWidth, image.naturalHeight) >= SMALL) show(image, `${path}&size=${LARGE}`);
    },
    { once: true },
  );
  pane.append(image);
  if (own) image.src = path;
  else show(image, path);
  return pane;
}

function facts(hit) {
  const known = [
    ["Camera", hit.camera],
    ["Time", hit.time && fullMoment(hit.time)],
    ...Object.entries(hit.columns),
    ["Sample", hit.key],
  ];
  const rows = known.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", {}, ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, typeof value === "object" ? JSON.stringify(value) : String(value)))));
}

function labelling(hit, pids, { label, search }) {
  const input = el("input", {
    id: "pid", list: "pids", autocomplete: "off", spellcheck: "false", maxlength: "1000", placeholder: "none",
    value: hit.pid ?? "",
  });
  const form = el(
    "form",
    {
      on: {
        submit: (event) => {
          event.preventDefault();
          label(hit, input.value.trim() || null);
        },
      },
    },
    el("label", { for: "pid" }, "Label"),
    el("span", { class: "field" }, input, el("button", { type: "submit" }, "Save")),
    el("datalist", { id: "pids" }, ...pids.map((pid) => el("option", { value: pid }))),
  );
  const again = el("button", { type: "button", on: { click: () => search(hit) } }, "Search for this one");
  return el("div", { class: "doing" }, form, again);
}
