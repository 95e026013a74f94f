// The page: the chosen image, what is decoded from it, and what follows from a change.

import { ask, Moved } from "./api.js";
import { complain, fill, make, number, one, settled, show } from "./dom.js";
import * as ablation from "./ablation.js";
import * as brain from "./brain.js";
import * as comparison from "./comparison.js";
import * as denoising from "./denoising.js";

const FIRST = 48; // images shown before the rest is asked for
const state = { about: null, run: 0, image: null, generation: 0 };

const run = () => state.about.runs[state.run];
const caption = (image) => run().images.find((each) => each.image === image)?.caption || "";
const seenAt = (image) => `/api/seen/${state.run}/${image}.png`;

// What every request about the chosen image says.
function common() {
  const steps = Number(one("steps").value);
  const sample = Number(one("sample").value);
  const presentation = one("presentation").value;
  return {
    run: state.run,
    image: state.image,
    steps: Number.isInteger(steps) && steps > 0 ? steps : run().preview_steps,
    sample: Number.isInteger(sample) && sample >= 0 ? sample : 0,
    presentation: presentation === "" ? null : Number(presentation),
  };
}

function chooseImages(all) {
  const shown = all ? run().images : run().images.slice(0, FIRST);
  one("images").replaceChildren(...shown.map(({ image, caption: words }) => {
    const input = make("input", { type: "radio", name: "image", value: String(image) });
    input.checked = image === state.image;
    input.addEventListener("change", () => chooseImage(image));
    const picture = make("img", { src: seenAt(image), alt: words ? `Image ${image}: ${words}` : `Image ${image}`, width: "64", height: "64", loading: "lazy" });
    return make("label", { class: "thumb" }, input, picture);
  }));
  const rest = run().images.length - shown.length;
  one("more-images").hidden = rest === 0;
  one("more-images").textContent = `Show ${rest} more`;
}

function chooseImage(image) {
  state.image = image;
  one("caption").textContent = caption(image);
  show(one("seen"), seenAt(image), `Seen: ${caption(image) || `image ${image}`}`);
  refresh();
}

function chooseRun(chosen) {
  state.run = chosen;
  const about = run();
  document.title = `${about.name} – BrainGen explorer`;
  one("run-name").textContent = `${about.name}, subject ${about.subject}`;
  one("simulated").hidden = one("simulated-note").hidden = !about.simulated;
  one("steps").value = about.preview_steps;
  one("preview").textContent = about.preview_steps === about.steps
    ? `${about.steps} denoising steps, as for the run's own images.`
    : `Preview with ${about.preview_steps} denoising steps; the run's own images have ${about.steps}.`;
  one("preview").textContent += about.notes.map((note) => ` ${note}`).join("");
  const single = Array.from({ length: about.presentations }, (_, number) => [String(number), `${number + 1} alone`]);
  fill(one("presentation"), [["", "all, averaged"], ...single], "");
  ablation.prepare(about);
  denoising.prepare(about);
  brain.prepare(about, state);
  const known = about.images.some((each) => each.image === state.image);
  if (!known) state.image = about.images[0].image;
  chooseImages(false);
  chooseImage(state.image);
}

// Everything that depends on the chosen image, the most important first.
async function refresh() {
  const generation = ++state.generation;
  const current = () => generation === state.generation;
  document.body.classList.add("busy");
  complain(null);
  try {
    const asked = common();
    const found = await ask("/api/image", { ...asked, frames: true }, current);
    const words = `Decoded image ${state.image}`;
    show(one("decoded"), found.picture, words);
    one("facts").textContent = `Generated in ${number(found.seconds, 1)} s with ${found.steps} steps. Cosine with the true image embedding ${number(found.cosine)}, pixel correlation with the seen image ${number(found.pixcorr)}.`;
    denoising.showMain(found);
    ablation.showBefore(found);
    await ablation.refresh(asked, current);
    await comparison.refresh(state, asked, current);
    brain.refresh(state, current);
    await refreshSpread(asked, current);
    await denoising.refreshLevels(asked, current);
    if (current()) document.body.classList.remove("busy");
  } catch (error) {
    if (error instanceof Moved) return;
    document.body.classList.remove("busy");
    complain(error);
  }
}

// An image at a time, so that none has to be waited for long.
async function refreshSpread(asked, current) {
  const over = one("over").value;
  const most = over === "noise" ? state.about.candidates : Math.max(2, run().presentations);
  for (let count = 2; count <= most; count += 1) {
    const wanted = { run: asked.run, image: asked.image, steps: asked.steps, over, count };
    showSpread(await ask("/api/spread", wanted, current), over);
  }
}

function showSpread(found, over) {
  show(one("spread"), found.picture, `Spread of the decoded images; mean standard deviation ${number(found.mean)}`);
  const name = (index) => (over === "noise" ? `noise ${index}` : `presentation ${index + 1}`);
  one("candidates").replaceChildren(...found.candidates.map((source, index) => make("figure", {},
    make("img", { src: source, alt: `Decoded with ${name(index)}` }), make("figcaption", {}, name(index)))));
  one("spread-facts").textContent = `Standard deviation over ${found.candidates.length} images, mean over pixels: ${number(found.mean)} (images from 0 to 1; the brightest colour is ${state.about.spread_top} and above).`;
}

async function start() {
  try {
    state.about = await ask("/api/runs");
  } catch (error) {
    complain(error);
    return;
  }
  one("version").textContent = state.about.version;
  const names = state.about.runs.map((each, index) => [String(index), each.name]);
  one("run-field").hidden = names.length < 2;
  fill(one("run"), names, "0");
  comparison.prepare(state.about);
  const again = settled(refresh);
  one("run").addEventListener("change", (event) => chooseRun(Number(event.target.value)));
  one("more-images").addEventListener("click", () => {
    chooseImages(true);
    one("images").querySelector("input:checked")?.focus();
  });
  for (const name of ["steps", "sample", "presentation", "over"]) one(name).addEventListener("change", again);
  ablation.onChange(settled(() => ablation.refresh(common(), ablation.fresh()).catch((error) => {
    if (!(error instanceof Moved)) complain(error);
  })));
  chooseRun(0);
}

start();
