// What the page of a comparison does in a browser: figures by Observable Plot, tables that sort and filter, the
// comparison of a pair, and the choice of the language. Without it, the page shows tables and pictures.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { x: "epoch", y: "linear", lines: "mean", outliers: "cut", hidden: new Set(), pair: null };
  const byName = new Map(data.optimizers.map((each) => [each.name, each]));
  const find = (id) => document.getElementById(id);

  // Texts

  const inLanguage = (text) => (typeof text === "string" ? text : text[document.documentElement.lang] ?? text.en);
  function say(template, values = {}) {
    return inLanguage(data.texts[template]).replace(/\{(\w+)\}/g, (_, name) => values[name]);
  }
  const formatPercent = (value, digits = 2) => `${(100 * value).toFixed(digits)} %`;
  const formatValue = (value, metric) => (metric.percent ? formatPercent(value) : value.toPrecision(4));
  // Ticks of a linear axis have as many digits as it takes to tell them apart.
  function formatTick(metric, domain, count) {
    const step = d3.tickStep(...domain, count) * (metric.percent ? 100 : 1);
    const digits = step > 0 ? d3.precisionFixed(step) : 2; // one value alone has no step
    return (value) => (metric.percent ? formatPercent(value, digits) : value.toFixed(digits));
  }

  function setLanguage(language) {
    document.documentElement.lang = language;
    document.title = inLanguage(data.title);
    const button = find("language");
    [button.textContent, button.lang] = language === "zh" ? ["English", "en"] : ["中文", "zh"];
    for (const each of document.querySelectorAll("section[data-label]")) each.ariaLabel = readLabel(each);
    drawAll();
    if (state.pair !== null) showPair(state.pair);
  }
  const readLabel = (element) =>
    document.documentElement.lang === "zh" ? element.dataset.labelZh : element.dataset.label;

  // Figures

  // All widths are read before anything is drawn: each reading after a change would lay out the page again.
  const widths = new Map();
  function measure() {
    for (const figure of document.querySelectorAll("figure.chart")) widths.set(figure, Math.max(240, figure.clientWidth));
  }

  function draw(figure, options, note = "") {
    const marks = options.marks.filter(Boolean);
    const plot = Plot.plot({ style: { fontSize: "12px" }, ...options, marks, width: widths.get(figure) });
    for (const each of plot.querySelectorAll("[aria-label]")) each.removeAttribute("aria-label"); // names of Plot's marks
    const image = plot.matches("svg") ? plot : plot.querySelector(":scope > svg"); // beside a legend
    image.setAttribute("role", "img");
    image.setAttribute("aria-label", readLabel(figure) ?? "");
    const box = document.createElement("div");
    box.className = "plot";
    box.append(plot);
    if (note) box.insertAdjacentHTML("beforeend", `<p class="note">${note}</p>`);
    (figure.querySelector(".plot") ?? figure.querySelector("div")).replaceWith(box);
  }

  const countTicks = (figure) => Math.max(2, Math.round((widths.get(figure) - 100) / 90));

  function tip(points, x, y, title) {
    return Plot.tip(points, Plot.pointer({ x, y, title, maxRadius: 40, fontSize: 12 }));
  }

  // A range of the values without outliers, which are further than three interquartile ranges from the middle half
  // (Tukey's far outliers), if without them the range is smaller by a quarter or more.
  function findDomain(values) {
    const sorted = Float64Array.from(values).sort();
    const [min, max] = [sorted[0], sorted[sorted.length - 1]];
    const [low, high] = [d3.quantileSorted(sorted, 0.25), d3.quantileSorted(sorted, 0.75)];
    const inside = sorted.filter((each) => each >= low - 3 * (high - low) && each <= high + 3 * (high - low));
    const domain = [inside[0], inside[inside.length - 1]];
    const isSmaller = domain[1] - domain[0] < 0.75 * (max - min);
    if (state.outliers === "show" || !isSmaller) return { domain: [min, max], outside: 0, total: sorted.length };
    return { domain, outside: sorted.length - inside.length, total: sorted.length };
  }
  const noteOutliers = ({ outside, total }) =>
    outside ? say("{count} of {total} values lie outside the axis.", { count: outside, total }) : "";

  function nameAxis(names, width) {
    const longest = Math.max(...names.map((each) => each.length));
    return Math.min(longest * 7.5 + 14, width * 0.36);
  }

  function drawRanking() {
    const figure = find("ranking");
    const names = data.optimizers.map((each) => each.name);
    const means = data.optimizers.filter((each) => each.mean !== null);
    const seeds = data.optimizers.flatMap(({ name, colour, seeds, text }) =>
      seeds.map(([seed, value]) => ({
        name, colour, value,
        text: `${name}\n${say("seed")} ${seed}: ${formatValue(value, data.metric)}\n${say("mean")}: ${text}`,
      })),
    );
    const values = seeds.map((each) => each.value).concat(means.flatMap(({ low, high }) => (low === null ? [] : [low, high])));
    const domain = d3.extent(values);
    const y = { domain: names, label: null, padding: 0.5 };
    draw(figure, {
      height: 34 * names.length + 60,
      marginLeft: nameAxis(names, widths.get(figure)),
      marginRight: 20,
      marginBottom: 40,
      x: { label: inLanguage(data.metric.name), nice: true, grid: true, ticks: countTicks(figure), tickFormat: formatTick(data.metric, domain, countTicks(figure)), domain },
      y,
      marks: [
        Plot.axisY({ tickSize: 0, textOverflow: "ellipsis", lineWidth: nameAxis(names, widths.get(figure)) / 13 }),
        Plot.dot(seeds, { x: "value", y: "name", fill: "colour", fillOpacity: 0.55, r: 3, dy: 7 }),
        Plot.ruleY(means.filter((each) => each.low !== null), { x1: "low", x2: "high", y: "name", stroke: "colour", strokeWidth: 2.5, dy: -5 }),
        Plot.dot(means, { x: "mean", y: "name", fill: "colour", stroke: "var(--page)", symbol: "diamond", r: 4.5, dy: -5 }),
        tip(seeds, "value", "name", "text"),
      ],
    });
  }

  const xAxes = {
    epoch: { label: "epoch", scale: () => 1 / data.stepsPerEpoch },
    step: { label: "step", scale: () => 1 },
    gradients: { label: "gradients computed", scale: (name) => byName.get(name).gradientsPerStep },
  };
  const isShown = (line) => !state.hidden.has(line.optimizer);

  // The drawn points of one line: of the mean with its interval, or of a seed.
  function listPoints(line, values, label, low, high) {
    const { colour } = byName.get(line.optimizer);
    const scale = xAxes[state.x].scale(line.optimizer);
    return values.map((y, index) => ({
      x: line.steps[index] * scale, y, low: low?.[index] ?? y, high: high?.[index] ?? y,
      optimizer: line.optimizer, line: `${line.optimizer} ${label}`, label, colour,
    })).filter((point) => point.y !== null);
  }

  function drawCurve(curve) {
    const figure = find(`curve-${curve.key}`);
    const points = curve.lines.filter(isShown).flatMap((line) =>
      state.lines === "mean"
        ? listPoints(line, line.mean, "", line.low, line.high)
        : line.seeds.flatMap(([seed, values]) => listPoints(line, values, `${say("seed")} ${seed}`)),
    );
    const isLog = state.y === "log" && !curve.percent;
    const values = points.flatMap((each) => (each.low === each.high ? [each.y] : [each.low, each.y, each.high]));
    const found = findDomain(isLog ? values.filter((each) => each > 0) : values);
    const title = (each) =>
      [`${each.optimizer} ${each.label}`.trim(), `${say(xAxes[state.x].label)} ${Number(each.x.toPrecision(4))}`,
        formatValue(each.y, curve) +
          (each.low === each.high ? "" : ` (${formatValue(each.low, curve)} – ${formatValue(each.high, curve)})`)].join("\n");
    const isVisible = (each) => each.y >= found.domain[0] && each.y <= found.domain[1];
    const target = data.target && curve.key === "validation_accuracy" && points.length ? [data.target.accuracy] : [];
    const bottom = Math.max(1e-12, found.domain[0]);
    draw(figure, {
      height: 290, marginLeft: 52, marginBottom: 40, marginRight: 16, clip: true,
      x: { label: say(xAxes[state.x].label), domain: [0, d3.max(points, (each) => each.x) ?? 1], ticks: 5 },
      y: { type: isLog ? "log" : "linear", label: null, grid: true, nice: !isLog, ticks: 6,
        ...(points.length && { domain: found.domain }),
        tickFormat: isLog ? (value) => String(Number(value.toPrecision(3))) : formatTick(curve, found.domain, 6) },
      marks: points.length ? [
        Plot.ruleY(target, { stroke: "currentColor", strokeOpacity: 0.5, strokeDasharray: "2,3" }),
        state.lines === "mean" &&
          Plot.areaY(points, { x: "x", y1: (each) => (isLog ? Math.max(bottom / 2, each.low) : each.low), y2: "high", z: "line", fill: "colour", fillOpacity: 0.16 }),
        Plot.lineY(points, { x: "x", y: "y", z: "line", stroke: "colour", strokeWidth: state.lines === "mean" ? 1.8 : 1, strokeOpacity: state.lines === "mean" ? 1 : 0.7 }),
        curve.lines.every((line) => line.steps.length < 15) && Plot.dot(points, { x: "x", y: "y", fill: "colour", r: 2.5 }),
        tip(points.filter(isVisible), "x", "y", title),
      ] : [Plot.text([say("No optimizer is shown.")], { frameAnchor: "middle" })],
    }, points.length ? noteOutliers(found) : "");
  }

  function drawTarget() {
    if (!data.target?.lines.length) return;
    const lines = data.target.lines.filter(isShown);
    const points = lines.flatMap(({ optimizer, steps, seeds }, index) => {
      const scale = xAxes[state.x].scale(optimizer);
      const last = { x: data.totalSteps * scale, y: steps.length / seeds };
      // Earlier lines are wider: they stay visible below later ones.
      const style = { optimizer, colour: byName.get(optimizer).colour, width: 4.5 - (3 * (index + 1)) / lines.length };
      return [{ x: 0, y: 0 }, ...steps.map((step, rank) => ({ x: step * scale, y: (rank + 1) / seeds })), last].map((each) => ({ ...each, ...style }));
    });
    draw(find("curve-target"), {
      height: 290, marginLeft: 52, marginBottom: 40, marginRight: 16,
      x: { label: say(xAxes[state.x].label), ticks: 5, domain: [0, d3.max(points, (each) => each.x) ?? 1] },
      y: { label: null, grid: true, domain: [-0.03, 1.03], ticks: 5, tickFormat: (value) => formatPercent(value, 0) },
      marks: points.length ? [
        Plot.line(points, { x: "x", y: "y", z: "optimizer", stroke: "colour", strokeWidth: "width", curve: "step-after" }),
        tip(points, "x", "y", (each) => `${each.optimizer}\n${say(xAxes[state.x].label)} ${Number(each.x.toPrecision(4))}\n${say("share of seeds")}: ${formatPercent(each.y, 0)}`),
      ] : [Plot.text([say("No optimizer is shown.")], { frameAnchor: "middle" })],
    });
  }

  function drawTuning({ optimizer, trials, grids }) {
    const { colour } = byName.get(optimizer);
    const known = (own) => own.filter((each) => each.rate !== null && each.rate !== undefined && each.rate > 0)
      .map((each) => ({ ...each, y: each.accuracy ?? 0 }));
    const points = known(trials);
    const others = data.tuning.flatMap((each) => (each.optimizer === optimizer ? [] : known(each.trials)));
    const has = (...statuses) => points.filter((each) => statuses.includes(each.status));
    const place = { x: "rate", y: "y" };
    draw(find(`rate-${optimizer}`), {
      height: 210, marginLeft: 46, marginBottom: 40, marginRight: 14,
      x: { type: "log", label: say("learning rate"), ticks: 4, tickFormat: (value) => value.toExponential(0).replace("e+0", "e0") },
      y: { label: null, grid: true, ticks: 4, domain: [0, d3.max([...points, ...others], (each) => each.y) * 1.05], tickFormat: (value) => formatPercent(value, 0) },
      marks: [
        Plot.dot(others, { ...place, fill: "currentColor", fillOpacity: 0.14, r: 2 }),
        ...grids.flatMap((grid) => [
          Plot.areaY(grid, { x: "0", y1: "2", y2: "3", fill: colour, fillOpacity: 0.15 }),
          Plot.lineY(grid, { x: "0", y: "1", stroke: colour }),
        ]),
        Plot.dot(has("completed"), { ...place, fill: colour, r: 3.5 }),
        Plot.dot(has("stopped"), { ...place, fill: colour, r: 2.2 }),
        Plot.dot(has("diverged", "failed"), { ...place, stroke: colour, symbol: "times", r: 4 }),
        Plot.dot(points.filter((each) => each.isChosen), { ...place, stroke: "currentColor", r: 7 }),
        Plot.dot(points.filter((each) => each.isDefault), { ...place, stroke: "currentColor", symbol: "square", r: 7 }),
        tip(points, "rate", "y", (each) => [
          [say(each.status), each.isChosen && say("chosen"), each.isDefault && say("default")].filter(Boolean).join(", "),
          each.accuracy === null ? "–" : `${say("validation accuracy")} ${formatPercent(each.accuracy)}`,
          each.values || `${say("learning rate")} ${each.rate}`].join("\n")),
      ],
    });
  }

  function drawCurves() {
    data.curves.forEach(drawCurve);
    drawTarget();
  }
  function drawAll() {
    measure();
    drawRanking();
    drawCurves();
    data.tuning.forEach(drawTuning);
  }

  // Pairs

  function fillTable(table, header, rows) {
    const makeRow = (tag, cells) => {
      const row = document.createElement("tr");
      for (const cell of cells) row.append(Object.assign(document.createElement(tag), { textContent: cell }));
      return row;
    };
    const body = document.createElement("tbody");
    body.append(...(header ? [makeRow("th", header)] : []), ...rows.map((cells) => makeRow("td", cells)));
    table.replaceChildren(body);
  }

  function showPair(number) {
    state.pair = number;
    const pair = data.pairs[number];
    const [first, second] = pair.names.map((name) => byName.get(name));
    find("pair-title").textContent = `${first.name} − ${second.name}`;
    find("pair-sentence").textContent = inLanguage(pair.sentence);
    fillTable(find("pair-facts"), null, pair.facts.map((each) => each.map(inLanguage)));
    // Seeds of both, in order; an optimizer may have others.
    const values = [first, second].map((each) => new Map(each.seeds.slice(0, pair.n)));
    const seeds = [...new Set(values.flatMap((each) => [...each.keys()]))];
    const format = (value) => (value === undefined ? "–" : formatValue(value, data.metric));
    fillTable(find("pair-seeds"), [say("seed"), first.name, second.name],
      seeds.map((seed) => [String(seed), ...values.map((each) => format(each.get(seed)))]));
    if (!find("pair").open) find("pair").showModal();
    measure();
    drawPair([first, second], values, seeds);
  }

  function drawPair(optimizers, values, seeds) {
    const points = optimizers.flatMap(({ name, colour }, index) =>
      [...values[index]].map(([seed, value]) => ({ seed, value, name, colour })));
    const both = seeds.filter((seed) => values.every((each) => each.has(seed)))
      .map((seed) => ({ seed, from: values[0].get(seed), to: values[1].get(seed) }));
    const figure = find("pair-chart");
    figure.dataset.label = figure.dataset.labelZh = optimizers.map((each) => each.name).join(" − ");
    const domain = d3.extent(points, (each) => each.value);
    draw(figure, {
      height: 24 * seeds.length + 70, marginLeft: 46, marginRight: 20, marginBottom: 40,
      color: { domain: optimizers.map((each) => each.name), range: optimizers.map((each) => each.colour) },
      x: { label: inLanguage(data.metric.name), grid: true, nice: true, ticks: countTicks(figure), tickFormat: formatTick(data.metric, domain, countTicks(figure)) },
      y: { label: say("seed"), domain: seeds, type: "point" },
      marks: [
        Plot.ruleY(both, { y: "seed", x1: "from", x2: "to", strokeOpacity: 0.4 }),
        Plot.dot(points, { x: "value", y: "seed", fill: "name", symbol: "name", r: 5 }),
        tip(points, "value", "seed", (each) => `${each.name}\n${say("seed")} ${each.seed}: ${formatValue(each.value, data.metric)}`),
      ],
      symbol: { domain: optimizers.map((each) => each.name), range: ["circle", "diamond"], legend: true },
    });
  }

  // Tables

  const readCell = (row, column) => row.cells[column].innerText.trim();
  const readNumber = (text) => Number.parseFloat(text.replaceAll(",", "").replace("−", "-"));

  function sortTable(header) {
    const table = header.closest("table");
    const rows = [...table.tBodies[0].rows];
    const column = header.cellIndex;
    const isNumeric = rows.some((row) => !Number.isNaN(readNumber(readCell(row, column))));
    const first = isNumeric ? "descending" : "ascending";
    const direction = header.ariaSort === first ? (isNumeric ? "ascending" : "descending") : first;
    const sign = direction === "ascending" ? 1 : -1;
    const compare = (a, b) => {
      const [left, right] = [a, b].map((row) => readCell(row, column));
      if (!isNumeric) return sign * left.localeCompare(right);
      const [x, y] = [left, right].map(readNumber);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // without a value: last
      return sign * (x - y);
    };
    for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", direction);
    table.tBodies[0].append(...rows.sort(compare));
  }

  function makeButton(cell, onClick) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    button.addEventListener("click", onClick);
    cell.append(button);
    return button;
  }

  function prepareTables() {
    for (const header of document.querySelectorAll("table.sortable thead th"))
      makeButton(header, () => sortTable(header));
    for (const input of document.querySelectorAll("input[data-filter]"))
      input.addEventListener("input", () => {
        for (const row of find(input.dataset.filter).tBodies[0].rows)
          row.hidden = !row.innerText.toLowerCase().includes(input.value.trim().toLowerCase());
      });
    for (const cell of document.querySelectorAll("td[data-pair]")) {
      const [row, column] = [cell.parentElement.cells[0], cell.closest("table").tHead.rows[0].cells[cell.cellIndex]];
      makeButton(cell, () => showPair(Number(cell.dataset.pair))).ariaLabel =
        `${row.textContent} − ${column.textContent}: ${cell.textContent}`;
    }
    [...(find("pair-table")?.tBodies[0].rows ?? [])].forEach((row, number) => makeButton(row.cells[0], () => showPair(number)));
  }

  // Controls

  function show(optimizers, isVisible) {
    for (const name of optimizers) state.hidden[isVisible ? "delete" : "add"](name);
    for (const item of document.querySelectorAll("#legend li[data-optimizer]"))
      item.firstElementChild.ariaPressed = String(!state.hidden.has(item.dataset.optimizer));
    drawCurves();
  }

  function prepareControls() {
    for (const each of document.querySelectorAll("[data-needs-script]")) each.hidden = false;
    find("language").addEventListener("click", () => setLanguage(document.documentElement.lang === "zh" ? "en" : "zh"));
    find("pair-close").addEventListener("click", () => find("pair").close());
    find("pair").addEventListener("close", () => (state.pair = null));
    for (const item of document.querySelectorAll("#legend li[data-optimizer]")) {
      const name = item.dataset.optimizer;
      makeButton(item, () => show([name], state.hidden.has(name))).ariaPressed = "true";
    }
    find("show-all")?.addEventListener("click", () => show(byName.keys(), true));
    find("show-none")?.addEventListener("click", () => show(byName.keys(), false));
    const form = find("curve-controls");
    form?.reset(); // a browser may remember another choice
    form?.addEventListener("change", ({ target }) => {
      state[target.name] = target.value;
      drawCurves();
    });
    const choice = find("confusion-choice");
    const chooseConfusion = () => {
      for (const box of document.querySelectorAll(".confusion-box")) box.hidden = box.dataset.optimizer !== choice.value;
    };
    choice?.addEventListener("change", chooseConfusion);
    if (choice) chooseConfusion();
    window.addEventListener("beforeprint", () => {
      for (const each of document.querySelectorAll("details")) each.open = true;
    });
  }

  prepareControls();
  prepareTables();
  const wanted = /^#(en|zh)$/.exec(location.hash)?.[1];
  setLanguage(wanted ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    drawAll();
  });
})();
