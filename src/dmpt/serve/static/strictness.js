// The slider that trades false matches against misses.

import { byId, el } from "./dom.js";
import { first, setOf, stops } from "./verdict.js";
import { few, oneIn, percent, whole } from "./words.js";

/** `fmr` is the rate at which it stands; null = it has no rates to stand at. `changed()` is called when it was moved. */
export class Strictness {
  #points = [];
  #items = 0;
  #chosen = null; // what the user chose lasts from search to search

  constructor(changed) {
    this.fmr = null;
    this.slider = byId("strict");
    this.slider.addEventListener("input", () => {
      this.#stand();
      this.#chosen = this.fmr;
      changed();
    });
  }

  hide() {
    byId("strictness").hidden = true;
  }

  /** The rates of what the query has in common with the gallery, else of what it has with the nearest. */
  offer(calibration, { modalities, hits, items }) {
    const set = [modalities, ...hits.map((hit) => hit.modalities)].map((each) => setOf(calibration, each)).find(Boolean);
    this.#points = set ? stops(set) : [];
    this.#items = items;
    this.fmr = null;
    byId("strictness").hidden = !this.#points.length || !hits.length;
    if (!this.#points.length) return;
    const wanted = this.#chosen ?? first(this.#points, items);
    this.slider.max = this.#points.length - 1;
    this.slider.value = Math.max(0, this.#points.findLastIndex(({ fmr }) => fmr <= wanted));
    this.#stand();
  }

  #stand() {
    const { fmr, fnmr } = this.#points[Number(this.slider.value)];
    this.fmr = fmr;
    const here = `${few(fmr * this.#items)} of these ${whole(this.#items)}`;
    byId("passing").replaceChildren(el("b", {}, oneIn(fmr)), " strangers", el("span", {}, here));
    byId("missing").replaceChildren(el("b", {}, percent(fnmr)), " of true pairs");
    const said = `${oneIn(fmr)} strangers pass, ${percent(fnmr)} of true pairs are missed`;
    this.slider.setAttribute("aria-valuetext", said);
    this.slider.style.setProperty("--at", this.slider.value / Math.max(1, this.#points.length - 1));
  }
}
