// Levels, experts and regions that are ablated, and the image that is generated without them.

import { ask } from "./api.js";
import { fill, make, number, one, show } from "./dom.js";

let about = null;
let before = null;
let changed = () => {};
let newest = 0;
const chosen = { image: new Set(), text: new Set(), regions: new Set() };

export const onChange = (work) => { changed = work; };

// A test of whether the newest choice is still the newest.
export function fresh() {
  const mine = ++newest;
  return () => mine === newest;
}

function check(set, value, text, name) {
  const input = make("input", { type: "checkbox", value, "aria-label": name });
  input.checked = set.has(value);
  input.addEventListener("change", () => {
    if (input.checked) set.add(value);
    else set.delete(value);
    changed();
  });
  return make("label", { class: "check" }, input, text);
}

function drawParts() {
  const encoder = one("ablated-encoder").value;
  const sizes = about.levels[encoder] ?? [];
  const rows = sizes.map((experts, level) => {
    const whole = check(chosen[encoder], `level-${level}`, `Level ${level}`, `Level ${level} of the ${encoder} encoder`);
    const single = Array.from({ length: experts }, (_, expert) => check(chosen[encoder], `level-${level}-expert-${expert}`,
      String(expert), `Level ${level}, expert ${expert} of the ${encoder} encoder`));
    return make("div", { class: "level" }, whole, make("div", { class: "experts" }, ...single));
  });
  one("parts").replaceChildren(...(sizes.length > 1 || sizes[0] > 1 ? rows : ["This encoder has no levels and no experts."]));
}

export function prepare(run) {
  about = run;
  for (const set of Object.values(chosen)) set.clear();
  one("random").checked = false;
  fill(one("ablated-encoder"), Object.keys(run.levels).map((name) => [name, name]));
  drawParts();
  const regions = run.regions.map(({ name, voxels }) => check(chosen.regions, name, `${name} (${voxels})`, `${name}, ${voxels} voxels`));
  one("regions").replaceChildren(...(regions.length ? regions : ["No regions are known."]));
}

export function showBefore(found) {
  before = found;
  show(one("before"), found.picture, "Decoded, undisturbed");
}

const ablate = () => ({
  image: [...chosen.image].sort(), text: [...chosen.text].sort(), regions: [...chosen.regions].sort(),
  random: one("random").checked && chosen.regions.size > 0,
});

export async function refresh(asked, current) {
  if (!before) return;
  const wanted = ablate();
  const nothing = !wanted.image.length && !wanted.text.length && !wanted.regions.length;
  if (nothing) {
    show(one("after"), before.picture, "Nothing is ablated");
    one("ablation-facts").textContent = "Nothing is ablated. Choose experts or regions.";
    one("ablation-table").hidden = true;
    compare(before.picture);
    return;
  }
  one("ablation-facts").textContent = "Generating.";
  const found = await ask("/api/image", { ...asked, ablate: wanted }, current);
  show(one("after"), found.picture, "Decoded with the ablation");
  compare(found.picture);
  const parts = wanted.image.length + wanted.text.length;
  const what = [parts ? `${parts} part${parts > 1 ? "s" : ""} of the encoders` : "", found.voxels ? `${found.voxels} voxels${wanted.random ? " at random" : ""}` : ""];
  one("ablation-facts").textContent = `Ablated: ${what.filter(Boolean).join(" and ")}. Generated in ${number(found.seconds, 1)} s.`;
  const rows = [["cosine of the decoded and the true image embedding", before.cosine, found.cosine], ["pixel correlation", before.pixcorr, found.pixcorr]];
  one("ablation-table").tBodies[0].replaceChildren(...rows.map(([name, first, second]) => make("tr", {},
    make("th", { scope: "row" }, name), make("td", {}, number(first)), make("td", {}, number(second)))));
  one("ablation-table").hidden = false;
}

function compare(after) {
  show(one("difference-first"), before.picture, "Difference between undisturbed and ablated");
  show(one("difference-second"), after, "");
}

one("ablated-encoder").addEventListener("change", drawParts);
one("random").addEventListener("change", () => changed());
one("clear").addEventListener("click", () => {
  for (const set of Object.values(chosen)) set.clear();
  one("random").checked = false;
  for (const input of document.querySelectorAll("#parts input, #regions input")) input.checked = false;
  changed();
});
