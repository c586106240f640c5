// Where the model looks: a map over each picture of the query, from little to much.

import { el } from "./dom.js";
import { SPECTRA } from "./words.js";

// Its lightness grows evenly, so that it reads without colours too.
const HEAT = [[40, 11, 84], [101, 21, 110], [159, 42, 99], [212, 72, 66], [245, 125, 21], [252, 255, 164]];
const LEAST_TOP = 2; // an even look stays dark

/** Canvases by modality, of the class token's look. */
export function looks({ maps, lookers }) {
  const looker = lookers.includes("class token") ? "class token" : lookers.at(-1);
  const own = Object.entries(maps).map(([modality, map]) => [modality, map[looker]]);
  const values = own.flatMap(([, map]) => map.flat()).sort((a, b) => a - b);
  const top = Math.max(LEAST_TOP, values[Math.floor(0.98 * (values.length - 1))]);
  return Object.fromEntries(own.map(([modality, map]) => [modality, painted(map, top, SPECTRA[modality])]));
}

/** A pixel for each cell; the browser makes it smooth. */
function painted(map, top, name) {
  const [height, width] = [map.length, map[0].length];
  const canvas = el("canvas", { class: "look", width, height, role: "img", "aria-label": `Where the model looks, ${name}` });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  map.flat().forEach((value, cell) => {
    const share = Math.min(1, value / top);
    pixels.data.set([...heat(share), 255 * (0.15 + 0.7 * share)], 4 * cell); // little attention hides little
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function heat(share) {
  const place = share * (HEAT.length - 1);
  const below = Math.min(Math.floor(place), HEAT.length - 2);
  return HEAT[below].map((from, channel) => from + (place - below) * (HEAT[below + 1][channel] - from));
}
