// What a score means at the rate that the slider stands at.

export const VERDICTS = { same: "Same", other: "Not the same", unsaid: "Cannot be said" };

/** The rates of a set of common modalities, or undefined. */
export const setOf = (calibration, common) =>
  calibration?.sets.find((set) => set.common.join() === common.join());

/** "same", "other", or "unsaid" where the calibration's identities are too few, or none were of such a set. */
export function verdictOf(hit, fmr, calibration) {
  if (fmr === null || hit.fmr === null) return "unsaid";
  if (hit.fmr <= fmr) return "same";
  return fmr < (setOf(calibration, hit.modalities)?.least ?? 1) ? "unsaid" : "other";
}

/**
 * Rates that the slider can stand at, strict ones first: `{fmr, fnmr}` of a set's curve, what its identities carry.
 * Of equal rates the one with the fewest misses.
 */
export function stops(set) {
  const found = new Map();
  for (const { fmr, fnmr } of set.curve) {
    if (fmr <= 0.5 && !(found.get(fmr)?.fnmr <= fnmr)) found.set(fmr, { fmr, fnmr });
  }
  return [...found.values()].sort((a, b) => a.fmr - b.fmr);
}

/** Where the slider stands first: at most one stranger among all items passes, if the calibration carries that. */
export function first(points, items) {
  const carried = points.filter(({ fmr }) => fmr * items <= 1);
  return (carried.at(-1) ?? points[0]).fmr;
}
