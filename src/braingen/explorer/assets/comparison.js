// The same test image decoded by two runs.

import { ask } from "./api.js";
import { make, number, one, show } from "./dom.js";

let about = null;

export function prepare(found) {
  about = found;
  one("comparison-note").textContent = found.runs.length < 2
    ? "One run is open. Two are compared by braingen explore RUN RUN."
    : `${found.comparable.length} test images were shown to the subjects of both runs.`;
  found.runs.forEach((run, index) => {
    if (found.runs.length < 2) return;
    one(`compared-name-${index}`).textContent = run.name;
    one(`column-${index}`).textContent = run.name;
  });
}

export async function refresh(state, asked, current) {
  if (about.runs.length < 2) return;
  const known = about.comparable.includes(state.image);
  one("comparison-body").hidden = !known;
  if (!known) {
    one("comparison-note").textContent = `Image ${state.image} is no test image of both runs: choose another one.`;
    return;
  }
  one("comparison-note").textContent = `${about.comparable.length} test images were shown to the subjects of both runs. Noise and steps are the same for both.`;
  show(one("compared-seen"), `/api/seen/${state.run}/${state.image}.png`, `Seen: image ${state.image}`);
  const found = [];
  for (const run of [0, 1]) {
    const presentations = about.runs[run].presentations;
    const presentation = asked.presentation !== null && asked.presentation < presentations ? asked.presentation : null;
    found[run] = await ask("/api/image", { ...asked, run, presentation }, current);
    show(one(`compared-${run}`), found[run].picture, `Decoded by ${about.runs[run].name}`);
  }
  const cells = (name, values) => make("tr", {}, make("th", { scope: "row" }, name), ...values.map((value) => make("td", {}, value)));
  const rows = [
    cells("this image: cosine with the true image embedding", found.map((each) => number(each.cosine))),
    cells("this image: pixel correlation", found.map((each) => number(each.pixcorr))),
  ];
  const names = Object.keys({ ...about.runs[0].scores, ...about.runs[1].scores });
  for (const name of names) {
    const pair = about.runs.map((run) => run.scores[name]);
    rows.push(cells(pair.find(Boolean).title, pair.map(interval)));
  }
  one("comparison-table").tBodies[0].replaceChildren(...rows);
}

function interval(score) {
  if (!score) return "not evaluated";
  const ends = score.low === null || score.low === undefined ? "" : ` (${number(score.low)} to ${number(score.high)})`;
  return `${number(score.value)}${ends}, n = ${score.n ?? "unknown"}`;
}
