"use strict";
// Part 4: a figure for each of the tutorial's claims.

// The running losses of the tutorial's experiment, a line for each run, its name at its end.
function drawRunningLosses(place, { runs, log }, label) {
  const rows = runs.flatMap((name) =>
    DATA.tutorial[name].losses.map((loss, index) => ({ name, epoch: index + 1, loss })).filter(({ loss }) => loss !== null),
  );
  const ends = runs.map((name) => rows.filter((row) => row.name === name).at(-1));
  plot(place, {
    marginRight: 96,
    x: { label: say("epoch_axis"), labelArrow: "none", domain: [1, d3.max(rows, (row) => row.epoch)] },
    y: {
      ...(log ? { type: "log", ticks: 5, tickFormat: formatNumber } : { zero: true }),
      label: say(log ? "sum_axis_log" : "sum_axis"), labelArrow: "none", grid: true, nice: true,
    },
    marks: [
      Plot.line(rows, { x: "epoch", y: "loss", z: "name", stroke: (row) => colourOf(row.name), strokeWidth: 2, marker: "dot" }),
      Plot.text(ends, { x: "epoch", y: "loss", text: (row) => DATA.tutorial[row.name].label, textAnchor: "start", dx: 8 }),
    ],
  }, label);
}

// The trials of some optimizers, with the tutorial's learning rates as vertical lines.
function drawMarkedRates(place, { optimizers: names, marks }, label) {
  const rows = trials.filter((trial) => names.includes(trial.optimizer.name));
  const best = names.map((name) => rows.filter((row) => row.optimizer.name === name && !row.isBad)).map((own) => d3.greatest(own, (row) => row.accuracy));
  plot(place, {
    x: rateAxis(),
    y: { label: say("accuracy_axis"), labelArrow: "none", domain: [0, 90], grid: true },
    marks: [
      Plot.ruleX(marks, { strokeDasharray: "4 3" }),
      Plot.text(marks, { x: (rate) => rate, y: 90, text: String, textAnchor: "start", dx: 4, dy: 8 }),
      ...trialMarks(rows),
      Plot.text(best, { x: "rate", y: (row) => 100 * row.accuracy, text: (row) => row.optimizer.label, dy: -16, fontWeight: "bold" }),
    ],
  }, label);
}

// The mean losses of some optimizers in training and test.
function drawGaps(place, { optimizers: names }, label) {
  const kinds = ["training", "test"];
  const rows = names.flatMap((name) => {
    const optimizer = findOptimizer(name);
    return kinds.map((kind) => ({
      name,
      place: `${optimizer.label}, ${say(`${kind}_word`)}`,
      loss: optimizer[kind === "test" ? "test_loss" : "train_loss"],
    }));
  });
  plot(place, {
    height: 150,
    marginLeft: 110,
    marginRight: 60,
    x: { label: say("mean_loss_axis").replace("↑ ", "") + " →", labelArrow: "none", zero: true },
    y: { label: null, domain: rows.map((row) => row.place) },
    marks: [
      Plot.barX(rows, { x: "loss", y: "place", fill: (row) => colourOf(row.name) }),
      Plot.text(rows, { x: "loss", y: "place", text: (row) => row.loss.toFixed(3), textAnchor: "start", dx: 4 }),
    ],
  }, label);
}

const CLAIM_FIGURES = { losses: drawRunningLosses, rates: drawMarkedRates, gaps: drawGaps };

keepDrawn(() => {
  for (const { id, figure, alternative } of DATA.claims) {
    CLAIM_FIGURES[figure.kind](document.querySelector(`#claim-${id} .figure`), figure, alternative[language]);
  }
});
