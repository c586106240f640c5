// Which samples of the gallery count.

import { byId, el } from "./dom.js";

/** `changed()` is called with each change. */
export function filters(gallery, changed) {
  const form = byId("filters").querySelector("form");
  byId("filters").open = matchMedia("(min-width: 760px)").matches;
  byId("times").hidden = !gallery.time;
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", changed);
}

/** Cameras to choose from; the query's own first, since that is the one to leave out. */
export function cameras(gallery, own) {
  const select = byId("camera");
  const before = select.value;
  const all = Object.keys(gallery.cameras).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const others = all.includes(own) ? [own, ...all.filter((camera) => camera !== own)] : all;
  const option = (value, text) => el("option", { value }, text);
  select.replaceChildren(
    option("", "any"),
    el("optgroup", { label: "Not" }, ...others.map((one) => option(`-${one}`, `not ${one}${one === own ? ", its own" : ""}`))),
    el("optgroup", { label: "Only" }, ...all.map((one) => option(`+${one}`, `only ${one}`))),
  );
  select.value = [...select.options].some(({ value }) => value === before) ? before : "";
  select.parentElement.hidden = all.length === 0;
}

/** As parameters of a search. */
export function filtered() {
  const camera = byId("camera").value;
  const instant = (id) => byId(id).value && `${byId(id).value}Z`;
  const found = {
    camera: camera.startsWith("+") ? camera.slice(1) : "",
    not_camera: camera.startsWith("-") ? camera.slice(1) : "",
    after: instant("after"),
    before: instant("before"),
    group: byId("every").checked ? "none" : "",
  };
  byId("filters").classList.toggle("on", Object.values(found).some(Boolean));
  return found;
}

export const clear = () => byId("filters").querySelector("form").reset();
