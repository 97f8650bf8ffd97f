"use strict";
// Part 3: two optimizers seed by seed, a guess, the verdict, and how often such a guess is wrong.

const optimizers = DATA.study.optimizers.filter((optimizer) => optimizer.runs.length);
const guessing = { first: "adam", second: "adamw", shown: 1, guess: null, wrongAfter: 1 };

const findOptimizer = (name) => optimizers.find((optimizer) => optimizer.name === name);
const labelOf = (name) => findOptimizer(name).label;
const nameBoth = (pair) => pair.names.map(labelOf).join(" – ");
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The recorded pair of two optimizers, turned so that `first` is the first; null without a verdict.
function findPair(first, second) {
  const pair = DATA.study.pairs.find(({ names }) => names.includes(first) && names.includes(second) && first !== second);
  if (!pair || pair.names[0] === first) return pair ?? null;
  return {
    ...pair,
    names: [first, second],
    difference: -pair.difference,
    low: -pair.high,
    high: -pair.low,
    first_is_better: !pair.first_is_better,
  };
}

// The accuracies of both for the seeds that are shown.
function compareSeeds() {
  const [a, b] = [findOptimizer(guessing.first).runs, findOptimizer(guessing.second).runs];
  const rows = a.flatMap((run) => {
    const other = b.find(({ seed }) => seed === run.seed);
    return other ? [{ seed: run.seed, accuracies: [run.accuracy, other.accuracy] }] : [];
  });
  const shown = rows.slice(0, guessing.shown);
  const means = [0, 1].map((i) => mean(shown.map((row) => row.accuracies[i])));
  return { rows, shown, means, difference: means[0] - means[1] };
}

function describeSeeds({ rows, shown, difference }) {
  const n = shown.length;
  if (Math.abs(difference) < 1e-12) return say("seed_tie", { n, all: rows.length });
  const [ahead, sign] = difference > 0 ? [guessing.first, 1] : [guessing.second, -1];
  const wins = shown.filter((row) => sign * (row.accuracies[0] - row.accuracies[1]) > 0).length;
  return say("seed_state", { n, all: rows.length, ahead: labelOf(ahead), wins, points: points(Math.abs(difference)) });
}

function describeGuess({ rows }) {
  if (!guessing.guess) return "";
  const { name, n } = guessing.guess;
  const text = say("your_guess", { name: labelOf(name), n });
  const pair = findPair(guessing.first, guessing.second);
  if (guessing.shown < rows.length || !pair) return text;
  const isRight = pair.difference > 0 === (name === guessing.first);
  return `${text} ${say(isRight ? "guess_right" : "guess_wrong")}`;
}

// The verdict of the record, in words.
function describeVerdict(pair, n) {
  if (!pair) return say("verdict_none");
  const key = { better: "better", equivalent: "equivalent", undecided: "undecided" }[pair.verdict] ?? "small";
  return say(`verdict_${key}`, {
    n,
    name: labelOf(pair.names[pair.first_is_better ? 0 : 1]),
    points: points(pair.first_is_better || key === "undecided" ? pair.difference : -pair.difference),
    low: points(pair.first_is_better || key === "undecided" ? pair.low : -pair.high),
    high: points(pair.first_is_better || key === "undecided" ? pair.high : -pair.low),
    margin: (100 * DATA.study.margin).toFixed(1),
  });
}

function drawAccuracies(compared) {
  const names = [guessing.first, guessing.second];
  const symbols = ["circle", "square"];
  const rows = compared.shown.flatMap(({ seed, accuracies }) =>
    accuracies.map((accuracy, i) => ({ seed: String(seed), accuracy: 100 * accuracy, i })),
  );
  const domain = [...compared.rows.map(({ seed }) => String(seed)), say("mean_word")];
  const all = compared.rows.flatMap(({ accuracies }) => accuracies.map((accuracy) => 100 * accuracy));
  const means = compared.means.map((accuracy, i) => ({ seed: say("mean_word"), accuracy: 100 * accuracy, i }));
  const [low, high] = d3.extent(all);
  const style = (i) => ({ x: "seed", y: "accuracy", fill: colourOf(names[i]), symbol: symbols[i], r: 6, stroke: "var(--page)" });
  plot(byId("accuracies"), {
    maxWidth: 1080,
    height: 260,
    marginRight: 110,
    x: { type: "point", domain, label: say("seed_axis"), labelArrow: "none" },
    y: { domain: [low - 0.2, high + 0.2], nice: true, label: say("test_axis"), labelArrow: "none", grid: true },
    marks: [0, 1].flatMap((i) => [
      Plot.dot(rows.filter((row) => row.i === i), style(i)),
      Plot.dot([means[i]], { ...style(i), r: 8 }),
      Plot.text([means[i]], {
        x: "seed", y: "accuracy", text: () => labelOf(names[i]), textAnchor: "start", dx: 14,
        dy: (compared.difference >= 0) === (i === 0) ? -8 : 8,
      }),
    ]),
  }, say("seeds_label", { text: describeSeeds(compared) }));
}

