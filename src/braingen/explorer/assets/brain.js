// The brain in three dimensions, coloured by expert, contribution or tuning (niivue).

import { ask, Moved, query } from "./api.js";
import { complain, fill, levelName, make, one } from "./dom.js";

const LIBRARY = "/assets/niivue/niivue.js";
const POSITIVE = "braingen_positive";
const NEGATIVE = "braingen_negative";
const SHARE = "braingen_share";

let about = null;
let state = null;
let viewer = null; // a promise of the viewer, from the moment it is needed
let visible = false;
let newest = 0;
let angles = [110, 15];
let form = "";

export function prepare(run, shared) {
  about = run;
  state = shared;
  form = "";
  fill(one("map-encoder"), Object.keys(run.levels).map((name) => [name, `${name} encoder`]));
  fill(one("map-category"), run.tuning.map((name) => [name, name]));
  choose();
  one("brain").querySelector(".canvas").hidden = run.form === "none";
  one("brain").querySelector(".buttons").hidden = run.form === "none";
  one("map-view").closest(".field").hidden = run.form !== "volume";
}

// Parts of the chosen encoder, and the fields that the kind of map has.
function choose() {
  const kind = one("map-kind").value;
  const sizes = about.levels[one("map-encoder").value] ?? [];
  const levels = sizes.flatMap((experts, level) => [[`level-${level}`, levelName(level, experts)],
    ...Array.from({ length: experts }, (_, expert) => [`level-${level}-expert-${expert}`, `level ${level}, expert ${expert}`])]);
  const hasLevels = sizes.length > 1 || sizes[0] > 1;
  const whole = kind === "contribution" ? [["whole", "whole encoder"]] : [];
  const parts = [...whole, ...(hasLevels ? levels : [])];
  fill(one("map-part"), parts, parts.some(([value]) => value === one("map-part").value) ? undefined
    : kind === "experts" && sizes.length > 1 ? "level-1" : undefined);
  const show = (id, wanted) => { one(id).closest(".field").hidden = !wanted; };
  show("map-encoder", kind !== "tuning");
  show("map-part", kind !== "tuning");
  show("map-category", kind === "tuning" && about.tuning.length > 0);
}

// What the map is of; null, with a sentence, where there is none.
function wanted() {
  const kind = one("map-kind").value;
  const encoder = one("map-encoder").value;
  const refuse = (text) => { one("map-note").textContent = text; return null; };
  if (kind === "tuning") {
    if (!about.tuning.length) return refuse(missingTuning());
    return { run: state.run, kind, category: one("map-category").value };
  }
  const part = one("map-part").value;
  if (!part) return refuse("This encoder has no experts: colour the brain by contribution.");
  return { run: state.run, kind, encoder, part, image: kind === "contribution" ? state.image : null };
}

function missingTuning() {
  if (!about.folder) return "No tuning is known.";
  return `This run has no maps of tuning. With its configuration, braingen train encoding --config NAME --folder ${about.folder} fits an encoding model, and braingen interpret --config NAME --folder ${about.folder} --steps tuning,page writes its maps.`;
}

export async function refresh(shared, current) {
  state = shared;
  const kind = one("map-kind").value;
  if (visible && (kind === "contribution" || form === "")) await update(current);
}

// The newest map: what is written about it first, then its colours.
async function update(outer = () => true) {
  const mine = ++newest;
  const current = () => mine === newest && outer();
  const asked = wanted();
  if (!asked) {
    one("legend").replaceChildren();
    one("map-regions").hidden = true;
    await paint(null, null, current);
    return;
  }
  try {
    one("map-note").textContent = "Computing the map.";
    const found = await ask(`/api/map?${query(asked)}`, undefined, current);
    write(found);
    await paint(asked, found, current);
  } catch (error) {
    if (error instanceof Moved) return;
    one("map-note").textContent = error.message;
  }
}

function write(found) {
  one("map-note").textContent = found.note + (about.form === "none" ? ` ${about.where || "There is no mesh of this surface."} The table has its means by region.` : "");
  one("canvas").setAttribute("aria-label", `Brain coloured by ${one("map-kind").selectedOptions[0].textContent}`);
  const swatch = (colour, text) => {
    const box = make("span", { class: "swatch" });
    box.style.background = colour;
    return make("li", {}, box, text);
  };
  const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
  const limit = found.limit.toPrecision(3);
  if (found.kind === "labels") {
    one("legend").replaceChildren(...found.labels.map((name, label) => swatch(css(colour(label, found.labels.length)), name)));
  } else if (found.kind === "share") {
    one("legend").replaceChildren(swatch("linear-gradient(to right, rgb(68 1 84), rgb(33 145 140), rgb(253 231 37))", `0 to ${limit}`));
  } else {
    one("legend").replaceChildren(swatch("linear-gradient(to right, rgb(5 48 97), rgb(146 197 222))", `-${limit} to 0`),
      swatch("linear-gradient(to right, rgb(244 165 130), rgb(103 0 31))", `0 to ${limit}`));
  }
  one("map-value").textContent = found.kind === "labels" ? "most frequent" : "mean";
  one("map-regions").hidden = found.regions.length === 0;
  one("map-regions").tBodies[0].replaceChildren(...found.regions.map(({ name, voxels, value }) => make("tr", {},
    make("th", { scope: "row" }, name), make("td", {}, String(voxels)), make("td", {}, typeof value === "string" ? value : value.toPrecision(3)))));
}

