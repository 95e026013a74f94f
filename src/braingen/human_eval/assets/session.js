// Trials of one rater, their order and sides: a function of the study's seed and the rater's code.
// human_eval/session.py and answers.py do the same and check result files against it.
"use strict";

function hash32(text) {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  return value;
}

class Draw {
  constructor(seed) {
    this.state = hash32(seed) | 0;
  }

  below(end) {
    this.state = (this.state + 0x6d2b79f5) | 0;
    let value = this.state;
    value = Math.imul(value ^ (value >>> 15), value | 1);
    value = (value + Math.imul(value ^ (value >>> 7), value | 61)) ^ value;
    return Math.floor((((value ^ (value >>> 14)) >>> 0) / 4294967296) * end);
  }

  shuffled(items) {
    const order = [...items];
    for (let last = order.length - 1; last > 0; last -= 1) {
      const other = this.below(last + 1);
      [order[last], order[other]] = [order[other], order[last]];
    }
    return order;
  }
}

function sessionOf(plan, rater) {
  const draw = new Draw(`${plan.seed}/${rater}`);
  const shown = [];
  for (const task of plan.tasks) {
    let tests = plan.trials.filter((trial) => trial.task === task && trial.kind === "test");
    let images = draw.shuffled(new Set(tests.map((trial) => trial.image)));
    if (plan.per_rater) images = images.slice(0, plan.per_rater);
    const methods = draw.shuffled(plan.methods);
    if (task === "identification") {
      const method = new Map(images.map((image, k) => [image, methods[k % methods.length]]));
      tests = tests.filter((trial) => method.get(trial.image) === trial.method);
    } else {
      const asked = new Set(images);
      tests = tests.filter((trial) => asked.has(trial.image));
    }
    const order = draw.shuffled(tests);
    const checks = draw.shuffled(plan.trials.filter((trial) => trial.task === task && trial.kind === "check"));
    const places = checks.map((_, k) => {
      const first = Math.floor((order.length * k) / checks.length), end = Math.floor((order.length * (k + 1)) / checks.length);
      return first + draw.below(Math.max(1, end - first));
    });
    for (let k = checks.length - 1; k >= 0; k -= 1) order.splice(places[k], 0, checks[k]);
    const flips = draw.shuffled(order.map((_, k) => k % 2 === 1));
    order.forEach((trial, k) => {
      const side = flips[k] ? [1, 0] : [0, 1];
      shown.push({ trial, left: trial.roles[side[0]], right: trial.roles[side[1]], pictures: side.map((place) => trial.options[place]) });
    });
  }
  return shown;
}

const COLUMNS = ["study", "rater", "session", "simulated", "draft", "number", "task", "trial", "kind", "image", "method", "left", "right",
  "answer", "chosen", "correct", "rt_ms", "input", "time", "screen", "checksum"];

function correctness(trial, answer, chosen) {
  if (trial.right === "") return "";
  if (trial.right === "high") return String(Number(Number(answer) >= 6));
  if (trial.right === "low") return String(Number(Number(answer) <= 2));
  return String(Number(chosen === trial.right));
}

function rowOf(plan, shown, number, answer, about) {
  const { trial, left, right } = shown;
  const chosen = { left, right }[answer] ?? "";
  const values = { study: plan.study, draft: Number(plan.draft), number, task: trial.task, trial: trial.id, kind: trial.kind, image: trial.image,
    method: trial.method, left, right, answer, chosen, correct: correctness(trial, answer, chosen), simulated: 0, ...about };
  const row = COLUMNS.slice(0, -1).map((name) => String(values[name]));
  row.push(hash32(row.join("\x1f")).toString(16).padStart(8, "0"));
  return row;
}

function asCsv(rows) {
  const cell = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return [COLUMNS, ...rows].map((row) => `${row.map(cell).join(",")}\n`).join("");
}
