"use strict";
// Part 2: the recorded trials, validation accuracy against learning rate, and the curve of one of them.

const NEAR_PX = 30; // from a click to the dot that it means

const trials = DATA.study.optimizers.flatMap((optimizer) =>
  optimizer.trials.map((trial) => ({ ...trial, optimizer, isBad: trial.accuracy === null })),
);
const rating = { shown: new Set(["sgd", "adam", "adamw"]), trial: null };

const formatRate = (rate) => String(Number(rate.toPrecision(2)));
const isShown = (trial) => rating.shown.has(trial.optimizer.name);

function findBest(optimizer) {
  const ended = optimizer.trials.filter((trial) => trial.status === "completed");
  return ended.reduce((best, trial) => (trial.accuracy > best.accuracy ? trial : best));
}

function describeBest() {
  return DATA.study.optimizers
    .filter((optimizer) => rating.shown.has(optimizer.name) && optimizer.trials.some((trial) => trial.status === "completed"))
    .map((optimizer) => {
      const best = findBest(optimizer);
      return say("best_of", { name: optimizer.label, accuracy: percent(best.accuracy), rate: formatRate(best.rate) });
    })
    .join(" ");
}

// Marks of trials: a dot, hollow where it stopped early, a square for the customary rate, a cross at the bottom where it diverged,
// a ring around the chosen.
function trialMarks(rows) {
  const ended = rows.filter((trial) => !trial.isBad);
  const place = { x: "rate", y: (trial) => 100 * trial.accuracy };
  const fill = (trial) => colourOf(trial.optimizer.name);
  return [
    Plot.ruleY([0]),
    Plot.dot(rows.filter((trial) => trial.isBad), { x: "rate", y: 0, symbol: "times", stroke: fill, strokeWidth: 2, r: 5 }),
    Plot.dot(ended.filter((trial) => trial.status === "stopped"), { ...place, stroke: fill, r: 3 }),
    Plot.dot(ended.filter((trial) => trial.status === "completed" && !trial.is_default), { ...place, fill, r: 4 }),
    Plot.dot(ended.filter((trial) => trial.is_default), { ...place, fill, r: 5, symbol: "square" }),
    Plot.dot(ended.filter((trial) => trial.is_chosen), { ...place, stroke: fill, r: 8, strokeWidth: 1.5 }),
  ];
}

const isPower = (rate) => Math.abs(Math.log10(rate) - Math.round(Math.log10(rate))) < 1e-9;
const rateAxis = () => ({
  type: "log",
  label: say("rate_axis"),
  labelArrow: "none",
  tickFormat: (rate) => (isPower(rate) ? rate.toFixed(Math.max(0, -Math.round(Math.log10(rate)))) : ""),
});

function drawTrials() {
  const rows = trials.filter(isShown);
  const chosen = rating.trial && isShown(rating.trial) ? [rating.trial] : [];
  const chart = plot(byId("trials"), {
    maxWidth: 1080,
    height: 340,
    x: { ...rateAxis(), domain: d3.extent(trials, (trial) => trial.rate) },
    y: { label: say("accuracy_axis"), labelArrow: "none", domain: [0, 80], grid: true },
    marks: [
      ...trialMarks(rows),
      Plot.dot(chosen, { x: "rate", y: (trial) => 100 * (trial.accuracy ?? 0), stroke: "currentColor", strokeWidth: 2.5, r: 11 }),
    ],
  }, say("rates_label", { best: describeBest() }));
  const [x, y] = [chart.scale("x"), chart.scale("y")];
  chart.addEventListener("click", (event) => {
    const [a, b] = d3.pointer(event, chart);
    const distance = (trial) => Math.hypot(x.apply(trial.rate) - a, y.apply(100 * (trial.accuracy ?? 0)) - b);
    const nearest = d3.least(rows, distance);
    if (nearest && distance(nearest) < NEAR_PX) selectTrial(nearest);
  });
}

function drawShown() {
  const legend = byId("shown").querySelector("legend");
  const boxes = DATA.study.optimizers.filter((optimizer) => optimizer.trials.length).map((optimizer) => {
    const box = make("input", { type: "checkbox", name: "shown", value: optimizer.name, checked: rating.shown.has(optimizer.name) });
    const swatch = make("span", { className: "swatch", style: `background: ${colourOf(optimizer.name)}` });
    return make("label", {}, box, swatch, ` ${optimizer.label}`);
  });
  byId("shown").replaceChildren(legend, ...boxes);
}