// Colours that differ as much as their number allows.
function colour(label, count) {
  const hue = (label * 360) / count;
  const light = label % 2 ? 0.42 : 0.62;
  const channel = (n) => {
    const k = (n + hue / 30) % 12;
    return Math.round(255 * (light - 0.75 * Math.min(light, 1 - light) * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
  };
  return [channel(0), channel(8), channel(4)];
}

async function open() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const { Niivue } = await import(LIBRARY);
  const view = new Niivue({
    backColor: dark ? [0.11, 0.118, 0.141, 1] : [1, 1, 1, 1], isOrientCube: false, isColorbar: false, dragAndDropEnabled: false,
    isNearestInterpolation: true, show3Dcrosshair: false, crosshairWidth: 0.5, logLevel: "error", loadingText: "", isResizeCanvas: true,
    fontColor: dark ? [1, 1, 1, 1] : [0, 0, 0, 1], scrollRequiresFocus: true,
  });
  view.onLocationChange = (place) => { one("location").textContent = place.string ?? ""; };
  await view.attachToCanvas(one("canvas"), true);
  // what lies below the lower end has the first colour, which cannot be seen
  const scale = (...colours) => view.addColormap(colours.shift(), {
    R: [0, ...colours.map(([red]) => red)], G: [0, ...colours.map(([, green]) => green)], B: [0, ...colours.map(([,, blue]) => blue)],
    A: [0, ...colours.map(() => 255)], I: [0, 1, 128, 255],
  });
  scale(POSITIVE, [244, 165, 130], [214, 96, 77], [103, 0, 31]);
  scale(NEGATIVE, [146, 197, 222], [67, 147, 195], [5, 48, 97]);
  scale(SHARE, [68, 1, 84], [33, 145, 140], [253, 231, 37]);
  return view;
}

async function paint(asked, found, current) {
  if (about.form === "none") return;
  viewer ??= open();
  let view;
  try {
    view = await viewer;
  } catch (error) {
    one("map-note").textContent += ` The brain cannot be shown here (${error.message}); the table has its means by region.`;
    return;
  }
  if (!current()) return;
  if (about.form === "volume") await paintVolume(view, asked, found, current);
  else await paintSurface(view, asked, found);
}

async function paintVolume(view, asked, found, current) {
  const volumes = [{ url: `/api/brain/${state.run}.nii`, name: "brain.nii", colormap: "gray", opacity: 0.35, cal_min: 0, cal_max: 2 }];
  if (asked) {
    const signed = found.kind === "signed";
    volumes.push({
      url: `/api/map.nii?${query(asked)}`, name: "map.nii", opacity: 1, colormap: signed ? POSITIVE : SHARE,
      colormapNegative: signed ? NEGATIVE : "", cal_min: signed ? found.limit / 50 : 0.001, cal_max: found.limit,
    });
  }
  await view.loadVolumes(volumes);
  if (!current()) return;
  if (asked && found.kind === "labels") {
    const colours = found.labels.map((_, label) => colour(label, found.labels.length));
    const column = (index, first) => [first, ...colours.map((each) => each[index])];
    view.volumes[1].setColormapLabel({ R: column(0, 0), G: column(1, 0), B: column(2, 0), A: [0, ...colours.map(() => 255)],
      I: [0, ...colours.map((_, label) => label + 1)], labels: ["", ...found.labels] });
    view.updateGLVolume();
  }
  turnTo(view);
  form = "volume";
}

async function paintSurface(view, asked, found) {
  const sides = ["left", "right"];
  await view.loadMeshes(sides.map((side) => ({
    url: `/api/mesh/${state.run}/${side}.gii`, name: `${side}.gii`, rgba255: [190, 185, 178, 255],
    layers: asked ? [{ url: `/api/texture/${side}.gii?${query(asked)}`, name: `${side}.func.gii`, colormap: found.kind === "signed" ? POSITIVE : SHARE,
      colormapNegative: found.kind === "signed" ? NEGATIVE : "", useNegativeCmap: found.kind === "signed", cal_min: found.limit / 50, cal_max: found.limit, opacity: 1 }] : [],
  })));
  turnTo(view);
  form = "surface";
}

function turnTo(view) {
  const render = about.form === "surface" || one("map-view").value === "render";
  view.setSliceType(render ? view.sliceTypeRender : view.sliceTypeMultiplanar);
  view.setRenderAzimuthElevation(...angles);
  one("brain").dataset.painted = String(Number(one("brain").dataset.painted ?? 0) + 1);
}

for (const button of document.querySelectorAll("[data-turn]")) {
  button.addEventListener("click", async () => {
    const [across, up] = button.dataset.turn.split(",").map(Number);
    angles = [(angles[0] + across + 360) % 360, Math.max(-90, Math.min(90, angles[1] + up))];
    if (viewer) turnTo(await viewer);
  });
}
one("map-view").addEventListener("change", async () => { if (viewer) turnTo(await viewer); });
for (const id of ["map-kind", "map-encoder", "map-part", "map-category"]) {
  one(id).addEventListener("change", () => {
    choose();
    update().catch(complain);
  });
}

// The viewer is large: it is loaded when somebody comes near it.
new IntersectionObserver((entries, observer) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  visible = true;
  observer.disconnect();
  if (state?.image !== null && state) update().catch(complain);
}, { rootMargin: "200px" }).observe(one("brain"));
