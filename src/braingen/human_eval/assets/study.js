// The page that raters see: consent, code, one question after another, and the file with the answers. Nothing is sent anywhere.
"use strict";

(() => {
  const plan = window.STUDY;
  const stage = document.querySelector("#stage");
  const bar = document.querySelector(".progress");
  const src = (name) => (window.STUDY_PICTURES ? window.STUDY_PICTURES[name] : `pictures/${name}.webp`);
  const picture = (name, alt) => `<img src="${src(name)}" alt="${alt}" draggable="false">`;
  const touch = window.matchMedia("(pointer: coarse)").matches;
  const keys = (text) => (touch ? "" : ` <span class="keys">${text}</span>`);

  const TEXT = {
    identification: {
      title: "Which picture was seen?",
      told: `<p>${plan.simulated ? "In a simulation, somebody" : "Somebody"} looked at a picture, and a computer tried to
        <strong>draw it from their ${plan.simulated ? "simulated " : ""}brain activity</strong>.</p>
        <p>You see the drawing, and two pictures in frames. <strong>One of the two is the picture that was looked at.</strong> Choose the one that you
        think it was. The drawings are far from perfect: go by contents, colours, shapes, places, whatever helps. If you cannot tell, guess.</p>`,
      question: "Which of the two framed pictures was it drawn from?",
      cue: "the drawing",
    },
    preference: {
      title: "Which drawing is nearer?",
      told: `<p>You see a picture that was looked at, and, in frames, <strong>two drawings</strong> of it that were made in two different ways.</p>
        <p>Choose the drawing that shows the picture better. If both are bad, choose the one that is less bad.</p>`,
      question: "Which framed drawing shows the picture better?",
      cue: "the picture that was looked at",
    },
    similarity: {
      title: "How alike are they?",
      told: `<p>You see <strong>two pictures</strong>. Say how alike they are, from 1 (nothing in common) to 7 (the same picture).</p>
        <p>Think of what is to be seen in them, and of how it looks. Use the whole scale.</p>`,
      question: "How alike are these two pictures?",
    },
  };
  const HOW = {
    choice: touch ? "Touch a picture to choose it." : "Click a picture, or press the arrow key ← or →.",
    rating: touch ? "Touch a number." : "Click a number, or press a key from 1 to 7.",
  };

  // --- answers, kept on this device until they are saved, so that a closed page loses nothing ---
  const keep = {
    key: (rater) => `braingen-study-${plan.study}-${rater}`,
    read(rater) {
      try { return JSON.parse(localStorage.getItem(this.key(rater))) ?? null; } catch { return null; }
    },
    write(rater, value) {
      try { localStorage.setItem(this.key(rater), JSON.stringify(value)); } catch { /* private window: then not */ }
    },
  };

  function sheet(content) {
    bar.hidden = true;
    stage.innerHTML = `<div class="sheet">${content}</div>`;
    window.scrollTo(0, 0);
    return stage.firstElementChild;
  }

  function begin() {
    const page = sheet(`<div class="consent">${plan.consent}</div>
      <div class="actions"><button class="main" id="agree">I agree and want to take part</button><button id="refuse">I do not want to</button></div>`);
    page.querySelector("#agree").addEventListener("click", askCode);
    page.querySelector("#refuse").addEventListener("click", () =>
      sheet("<h1>Thank you</h1><p>Nothing was recorded. You can close this page.</p>"));
  }

  function askCode() {
    const page = sheet(`<h1>Your code</h1><p>Please type the code that you were given. It stands for you in the results; do not use your name.</p>
      <form><label for="code">Code</label><input id="code" autocomplete="off" autocapitalize="off" spellcheck="false" maxlength="32">
      <p class="wrong" role="alert"></p><button class="main">Continue</button></form>`);
    const field = page.querySelector("#code");
    field.focus();
    page.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      const code = field.value.trim();
      if (!/^[A-Za-z0-9_-]{1,32}$/.test(code) || /^simulated/i.test(code)) {
        page.querySelector(".wrong").textContent = "Please use letters, digits, - and _ only, at least one of them.";
        return;
      }
      const earlier = keep.read(code);
      if (earlier && earlier.rows.length) askWhetherToContinue(code, earlier);
      else run(code, { session: newSession(), rows: [] });
    });
  }

  const newSession = () => [...crypto.getRandomValues(new Uint8Array(6))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

  function askWhetherToContinue(code, earlier) {
    const total = sessionOf(plan, code).length, done = earlier.rows.length;
    const page = sheet(`<h1>Welcome back</h1><p>With the code <strong>${code}</strong>, ${done} of ${total} questions have been answered on this device.</p>
      <div class="actions"><button class="main" id="on">Continue there</button><button id="other">Another code</button></div>`);
    page.querySelector("#on").addEventListener("click", () => run(code, earlier));
    page.querySelector("#other").addEventListener("click", askCode);
  }

  // --- the questions ---
  async function run(code, state) {
    const shown = sessionOf(plan, code);
    const screen = `${window.innerWidth}x${window.innerHeight}@${window.devicePixelRatio}`;
    let input = "";
    stage.innerHTML = "";
    const jsPsych = initJsPsych({ display_element: stage });
    const leaving = (event) => { event.preventDefault(); event.returnValue = ""; };
    window.addEventListener("beforeunload", leaving);

    const record = (number, answer, milliseconds) => {
      state.rows.push(rowOf(plan, shown[number], number + 1, answer,
        { rater: code, session: state.session, rt_ms: milliseconds, input, time: new Date().toISOString(), screen }));
      keep.write(code, state);
    };
    const advance = () => {
      const done = state.rows.length, share = Math.round((100 * done) / shown.length);
      bar.hidden = false;
      bar.setAttribute("aria-valuenow", share);
      bar.querySelector(".done").style.width = `${share}%`;
      bar.querySelector(".where").textContent = `${done} of ${shown.length}`;
    };
    // arrow keys and digits press the buttons; which it was is recorded
    const listen = (pressed) => {
      const onKey = (event) => {
        const button = event.repeat || event.ctrlKey || event.metaKey || event.altKey ? undefined : pressed(event.key);
        if (button === undefined) return;
        const target = stage.querySelector(`[data-choice="${button}"]`);
        if (target && !target.disabled) { event.preventDefault(); input = "key"; target.click(); }
      };
      const onPointer = (event) => { input = event.pointerType || "mouse"; };
      document.addEventListener("keydown", onKey);
      document.addEventListener("pointerdown", onPointer, true);
      return () => { document.removeEventListener("keydown", onKey); document.removeEventListener("pointerdown", onPointer, true); };
    };

    const introduction = (task) => {
      const text = TEXT[task], rating = task === "similarity";
      const part = plan.tasks.length > 1 ? `<p class="part">Part ${plan.tasks.indexOf(task) + 1} of ${plan.tasks.length}</p>` : "";
      let stop;
      return {
        type: jsPsychHtmlButtonResponse,
        stimulus: `<div class="sheet">${part}<h1>${text.title}</h1>${text.told}<p>${rating ? HOW.rating : HOW.choice}</p>
          <p class="small">There is no time limit. Now and then the answer is obvious; this shows that you are still attentive.</p></div>`,
        choices: ["Begin"],
        button_html: (choice) => `<button class="main">${choice}${keys("Enter ↵")}</button>`,
        on_load: () => { advance(); stage.className = "telling"; window.scrollTo(0, 0); stop = listen((key) => (key === "Enter" ? 0 : undefined)); },
        on_finish: () => stop(),
      };
    };

    const question = (number) => {
      const { trial, pictures } = shown[number];
      const text = TEXT[trial.task], rating = trial.task === "similarity";
      let stop;
      const cue = trial.cue ? `<div class="cue">${picture(trial.cue, text.cue)}</div>` : "";
      const pair = rating ? `<div class="pair">${picture(pictures[0], "picture A")}${picture(pictures[1], "picture B")}</div>` : "";
      return {
        type: jsPsychHtmlButtonResponse,
        stimulus: `<h1 class="question">${text.question}</h1>${cue}${pair}`,
        choices: rating ? ["1", "2", "3", "4", "5", "6", "7"] : pictures,
        button_html: (choice, k) => (rating ? `<button class="step">${choice}</button>`
          : `<button class="option" aria-label="${k ? "picture B, on the right" : "picture A, on the left"}">${picture(choice, "")}${keys(k ? "→" : "←")}</button>`),
        prompt: rating ? '<p class="ends"><span>nothing in common</span><span>the same picture</span></p>' : null,
        enable_button_after: 250, // a double click does not answer twice
        post_trial_gap: 150,
        on_load: () => {
          advance();
          input = "";
          stage.className = `asking ${rating ? "rating" : "choosing"}`;
          window.scrollTo(0, 0);
          stop = listen(rating ? (key) => (/^[1-7]$/.test(key) ? Number(key) - 1 : undefined) : (key) => ({ ArrowLeft: 0, ArrowRight: 1 })[key]);
        },
        on_finish: (data) => {
          stop();
          record(number, rating ? String(data.response + 1) : ["left", "right"][data.response], data.rt);
        },
      };
    };

    const timeline = [];
    const used = new Set(shown.flatMap(({ trial }) => [trial.cue, ...trial.options]).filter(Boolean));
    timeline.push({ type: jsPsychPreload, images: [...used].sort().map(src), message: "One moment, the pictures are being loaded.", show_progress_bar: false,
      error_message: "A picture could not be loaded. Please tell the person who gave you this study." });
    for (let number = state.rows.length; number < shown.length; number += 1) {
      const task = shown[number].trial.task;
      if (number === state.rows.length || shown[number - 1].trial.task !== task) timeline.push(introduction(task));
      timeline.push(question(number));
    }
    if (state.rows.length < shown.length) await jsPsych.run(timeline);
    stage.className = "";
    finish(code, state, () => window.removeEventListener("beforeunload", leaving));
  }

  // --- the end ---
  function finish(code, state, mayLeave) {
    const text = asCsv(state.rows), name = `braingen-study-${plan.study}-${code}-${state.session}.csv`;
    const file = new File([text], name, { type: "text/csv" });
    const sharing = touch && navigator.canShare && navigator.canShare({ files: [file] });
    const page = sheet(`<h1>Thank you!</h1><p>All questions are answered. <strong>Please save your answers now</strong>, and give the file to the person who invited you.</p>
      <div class="actions"><button class="main" id="save">Save my answers</button>${sharing ? '<button id="share">Send the file …</button>' : ""}</div>
      <p class="saved" role="status"></p>
      <details><summary>If saving does not work</summary><p>Copy everything in this field into an e-mail or a text file.</p>
      <textarea id="text" readonly rows="8" aria-label="Your answers as text"></textarea><button id="copy">Copy</button></details>`);
    const said = page.querySelector(".saved"), field = page.querySelector("#text");
    field.value = text;
    const safe = (words) => { said.textContent = words; mayLeave(); };
    page.querySelector("#save").addEventListener("click", () => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(file);
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      safe(`Saved as ${name}, in your downloads. You can close this page when you have found the file there.`);
    });
    if (sharing) page.querySelector("#share").addEventListener("click", () => navigator.share({ files: [file] }).then(() => safe("Sent."), () => {}));
    page.querySelector("#copy").addEventListener("click", () => {
      field.select();
      const fallen = () => { document.execCommand("copy"); safe("Copied."); };
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => safe("Copied."), fallen);
      else fallen();
    });
  }

  begin();
})();
