"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const MAX_CARDS = 600; // laid out at once; the rest on demand

  /** An element with a class and text; text is never markup. */
  function make(name, className, text) {
    const node = document.createElement(name);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // -- charts: hover, arrow keys, lines on and off --------------------------------------------------------------------

  const tip = byId("tip");
  let lit = [];

  function hideTip() {
    tip.hidden = true;
    for (const point of lit) point.classList.remove("on");
    lit = [];
  }

  /** Show what the points say, beside the first of them. */
  function showTip(points) {
    hideTip();
    if (!points.length) return;
    lit = points;
    for (const point of points) point.classList.add("on");
    tip.textContent = points.map((point) => point.dataset.tip).join("\n");
    tip.hidden = false;
    const box = points[0].getBoundingClientRect();
    const left = Math.min(box.left + 14, innerWidth - tip.offsetWidth - 8);
    const top = box.top - tip.offsetHeight - 10;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${top < 8 ? box.bottom + 12 : top}px`;
  }

  addEventListener("resize", hideTip);
  addEventListener("scroll", hideTip, { passive: true });

  const visiblePoints = (chart) => [...chart.querySelectorAll(".pt")].filter((point) => !point.closest(".off"));
  const place = (point) => [Number(point.dataset.x), Number(point.dataset.y)];

  for (const chart of document.querySelectorAll("svg.chart")) {
    chart.querySelectorAll("title").forEach((title) => {
      chart.setAttribute("aria-label", title.textContent);
      title.remove(); // its browser tooltip would cover ours
    });
    const twoWay = chart.id === "path";
    chart.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      const points = visiblePoints(chart);
      const distance = (p) => (twoWay ? Math.hypot(place(p)[0] - at.x, place(p)[1] - at.y) : Math.abs(place(p)[0] - at.x));
      const nearest = Math.min(...points.map(distance));
      const near = points.filter((p) => distance(p) <= nearest + (twoWay ? 3 : 0.6));
      const byHeight = (a, b) => place(a)[1] - place(b)[1];
      showTip(nearest < 60 ? near.sort(byHeight).slice(0, 12) : []);
    });
    chart.addEventListener("pointerleave", hideTip);
    chart.addEventListener("blur", hideTip);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const points = visiblePoints(chart);
      if (!twoWay) points.sort((a, b) => place(a)[0] - place(b)[0]);
      const from = points.indexOf(lit[0]);
      showTip([points[from < 0 ? 0 : (from + step + points.length) % points.length]].filter(Boolean));
    });
  }

  for (const key of document.querySelectorAll("[data-toggle]")) {
    key.addEventListener("click", () => {
      const on = key.getAttribute("aria-pressed") !== "true";
      key.setAttribute("aria-pressed", String(on));
      for (const line of document.querySelectorAll(`[data-s="${key.dataset.toggle}"]`)) line.classList.toggle("off", !on);
    });
  }

  // -- answers --------------------------------------------------------------------------------------------------------

  const form = byId("filters"), list = byId("list"), count = byId("count"), more = byId("more");
  const text = byId("text"), run = byId("run"), order = byId("order"), whole = byId("whole"), flawed = byId("flawed");
  const cycleName = (cycle) => (cycle < 0 ? "base" : `cycle ${cycle}`);
  let limit = MAX_CARDS;
  let current = 0;

  data.runs.forEach((one, number) => run.append(new Option(one.label, String(number))));
  if (data.runs.length > 1) run.append(new Option("all runs, side by side", "all"));
  const cycles = [...new Set(data.runs.flatMap((one) => one.cycles))].sort((a, b) => a - b);
  const cycleBoxes = cycles.map((cycle) => {
    const label = make("label", "cycle"), box = make("input");
    box.type = "checkbox";
    box.checked = box.defaultChecked = true;
    box.value = cycle;
    label.append(box, cycleName(cycle));
    byId("cycles").append(label);
    return box;
  });

  /** A number field, or null when it is empty. */
  const bound = (id) => (byId(id).value === "" ? null : Number(byId(id).value));

  function settings() {
    const range = (name) => ({ min: bound(`${name}-min`), max: bound(`${name}-max`) });
    return {
      text: text.value.trim().toLowerCase(), trait: range("trait"), coherence: range("coherence"), flawed: flawed.checked,
      cycles: new Set(cycleBoxes.filter((box) => box.checked).map((box) => Number(box.value))),
    };
  }

  function inside(value, { min, max }) {
    if (min === null && max === null) return true;
    return value !== undefined && value >= (min ?? 0) && value <= (max ?? 100);
  }

  function matches(answer, question, wanted) {
    if (!answer || !inside(answer.t, wanted.trait) || !inside(answer.c, wanted.coherence)) return false;
    if (wanted.flawed && !(answer.flaw || answer.failure || answer.mark || answer.cut)) return false;
    return !wanted.text || answer.a.toLowerCase().includes(wanted.text) || question.toLowerCase().includes(wanted.text);
  }

  const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : NaN);

  /** Mean of a score over the answers to a question in one cycle. */
  const level = (question, column, key) => mean(question.rows.map((row) => row[column]?.[key]).filter((value) => value !== undefined));

  /** Questions of the chosen run, or of all, each with the rows that pass the filter. */
  function found(wanted) {
    const chosen = run.value === "all" ? data.runs : [data.runs[Number(run.value)]];
    const questions = new Map();
    for (const one of chosen) {
      const columns = one.cycles.map((cycle, column) => ({ cycle, column })).filter(({ cycle }) => wanted.cycles.has(cycle));
      for (const question of one.questions) {
        const entry = questions.get(question.text) ?? { text: question.text, rows: [], nAnswers: 0, changes: [], coherence: [] };
        questions.set(question.text, entry);
        const first = one.cycles.findIndex((cycle) => cycle >= 0), last = one.cycles.length - 1;
        if (first >= 0) {
          entry.first = one.cycles[first];
          entry.last = one.cycles[last];
          entry.from = level(question, first, "t");
          entry.to = level(question, last, "t");
          entry.changes.push(entry.to - entry.from);
          entry.coherence.push(level(question, last, "c"));
        }
        question.rows.forEach((row, number) => {
          const cards = columns.map(({ cycle, column }) => ({
            cycle, invalid: one.invalid.includes(cycle), answer: row[column], hit: matches(row[column], question.text, wanted),
          }));
          const hits = cards.filter((card) => card.hit).length;
          if (hits) entry.rows.push({ run: chosen.length > 1 ? one.label : "", number, of: question.rows.length, cards });
          entry.nAnswers += hits;
        });
      }
    }
    const entries = [...questions.values()];
    const sorts = { rise: (q) => -mean(q.changes), fall: (q) => mean(q.changes), incoherent: (q) => mean(q.coherence) };
    const by = sorts[order.value];
    const known = (value) => (Number.isNaN(value) ? Infinity : value);
    if (by) entries.sort((a, b) => known(by(a)) - known(by(b)));
    return { total: entries.length, shown: entries.filter((entry) => entry.rows.length), single: chosen.length === 1 };
  }

  /** Put text into a node, with what was searched for marked. */
  function markText(node, value, wanted) {
    const lower = value.toLowerCase();
    let from = 0;
    // lower-casing may change a text's length (İ): then nothing is marked
    if (wanted && lower.length === value.length) {
      for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
        node.append(value.slice(from, at), make("mark", "", value.slice(at, at + wanted.length)));
        from = at + wanted.length;
      }
    }
    node.append(value.slice(from));
    return node;
  }

  function scoreBar(name, value) {
    const line = make("div", `score ${name}`), meter = make("span", "meter"), fill = make("i");
    fill.style.width = `${value ?? 0}%`;
    meter.append(fill);
    line.append(make("span", "", name), meter, make("b", "", value === undefined ? "n/a" : String(Math.round(value))));
    return line;
  }

  function card({ cycle, invalid, answer, hit }, wanted) {
    const node = make("div", `card${hit ? "" : " dim"}${answer ? "" : " none"}`);
    const head = make("header", "", "");
    const flags = [invalid ? "invalid cycle" : "", answer?.flaw ?? "", answer?.cut && answer.flaw !== "cut off" ? "cut off" : ""].filter(Boolean);
    head.append(make("span", "", cycleName(cycle)), make("em", "", flags.join(", ")));
    node.append(head);
    if (!answer) {
      node.append(make("p", "fits", "no answer"));
      return node;
    }
    node.style.setProperty("--t", answer.t ?? 0);
    node.append(scoreBar("trait", answer.t), scoreBar("coherence", answer.c));
    const unscored = answer.failure ?? answer.mark;
    if (unscored) node.append(make("small", "", `not scored: ${unscored}`));
    const paragraph = make("p");
    paragraph.dir = "auto";
    node.append(markText(paragraph, answer.a, wanted.text));
    return node;
  }

  function questionBlock(entry, number, wanted, single) {
    const node = make("article", "q");
    node.tabIndex = number === current ? 0 : -1;
    const title = make("h3");
    title.append(markText(make("span"), entry.text, wanted.text));
    if (single && entry.from !== undefined && !Number.isNaN(entry.from + entry.to)) {
      title.append(make("small", "", `trait ${Math.round(entry.from)} → ${Math.round(entry.to)}, cycle ${entry.first} to ${entry.last}`));
    }
    node.append(title);
    for (const row of entry.rows) {
      const answerName = row.of > 1 ? `answer ${row.number + 1}` : "";
      const name = [row.run, answerName].filter(Boolean).join(" · ");
      if (name) node.append(make("div", "rowname", name));
      const cards = make("div", "cards");
      cards.append(...row.cards.map((one) => card(one, wanted)));
      node.append(cards);
    }
    return node;
  }

  function show() {
    const wanted = settings(), { total, shown, single } = found(wanted);
    current = Math.min(current, Math.max(0, shown.length - 1));
    let cards = 0, upTo = 0;
    while (upTo < shown.length && (cards < limit || upTo <= current)) cards += shown[upTo++].rows.reduce((n, row) => n + row.cards.length, 0);
    list.replaceChildren(...shown.slice(0, upTo).map((entry, number) => questionBlock(entry, number, wanted, single)));
    const answers = shown.reduce((n, entry) => n + entry.nAnswers, 0);
    count.textContent = `${shown.length} of ${total} questions, ${answers} answers` + (upTo < shown.length ? `; the first ${upTo} questions are laid out` : "");
    more.hidden = upTo >= shown.length;
    fit();
  }

  /** No fade under texts that are short enough to show whole. */
  function fit() {
    for (const answer of list.querySelectorAll(".card p")) answer.classList.toggle("fits", answer.scrollHeight <= answer.clientHeight + 2);
  }

  /** Focus question `number`, counted among those that pass the filter. */
  function go(number) {
    if (number >= list.children.length && !more.hidden) more.click();
    const blocks = list.children;
    if (!blocks.length) return;
    current = Math.max(0, Math.min(number, blocks.length - 1));
    [...blocks].forEach((block, place) => (block.tabIndex = place === current ? 0 : -1));
    blocks[current].focus({ preventScroll: true });
    blocks[current].scrollIntoView({ block: "start", behavior: "instant" });
  }

  let waiting = 0;
  function soon() {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      limit = MAX_CARDS;
      current = 0;
      show();
    }, 120);
  }

  function showWhole() {
    list.classList.toggle("whole", whole.checked);
  }

  if (cycles.length) {
    form.hidden = false;
    run.closest("label").hidden = data.runs.length < 2;
    form.addEventListener("input", soon);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => { showWhole(); soon(); }));
    whole.addEventListener("change", showWhole);
    more.addEventListener("click", () => {
      limit += MAX_CARDS;
      show();
    });
    list.addEventListener("focusin", (event) => {
      const at = [...list.children].indexOf(event.target.closest(".q"));
      if (at >= 0) current = at;
    });
    show();
  } else {
    count.textContent = "No answers yet.";
  }

  // -- keys -----------------------------------------------------------------------------------------------------------

  const keys = byId("keys");
  byId("help").addEventListener("click", () => keys.showModal());

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const typing = event.target.closest?.("input:not([type=checkbox]), select, textarea");
    if (typing) {
      if (event.key === "Escape" && event.target.value === "") event.target.blur();
      return;
    }
    const onQuestion = event.target.classList?.contains("q");
    const started = list.contains(document.activeElement);
    const actions = {
      "/": () => { text.focus(); text.select(); },
      "?": () => keys.showModal(),
      j: () => go(started ? current + 1 : current),
      k: () => go(started ? current - 1 : current),
      e: () => { whole.checked = !whole.checked; showWhole(); },
    };
    if (onQuestion) {
      actions.ArrowDown = actions.j;
      actions.ArrowUp = actions.k;
      const slide = (by) => event.target.querySelectorAll(".cards").forEach((cards) => cards.scrollBy({ left: by }));
      actions.ArrowRight = () => slide(220);
      actions.ArrowLeft = () => slide(-220);
    }
    const action = Object.hasOwn(actions, event.key) ? actions[event.key] : null;
    if (!action) return;
    event.preventDefault();
    action();
  });
})();
