// The image and the weights of the levels along denoising time, and what each level alone gives.

import { ask } from "./api.js";
import { levelName, make, number, one, show } from "./dom.js";

let about = null;
let main = null;
let levels = [];
let timer = 0;

export function prepare(run) {
  about = run;
  const routed = Object.entries(run.routed).filter(([encoder, has]) => has && run.levels[encoder]).map(([encoder]) => encoder);
  one("routing-note").textContent = routed.length
    ? `Routers weight the levels of the ${routed.join(" and the ")} encoder at every step.`
    : "This decoder has no routers: its levels have the same weight at every step.";
  stop();
}

// Levels that both encoders have; nothing for encoders without levels.
function shared() {
  const counts = Object.values(about.levels).map((sizes) => sizes.length);
  const least = Math.min(...counts);
  return least > 1 && counts.every((count) => count === least) ? least : 0;
}

export function showMain(found) {
  main = found;
  levels = [];
  const slider = one("step");
  slider.max = found.frames.length - 1;
  slider.value = slider.max;
  one("levels").replaceChildren();
  one("levels-note").textContent = shared()
    ? "Generated from the outputs of one level of experts, from the same noise. Cosine is that of the level's and the true image embedding."
    : "The encoders have no levels in common, so no level can be generated alone.";
  draw();
}

export async function refreshLevels(asked, current) {
  for (let level = 0; level < shared(); level += 1) {
    const found = await ask("/api/image", { ...asked, level, frames: true }, current);
    levels[level] = found;
    draw();
  }
}

function draw() {
  if (!main) return;
  const at = Number(one("step").value);
  const step = main.frame_steps[at];
  const name = `${step} of ${main.steps}, diffusion time ${Math.round(main.times[step - 1])}`;
  one("step-name").textContent = name;
  one("step").setAttribute("aria-valuetext", name);
  show(one("frame"), main.frames[at], `Decoded latents after step ${step} of ${main.steps}`);
  one("weights").replaceChildren(...Object.entries(main.weights).map(([encoder, steps]) => bars(encoder, steps[step - 1])));
  one("levels").replaceChildren(...levels.map((found, level) => {
    const frame = found.frames[Math.min(at, found.frames.length - 1)];
    const text = `Level ${level}`;
    return make("figure", {}, make("img", { src: frame, alt: `${text} alone after step ${step}` }),
      make("figcaption", {}, `${text}, cosine ${number(found.cosine, 2)}`));
  }));
}

function bars(encoder, weights) {
  const rows = weights.map((weight, level) => {
    const bar = make("span", { class: "bar" });
    bar.style.width = `${Math.max(0, Math.min(1, weight)) * 100}%`;
    return make("tr", {}, make("th", { scope: "row" }, levelName(level, about.levels[encoder][level])),
      make("td", { class: "track" }, bar), make("td", {}, number(weight)));
  });
  return make("table", { class: "bars" }, make("caption", {}, `${encoder} encoder`), make("tbody", {}, ...rows));
}

function stop() {
  clearInterval(timer);
  timer = 0;
  one("play").textContent = "Play";
}

function play() {
  if (timer) {
    stop();
    return;
  }
  const slider = one("step");
  slider.value = 0;
  draw();
  one("play").textContent = "Stop";
  timer = setInterval(() => {
    if (Number(slider.value) >= Number(slider.max)) {
      stop();
      return;
    }
    slider.value = Number(slider.value) + 1;
    draw();
  }, 500);
}

one("step").addEventListener("input", () => { stop(); draw(); });
one("play").addEventListener("click", play);
