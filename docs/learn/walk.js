"use strict";
// Part 1: up to three optimizers on a slope. A walk is a function of slope, start, optimizer, hyperparameters and the number
// of steps, so whatever is changed shows at once.

const MAX_STEPS = 500;
const FAR = 1e6; // a weight beyond it counts as diverged
const PLAY_MS = 120;
const MARKS = ["●", "■", "▲"];
const SYMBOLS = ["circle", "square", "triangle"];

const network = DATA.landscape;
SLOPES.network = {
  ...createGridSlope(network),
  start: [network.states[0].x, network.states[0].y],
  lowest: [],
  states: network.states,
  rates: { gradient: 1, length: 0.3 },
};

// The values of a slider. A learning rate is 10 to the power of its slider.
const MEMORIES = [0, 0.5, 0.8, 0.9, 0.95, 0.99, 0.999];
const CHOICES = { μ: MEMORIES, ρ: MEMORIES, β1: MEMORIES, β2: MEMORIES, λ: [0, 0.001, 0.01, 0.03, 0.1, 0.3, 1] };
const WORDS = { η: "learning_rate", μ: "momentum_word", ρ: "memory_word", β1: "memory_word", β2: "memory_word", λ: "decay_word" };
const RATE_SLIDER = { min: -4, max: 1, step: 0.05 };
const nameOf = (key) => key.replace("1", "₁").replace("2", "₂");
const roundRate = (rate) => Number(rate.toPrecision(3));

const walking = {
  slope: "valley",
  start: SLOPES.valley.start,
  steps: 20,
  weight: 0,
  timer: null,
  slots: ["sgd", "momentum", "adam"].map((name) => createSlot(name, "valley")),
};

function createSlot(name, slope) {
  if (name === "none") return { name, values: {} };
  return { name, values: { η: SLOPES[slope].rates[RULES[name].rate], ...RULES[name].hyperparameters } };
}

// Where the steps lead: places, losses, why they ended before `steps`, if they did, and the lines of the last step.
function computeWalk(slope, start, slot, steps) {
  const states = start.map((w) => createState(slot.name, w, slot.values));
  const places = [start];
  const losses = [slope.loss(...start)];
  let lines = [[], []];
  let ending = null;
  for (let step = 0; step < steps && !ending; step++) {
    const gradient = slope.gradient(...places.at(-1));
    lines = [[], []];
    states.forEach((state, i) => {
      takeStep(slot.name, state, gradient[i], (formula, before, after) => {
        lines[i].push({ formula, ...fillIn(formula, before, after) });
      });
    });
    places.push(states.map((state) => state.w));
    losses.push(slope.loss(...places.at(-1)));
    if (places.at(-1).some((w) => !(Math.abs(w) < FAR))) ending = "diverged";
    else if (!Number.isFinite(losses.at(-1))) ending = "left";
  }
  return { slot, places, losses, lines, ending, gradient: states.map((state) => state.g) };
}

const computeWalks = () =>
  walking.slots.map((slot) =>
    slot.name === "none" ? null : computeWalk(SLOPES[walking.slope], walking.start, slot, walking.steps),
  );

function describeWalk(walk) {
  const [x, y] = walk.places.at(-1).map(formatNumber);
  const text = say("walk_state", {
    name: RULES[walk.slot.name].label,
    t: walk.places.length - 1,
    loss: Number.isFinite(walk.losses.at(-1)) ? formatNumber(walk.losses.at(-1)) : "–",
    x,
    y,
  });
  return walk.ending ? `${text} (${say(walk.ending)})` : text;
}

// The map: colours and lines of equal loss, the marks of the slope, and the walks.

