// Numbers as people say them.

export const MODALITIES = ["rgb", "nir", "tir"];
export const SPECTRA = { rgb: "RGB", nir: "NIR", tir: "TIR" };
export const SPOKEN = { rgb: "visible", nir: "near-infrared", tir: "thermal" };

export const count = (number, one, many) => `${whole(number)} ${number === 1 ? one : many}`;

export const whole = (number) => Math.round(number).toLocaleString("en");

/** "1 in 770", for a share in (0, 1]. */
export function oneIn(share) {
  const among = 1 / share;
  return `1 in ${among < 9.95 ? trimmed(among, 1) : whole(Number(among.toPrecision(2)))}`;
}

/** How many are expected, at most: "0.3", "12", "0.01". */
export function expected(number) {
  if (number < 0.01) return "0.01";
  return number < 9.95 ? trimmed(number, number < 0.095 ? 2 : 1) : whole(number);
}

/** The same where nothing says "at most": "0.3", "< 0.01". */
export const few = (number) => (number < 0.01 ? "< 0.01" : expected(number));

/** "0.3 strangers". */
export const strangers = (number) => `${few(number)} ${few(number) === "1" ? "stranger" : "strangers"}`;

/** "24 %", "0.4 %". */
export function percent(share) {
  const points = 100 * share;
  return `${points < 9.95 ? trimmed(points, 1) : Math.round(points)}\u00a0%`;
}

export const megabytes = (bytes) => `${whole(bytes / 1e6)} MB`;

export const scored = (score) => score.toFixed(4).replace("-", "\u2212");

const said = (parts) => new Intl.DateTimeFormat("en-GB", { ...parts, hour: "2-digit", minute: "2-digit", timeZone: "UTC" });
const SHORT = said({ day: "numeric", month: "short" });
const LONG = said({ day: "numeric", month: "short", year: "numeric", second: "2-digit" });

/** "1 Mar, 14:05", in UTC. */
export const moment = (time) => SHORT.format(new Date(time));

/** "1 Mar 2026, 14:05:00 UTC". */
export const fullMoment = (time) => `${LONG.format(new Date(time))} UTC`;

/** "17 and 4", "17, 4 and 3 others". */
export function listed(names, most = 3) {
  const rest = names.length - most;
  const said = rest > 1 ? [...names.slice(0, most), `${rest} others`] : names;
  return said.length < 2 ? said.join("") : `${said.slice(0, -1).join(", ")} and ${said.at(-1)}`;
}

export const named = (item) => item.pid ?? "no label";

/** The labels of several, and how many have none. */
export function names(items) {
  const pids = [...new Set(items.map(({ pid }) => pid))].filter((pid) => pid !== null);
  const bare = items.filter(({ pid }) => pid === null).length;
  return listed(bare ? [...pids, `${bare === 1 ? "one" : whole(bare)} without a label`] : pids);
}

const trimmed = (number, digits) => number.toFixed(digits).replace(/\.0$/, "");