function drawTrialList() {
  const groups = DATA.study.optimizers.filter((optimizer) => rating.shown.has(optimizer.name)).map((optimizer) => {
    const own = trials.filter((trial) => trial.optimizer === optimizer);
    const options = d3.sort(own, (trial) => trial.rate).map((trial) => {
      const text = `${formatRate(trial.rate)}: ${trial.isBad ? "✕" : percent(trial.accuracy)}`;
      const notes = [trial.is_chosen && say("trial_chosen"), trial.is_default && say("trial_default")].filter(Boolean);
      const selected = trial === rating.trial;
      return make("option", { value: trials.indexOf(trial), selected }, notes.length ? `${text} (${notes.join(", ")})` : text);
    });
    return make("optgroup", { label: optimizer.label }, ...options);
  });
  byId("trial").replaceChildren(...groups);
  if (rating.trial && !isShown(rating.trial)) rating.trial = null;
  if (!rating.trial && byId("trial").options.length) rating.trial = trials[byId("trial").value];
}

function describeTrial(trial) {
  if (trial.status === "failed") return say("trial_failed");
  if (!trial.validations.length) return say("trial_diverged");
  const [step, loss, accuracy] = trial.validations.at(-1);
  if (trial.isBad) return say("trial_diverged_later", { step });
  const n = trial.validations.length;
  const text = say(n === 1 ? "trial_one" : "trial_many", { n, step, loss: loss.toFixed(3), accuracy: percent(accuracy) });
  return trial.status === "stopped" ? text + say("trial_stopped") : text;
}

// The runs that were trained with the values of a trial: all seeds', or those of the seed that the search was made for.
function findConfirming(trial) {
  if (!trial.is_chosen) return [];
  const { runs, has_own_searches: isOwn } = trial.optimizer;
  return isOwn ? runs.filter((run) => run.seed === trial.search) : runs;
}

const describeRuns = (trial, runs) =>
  trial.optimizer.has_own_searches ? say("trial_run", { seed: trial.search }) : say("trial_runs", { n: runs.length });

// The trial in words, and its validations; those of the runs with other seeds, where its rate was chosen for them.
function drawCurve() {
  const trial = rating.trial;
  const place = byId("curve");
  if (!trial) return place.replaceChildren();
  const others = Object.entries(trial.others).map(([key, value]) => `${key} ${formatNumber(value)}`).join(", ");
  const title = say("trial_title", { name: trial.optimizer.label, rate: formatNumber(trial.rate) });
  const text = describeTrial(trial);
  const runs = findConfirming(trial);
  place.replaceChildren(
    make("h3", {}, title + (others ? say("and_with", { others }) : "")),
    make("p", { role: "status" }, text + (runs.length ? ` ${describeRuns(trial, runs)}` : "")),
  );
  if (!trial.validations.length) return null;
  const [accuracies, losses] = [make("div", { className: "figure" }), make("div", { className: "figure" })];
  place.append(make("div", { className: "pair" }, accuracies, losses));
  const rows = (validations, seed) => validations.map(([step, loss, accuracy]) => ({ step, loss, accuracy: 100 * accuracy, seed }));
  const own = rows(trial.validations);
  const confirming = runs.flatMap((run) => rows(run.validations, run.seed));
  for (const [figure, y, label, axis] of [
    [accuracies, "accuracy", "accuracy_word", "accuracy_axis"],
    [losses, "loss", "loss_word", "loss_axis_plain"],
  ]) {
    const stroke = colourOf(trial.optimizer.name);
    plot(figure, {
      height: 230,
      x: { label: say("step_axis"), labelArrow: "none", domain: [0, DATA.study.steps], ticks: 5 },
      y: { label: say(axis), labelArrow: "none", grid: true, nice: true, zero: y === "accuracy" && !confirming.length },
      marks: [
        Plot.line(confirming, { x: "step", y, z: "seed", stroke, strokeOpacity: 0.6, strokeWidth: 1 }),
        Plot.line(own, { x: "step", y, stroke, strokeWidth: 2.5 }),
        Plot.dot(own, { x: "step", y, fill: stroke, r: 5, stroke: "var(--page)" }),
      ],
    }, say("curve_label", { what: say(label), text }));
  }
  return null;
}

function selectTrial(trial) {
  rating.trial = trial;
  drawTrialList();
  drawTrials();
  drawCurve();
}

function drawRates() {
  drawShown();
  drawTrialList();
  drawTrials();
  drawCurve();
}

byId("trial").addEventListener("change", (event) => selectTrial(trials[event.target.value]));
byId("shown").addEventListener("change", (event) => {
  if (event.target.checked) rating.shown.add(event.target.value);
  else rating.shown.delete(event.target.value);
  drawTrialList();
  drawTrials();
  drawCurve();
});
rating.trial = trials.find((trial) => trial.optimizer.name === "adam" && trial.is_chosen) ?? null;
keepDrawn(drawRates);
