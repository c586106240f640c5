// Who is asked: up to three pictures of this machine, or a sample of the gallery.

import { byId, el } from "./dom.js";
import { where } from "./found.js";
import { pictureOf, show } from "./service.js";
import { MODALITIES, SPECTRA, SPOKEN, named } from "./words.js";

const NAMES = {
  rgb: ["rgb", "vis", "visible", "color", "colour"],
  nir: ["nir", "ni", "near"],
  tir: ["tir", "ti", "th", "thermal", "lwir"],
};
const GREY = 6; // mean difference of colour channels below which a picture counts as grey

/**
 * The query and its slots. `changed(query)` is called with each new one and each switch.
 * A query: {key, pid, camera, pictures} or {files: {rgb: File}}; `on` are the spectra that count.
 */
export class Query {
  constructor(modalities, changed, failed) {
    Object.assign(this, { modalities, changed, failed, now: null, wanted: null, on: new Set(modalities) });
    this.slots = new Map(modalities.map((modality) => [modality, this.#slot(modality)]));
    byId("slots").replaceChildren(...[...this.slots.values()].map(({ place }) => place));
    this.#listen();
  }

  /** Spectra that the query has. */
  get has() {
    if (!this.now) return [];
    return this.modalities.filter((m) => (this.now.files ? this.now.files[m] : this.now.has.includes(m)));
  }

  /** Those of them that count. */
  get used() {
    return this.has.filter((modality) => this.on.has(modality));
  }

  /** The body of a request. */
  body() {
    if (!this.now.files) return { key: this.now.key };
    const form = new FormData();
    for (const modality of this.used) form.append(modality, this.now.files[modality]);
    return form;
  }

  /** A sample of the gallery, as the service says it; null = nobody. */
  take(item) {
    this.#become(item);
  }

  /** Pictures of this machine; each goes to the spectrum that its name says, else to one that its colours allow. */
  async add(files, wanted = null) {
    const pictures = [...files].filter((file) => !file.type || file.type.startsWith("image/"));
    if (!pictures.length) return this.failed("That is no picture.");
    if (pictures.length > this.modalities.length) {
      return this.failed(`${pictures.length} pictures are too many: one for each spectrum.`);
    }
    const taken = { ...this.now?.files };
    if (pictures.length > 1 && !wanted) for (const modality of this.modalities) delete taken[modality];
    for (const file of pictures) {
      const free = this.modalities.filter((modality) => !taken[modality]);
      const fit = wanted ?? said(file.name) ?? ((await isColoured(file)) ? "rgb" : null);
      const grey = free.find((modality) => modality !== "rgb");
      const place = this.modalities.includes(fit) && (pictures.length === 1 || !taken[fit]) ? fit : (grey ?? free[0]);
      taken[place ?? this.modalities[0]] = file;
    }
    return this.#become({ files: taken });
  }

  /** What each spectrum says by itself, `{rgb: {score, fmr}}`, and what that is. */
  tell(spectra, caption = "", evidence = null) {
    for (const [modality, { voice }] of this.slots) {
      const own = spectra?.[modality];
      voice.replaceChildren(...(own ? evidence(own) : []));
    }
    byId("alone").hidden = !caption;
    byId("alone").textContent = caption;
  }

  #become(query) {
    this.now = query;
    this.on = new Set(this.modalities);
    this.#draw();
    this.changed(query);
  }

  #slot(modality) {
    const input = el("input", {
      type: "checkbox", role: "switch", "aria-label": `Use ${SPECTRA[modality]}`,
      on: { change: () => this.#switch(modality, input.checked) },
    });
    const frame = el("button", { type: "button", class: "frame", on: { click: () => this.#pick(modality) } });
    const voice = el("span", { class: "voice" });
    const label = el("label", { class: "switch" }, input, ` ${SPECTRA[modality]}`);
    return { place: el("li", { class: "slot", "data-modality": modality }, frame, label, voice), frame, input, voice };
  }

  #switch(modality, on) {
    if (on) this.on.add(modality);
    else this.on.delete(modality);
    this.#switches();
    this.changed(this.now);
  }

  #switches() {
    for (const [modality, { place, input }] of this.slots) {
      const there = this.has.includes(modality);
      input.checked = there && this.on.has(modality);
      input.disabled = !there || (input.checked && this.used.length === 1); // somebody has to speak
      place.classList.toggle("off", there && !input.checked);
      place.classList.toggle("empty", !there);
    }
  }

  #draw() {
    for (const [modality, { frame }] of this.slots) {
      const there = this.has.includes(modality);
      const file = this.now?.files?.[modality];
      frame.replaceChildren();
      const shown = there ? `: ${file?.name ?? named(this.now)}. Choose another` : "";
      frame.setAttribute("aria-label", there ? `Query, ${SPOKEN[modality]} picture${shown}` : `Choose a ${SPOKEN[modality]} picture`);
      if (!there) continue;
      const image = el("img", { alt: `Query, ${SPECTRA[modality]}: ${file?.name ?? named(this.now)}` });
      image.addEventListener("error", () => image.replaceWith(el("span", { class: "unseeable" }, file?.name ?? "no picture")));
      frame.append(image);
      if (file) image.src = URL.createObjectURL(file);
      else show(image, this.now.pictures?.[modality] ?? pictureOf(this.now.key, modality));
      image.addEventListener("load", () => file && URL.revokeObjectURL(image.src), { once: true });
    }
    this.#switches();
    this.#list();
    const item = this.now?.key ? this.now : null;
    byId("who").hidden = !item;
    byId("who").textContent = item && `Query: ${[named(item), where(item)].filter(Boolean).join(", ")}`;
  }

  /** Which file is which spectrum, where names cannot tell. */
  #list() {
    const files = Object.entries(this.now?.files ?? {});
    const rows = files.map(([modality, file]) => {
      const choice = el(
        "select",
        { "aria-label": `Spectrum of ${file.name}`, on: { change: () => this.#move(modality, choice.value) } },
        ...this.modalities.map((m) => el("option", { value: m, selected: m === modality }, SPECTRA[m])),
      );
      const away = { type: "button", class: "quiet", "aria-label": `Take ${file.name} away` };
      const drop = el("button", { ...away, on: { click: () => this.#drop(modality) } }, "\u00d7");
      return el("li", {}, choice, el("span", { class: "name", title: file.name }, file.name), drop);
    });
    byId("files").replaceChildren(...(rows.length ? [el("ul", { role: "list" }, ...rows)] : []));
  }

  #move(from, to) {
    const files = { ...this.now.files };
    [files[from], files[to]] = [files[to], files[from]];
    for (const modality of [from, to]) if (!files[modality]) delete files[modality];
    this.#become({ files });
    byId("files").querySelector(`select option[value=${to}]:checked`)?.parentElement.focus();
  }

  #drop(modality) {
    const { [modality]: _, ...files } = this.now.files;
    this.#become(Object.keys(files).length ? { files } : null);
  }

  #pick(modality = null) {
    const picker = byId("picker");
    picker.multiple = modality === null;
    picker.value = "";
    this.wanted = modality;
    picker.click();
  }

  #listen() {
    byId("choose").addEventListener("click", () => this.#pick());
    byId("picker").addEventListener("change", () => this.add(byId("picker").files, this.wanted));
    document.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) this.add(event.clipboardData.files);
    });
    const over = (on) => document.body.classList.toggle("dropping", on);
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      over(event.dataTransfer.types.includes("Files"));
    });
    document.addEventListener("dragleave", (event) => over(event.relatedTarget !== null));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation(); // it does not wait any more
      over(false);
      if (!event.dataTransfer.files.length) return;
      const slot = event.target.closest?.(".slot");
      const single = event.dataTransfer.files.length === 1;
      this.add(event.dataTransfer.files, single && slot ? slot.dataset.modality : null);
    });
  }
}

/** The spectrum that a file's name says, or null. */
function said(name) {
  const parts = name.toLowerCase().split(/[^a-z]+/);
  return MODALITIES.find((modality) => NAMES[modality].some((word) => parts.includes(word))) ?? null;
}

async function isColoured(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { resizeWidth: 16, resizeHeight: 16 });
  } catch {
    return true; // the service may read what the browser cannot
  }
  const canvas = new OffscreenCanvas(16, 16).getContext("2d");
  canvas.drawImage(bitmap, 0, 0);
  const { data } = canvas.getImageData(0, 0, 16, 16);
  let difference = 0;
  for (let at = 0; at < data.length; at += 4) {
    difference += Math.abs(data[at] - data[at + 1]) + Math.abs(data[at + 1] - data[at + 2]);
  }
  return difference / (data.length / 2) > GREY;
}