function drawMap(walks) {
  const slope = SLOPES[walking.slope];
  const width = Math.max(260, byId("map").clientWidth);
  const height = Math.min(430, Math.max(240, width * 0.62));
  const [left, right, bottom, top] = slope.view;
  const x = d3.scaleLinear([left, right], [34, width - 8]);
  const y = d3.scaleLinear([bottom, top], [height - 34, 8]);
  const svg = d3.create("svg").attr("width", width).attr("height", height).attr("viewBox", [0, 0, width, height]);
  drawContours(svg.append("g"), slope, x, y);
  drawAxes(svg, x, y, width, height);
  svg.append("clipPath").attr("id", "inside").append("rect")
    .attr("x", x(left)).attr("y", y(top)).attr("width", x(right) - x(left)).attr("height", y(bottom) - y(top));
  const paths = svg.append("g").attr("clip-path", "url(#inside)");
  walks.forEach((walk, number) => walk && drawWalk(paths, walk, number, x, y));
  drawPlaces(svg.append("g"), slope, x, y);
  svg.on("click", (event) => {
    const [a, b] = d3.pointer(event, svg.node());
    setStart([clamp(x.invert(a), left, right), clamp(y.invert(b), bottom, top)]);
  });
  const label = say("map_label", {
    slope: say(`slope_${walking.slope}`),
    walks: walks.filter(Boolean).map(describeWalk).join(". "),
  });
  show(byId("map"), svg.node(), label);
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const contours = {}; // by slope and size

function drawContours(group, slope, x, y) {
  const [columns, rows, levels] = [120, 90, 14];
  const key = `${walking.slope} ${x.range()} ${y.range()}`;
  contours[key] ??= (() => {
    const values = new Array(columns * rows);
    const at = (scale, index, count) =>
      clamp(scale.invert(scale.range()[0] + (index / (count - 1)) * (scale.range()[1] - scale.range()[0])), ...scale.domain());
    for (let j = 0; j < rows; j++)
      for (let i = 0; i < columns; i++) values[j * columns + i] = slope.loss(at(x, i, columns), at(y, j, rows));
    const sorted = Float64Array.from(values).sort();
    const thresholds = d3.range(1, levels).map((level) => d3.quantileSorted(sorted, level / levels));
    return d3.contours().size([columns, rows]).thresholds([sorted[0] - 1, ...thresholds])(values);
  })();
  const project = d3.geoTransform({
    point(a, b) {
      const place = (value, count, range) => range[0] + clamp((value - 0.5) / (count - 1), 0, 1) * (range[1] - range[0]);
      this.stream.point(place(a, columns, x.range()), place(b, rows, y.range()));
    },
  });
  group.selectAll("path").data(contours[key]).join("path")
    .attr("d", d3.geoPath(project))
    .attr("fill", (_, level) => `color-mix(in oklab, var(--high) ${(100 * level) / (levels - 1)}%, var(--low))`)
    .attr("stroke", (_, level) => (level ? "var(--contour)" : "none"))
    .attr("stroke-width", 0.6);
}

function drawAxes(svg, x, y, width, height) {
  const ticks = width < 500 ? 5 : 8;
  svg.append("g").attr("transform", `translate(0,${height - 34})`).call(d3.axisBottom(x).ticks(ticks).tickSizeOuter(0));
  svg.append("g").attr("transform", "translate(34,0)").call(d3.axisLeft(y).ticks(5).tickSizeOuter(0));
  svg.append("text").attr("x", width - 8).attr("y", height - 2).attr("text-anchor", "end").text("w₁ →");
  svg.append("text").attr("x", 2).attr("y", 14).attr("class", "halo").text("↑ w₂");
}

function drawPlaces(group, slope, x, y) {
  for (const [a, b] of slope.lowest) drawLabel(group, x(a), y(b), "✕", say("lowest"));
  for (const state of slope.states ?? []) drawLabel(group, x(state.x), y(state.y), "＋", say(`state_${state.name}`));
}

function drawLabel(group, a, b, mark, text) {
  group.append("text").attr("x", a).attr("y", b + 5).attr("text-anchor", "middle").attr("class", "halo").text(mark);
  group.append("text").attr("x", a + 6).attr("y", b - 8).attr("class", "halo").text(text);
}

function drawWalk(group, walk, number, x, y) {
  const colour = `var(--walk${number})`;
  const places = walk.places.filter((place) => place.every(Number.isFinite)).map(([a, b]) => [
    clamp(x(a), -1e4, 1e4),
    clamp(y(b), -1e4, 1e4),
  ]);
  const line = group.append("path").attr("d", d3.line()(places)).attr("fill", "none").attr("stroke", colour);
  line.attr("stroke-width", 1.8).attr("stroke-linejoin", "round");
  const mark = { circle: d3.symbolCircle, square: d3.symbolSquare, triangle: d3.symbolTriangle }[SYMBOLS[number]];
  const draw = (place, size) =>
    group.append("path").attr("d", d3.symbol(mark, size)()).attr("transform", `translate(${place})`).attr("fill", colour);
  if (places.length <= 150) places.slice(0, -1).forEach((place) => draw(place, 14));
  draw(places.at(-1), 110).attr("class", "position").attr("stroke", "var(--page)");
}

// The other views of the walks.

function drawLosses(walks) {
  const rows = walks.flatMap((walk, number) =>
    walk ? walk.losses.map((loss, t) => ({ t, loss: Math.max(loss, 1e-12), number })) : [],
  );
  const known = rows.filter((row) => Number.isFinite(row.loss));
  const highest = Math.min(d3.max(known, (row) => row.loss) ?? 1, 100 * (d3.max(known.filter((row) => !row.t), (row) => row.loss) ?? 1));
  const lowest = Math.min(d3.min(known, (row) => row.loss) ?? 0.1, highest / 10);
  plot(byId("losses"), {
    maxWidth: 1080,
    height: 220,
    x: { label: say("step_axis"), labelArrow: "none", domain: [0, Math.max(20, walking.steps)] },
    y: { type: "log", label: say("loss_axis"), labelArrow: "none", domain: [lowest, highest], grid: true, ticks: 5, tickFormat: formatNumber },
    marks: walks.flatMap((walk, number) => {
      const own = known.filter((row) => row.number === number);
      const last = own.slice(-1);
      const style = { x: "t", y: "loss", clip: true };
      return [
        Plot.line(own, { ...style, stroke: `var(--walk${number})`, strokeWidth: 1.8 }),
        Plot.dot(last, { x: "t", y: "loss", fill: `var(--walk${number})`, symbol: SYMBOLS[number], r: 5, filter: (row) => row.loss <= highest }),
      ];
    }),
  }, say("loss_chart_label", { walks: walks.filter(Boolean).map(describeWalk).join(". ") }));
}

function drawStates(walks) {
  byId("walks").setAttribute("aria-live", walking.timer ? "off" : "polite");
  byId("walks").replaceChildren(
    ...walks.flatMap((walk, number) => (walk ? [make("p", {}, createMark(number), ` ${describeWalk(walk)}`)] : [])),
  );
}

const createMark = (number) => make("span", { style: `color: var(--walk${number})`, "aria-hidden": "true" }, MARKS[number]);

function drawFormulas(walks) {
  byId("formulas").replaceChildren(
    ...walks.flatMap((walk, number) => {
      if (!walk) return [];
      const rule = RULES[walk.slot.name];
      const done = walk.lines[walking.weight];
      const box = make("div", { className: "formulas" }, make("h4", {}, createMark(number), ` ${rule.label}`));
      const t = walk.places.length - 1;
      if (t) box.append(make("p", { className: "faint" }, say("gradient_now", { t, g: formatNumber(walk.gradient[walking.weight]) })));
      rule.lines.forEach(([formula], index) => {
        box.append(make("p", { className: "formula" }, formula));
        if (!done.length) return;
        const { filled, result } = done[index];
        box.append(make("p", { className: "numbers" }, `${filled} = `, make("b", {}, result)));
      });
      return [box];
    }),
  );
}

function drawWalks() {
  const walks = computeWalks();
  drawMap(walks);
  drawLosses(walks);
  drawStates(walks);
  drawFormulas(walks);
  byId("play").dataset.text = walking.timer ? "pause" : "play";
  byId("play").textContent = say(byId("play").dataset.text);
}

// The controls.

function drawControls() {
  for (const node of document.querySelectorAll(".about")) node.hidden = node.dataset.slope !== walking.slope;
  const [left, right, bottom, top] = SLOPES[walking.slope].view;
  [[left, right], [bottom, top]].forEach(([low, high], i) => {
    Object.assign(byId(`start${i}`), { min: low, max: high, value: walking.start[i] });
    byId(`start${i}-value`).textContent = walking.start[i].toFixed(2).replace("-", "−");
  });
  byId("slots").replaceChildren(...walking.slots.map(createSlotControls));
}

function createSlotControls(slot, number) {
  const title = say("optimizer", { n: number + 1 });
  const options = ["none", ...Object.keys(RULES)].map((name) =>
    make("option", { value: name, selected: name === slot.name }, name === "none" ? say("none") : RULES[name].label),
  );
  const select = make("select", { id: `optimizer${number}`, "aria-label": title }, ...options);
  select.addEventListener("change", () => {
    walking.slots[number] = createSlot(select.value, walking.slope);
    drawControls();
    drawWalks();
    byId(`optimizer${number}`).focus();
  });
  const box = make("fieldset", { className: "slot" }, make("legend", {}, createMark(number), ` ${title}`), select);
  for (const key of Object.keys(slot.values)) box.append(createSlider(slot, number, key));
  return box;
}

function createSlider(slot, number, key) {
  const choices = CHOICES[key];
  const range = choices
    ? { min: 0, max: choices.length - 1, step: 1, value: choices.indexOf(slot.values[key]) }
    : { ...RATE_SLIDER, value: Math.log10(slot.values[key]) };
  const output = make("output", {}, formatNumber(slot.values[key]));
  const input = make("input", { type: "range", id: `${key}${number}` });
  Object.assign(input, range);
  input.setAttribute("aria-valuetext", output.textContent);
  input.addEventListener("input", () => {
    slot.values[key] = choices ? choices[input.value] : roundRate(10 ** input.value);
    output.textContent = formatNumber(slot.values[key]);
    input.setAttribute("aria-valuetext", output.textContent);
    drawWalks();
  });
  return make("label", { className: "slider" }, make("span", {}, `${nameOf(key)} (${say(WORDS[key])})`), output, input);
}

function setStart(start) {
  walking.start = start;
  drawControls();
  drawWalks();
}

function setSteps(steps) {
  walking.steps = Math.min(steps, MAX_STEPS);
  if (walking.steps === MAX_STEPS) stop();
  drawWalks();
}

function stop() {
  clearInterval(walking.timer);
  walking.timer = null;
}

byId("step").addEventListener("click", () => setSteps(walking.steps + 1));
byId("steps10").addEventListener("click", () => setSteps(walking.steps + 10));
byId("reset").addEventListener("click", () => {
  stop();
  setSteps(0);
});
byId("play").addEventListener("click", () => {
  if (walking.timer) stop();
  else walking.timer = setInterval(() => setSteps(walking.steps + 1), PLAY_MS);
  drawWalks();
});
for (const i of [0, 1]) {
  byId(`start${i}`).addEventListener("input", (event) => {
    walking.start = walking.start.map((w, j) => (i === j ? Number(event.target.value) : w));
    byId(`start${i}-value`).textContent = walking.start[i].toFixed(2).replace("-", "−");
    drawWalks();
  });
}
byId("slope").addEventListener("change", (event) => {
  walking.slope = event.target.value;
  for (const slot of walking.slots) {
    if (slot.name !== "none") slot.values.η = SLOPES[walking.slope].rates[RULES[slot.name].rate];
  }
  setStart(SLOPES[walking.slope].start);
});
byId("weight").addEventListener("change", (event) => {
  walking.weight = Number(event.target.value);
  drawWalks();
});

keepDrawn(() => {
  drawControls();
  drawWalks();
});