function drawSeeds() {
  const compared = compareSeeds();
  guessing.shown = Math.min(guessing.shown, compared.rows.length);
  for (const id of ["first", "second"]) {
    byId(id).replaceChildren(
      ...optimizers.map(({ name, label }) => make("option", { value: name, selected: name === guessing[id] }, label)),
    );
  }
  drawAccuracies(compared);
  const isWhole = guessing.shown === compared.rows.length;
  byId("add").disabled = byId("all").disabled = isWhole;
  [guessing.first, guessing.second].forEach((name, i) => {
    byId(`guess${i}`).textContent = labelOf(name);
    byId(`guess${i}`).setAttribute("aria-pressed", String(guessing.guess?.name === name));
  });
  byId("seed-state").textContent = `${describeSeeds(compared)} ${describeGuess(compared)}`;
  byId("verdict").hidden = !isWhole;
  byId("verdict").innerHTML = describeVerdict(findPair(guessing.first, guessing.second), compared.rows.length);
  drawWrong();
}

function drawWrong() {
  const k = guessing.wrongAfter;
  const pairs = DATA.study.pairs.filter(({ wrong }) => wrong.length >= k);
  const rows = pairs.map((pair) => ({ x: 100 * Math.abs(pair.difference), y: 100 * pair.wrong[k - 1], pair }));
  const isOwn = ({ pair }) => pair.names.includes(guessing.first) && pair.names.includes(guessing.second);
  const own = rows.filter(isOwn);
  const isFarRight = own.some((row) => row.x > d3.max(rows, ({ x }) => x) / 2);
  const share = (value) => `${value.toFixed(1)} %`;
  const [first, second] = [labelOf(guessing.first), labelOf(guessing.second)];
  const text = [
    ...own.map(({ y }) => say("wrong_this", { first, second, share: share(y) })),
    say("wrong_mean", { share: share(mean(rows.map(({ y }) => y))) }),
  ].join(" ");
  byId("wrong-n").max = Math.max(...DATA.study.pairs.map(({ wrong }) => wrong.length));
  byId("wrong-n-value").textContent = k === 1 ? say("wrong_one") : say("wrong_n", { n: k });
  byId("wrong-n").setAttribute("aria-valuetext", byId("wrong-n-value").textContent);
  byId("wrong-text").textContent = text;
  plot(byId("wrong"), {
    maxWidth: 1080,
    height: 260,
    x: { label: say("wrong_x"), labelArrow: "none", zero: true, nice: true },
    y: { label: say("wrong_y"), labelArrow: "none", domain: [0, 100], grid: true },
    marks: [
      Plot.dot(rows, { x: "x", y: "y", fill: "var(--faint)", fillOpacity: 0.6, r: 5 }),
      Plot.dot(own, { x: "x", y: "y", fill: "var(--accent)", r: 8 }),
      Plot.text(own, { x: "x", y: "y", dy: -16, textAnchor: isFarRight ? "end" : "start", fontWeight: "bold", text: () => `${first} – ${second}` }),
      Plot.tip(rows, Plot.pointer({ x: "x", y: "y", title: ({ pair, y }) => `${nameBoth(pair)}: ${share(y)}` })),
    ],
  }, text);
}

// Sets one of the two; if it is the other one, they change places.
function choosePair(id, name) {
  const other = id === "first" ? "second" : "first";
  if (guessing[other] === name) guessing[other] = guessing[id];
  guessing[id] = name;
  guessing.shown = 1;
  guessing.guess = null;
  drawSeeds();
}

for (const id of ["first", "second"]) byId(id).addEventListener("change", (event) => choosePair(id, event.target.value));
byId("add").addEventListener("click", () => {
  guessing.shown += 1;
  drawSeeds();
});
byId("all").addEventListener("click", () => {
  guessing.shown = Infinity;
  drawSeeds();
});
byId("again").addEventListener("click", () => choosePair("first", guessing.first));
for (const i of [0, 1]) {
  byId(`guess${i}`).addEventListener("click", () => {
    guessing.guess = { name: [guessing.first, guessing.second][i], n: guessing.shown };
    drawSeeds();
  });
}
byId("wrong-n").addEventListener("input", (event) => {
  guessing.wrongAfter = Number(event.target.value);
  drawWrong();
});
keepDrawn(drawSeeds);
