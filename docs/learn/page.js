"use strict";
// What all parts of the page share: its data, the language, and figures that fit their place.

const DATA = JSON.parse(document.getElementById("data").textContent);
const TEXTS = JSON.parse(document.getElementById("texts").textContent);
const byId = (id) => document.getElementById(id);

let language = "en";
const drawings = []; // functions that draw a part of the page in the present language and width

// A text in the present language, with {name} replaced by values.name.
const say = (key, values = {}) => TEXTS[key][language].replace(/\{(\w+)\}/g, (_, name) => values[name]);

const percent = (fraction) => `${(100 * fraction).toFixed(1)} %`;
const points = (difference) => (100 * difference).toFixed(2).replace("-", "−");
const colourOf = (name) => `var(--c-${name})`;

// Calls `draw` now, and again whenever the language or the width changes.
function keepDrawn(draw) {
  drawings.push(draw);
  draw();
}

function setLanguage(chosen) {
  language = chosen;
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : "en";
  document.title = say("title");
  for (const node of document.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text);
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", say(node.dataset.label));
  for (const draw of drawings) draw();
}

// The language that was chosen here before, or the browser's first one that is Chinese or English.
function findLanguage() {
  const codes = [recall("language"), ...navigator.languages].filter(Boolean);
  const known = codes.map((code) => code.slice(0, 2).toLowerCase()).find((code) => code === "zh" || code === "en");
  return known ?? "en";
}

// A browser can forbid pages from the disk to remember anything.
function recall(key) {
  try {
    return localStorage.getItem(`optlab-${key}`);
  } catch {
    return null;
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(`optlab-${key}`, value);
  } catch {
    // then it is asked for again
  }
}

// Puts a drawing into its place, with a text for those who cannot see it.
function show(place, drawing, label) {
  for (const part of drawing.querySelectorAll("[aria-label]")) {
    part.dataset.mark = part.getAttribute("aria-label"); // Plot's names of marks, in English, and not for readers
    part.removeAttribute("aria-label");
  }
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", label);
  place.replaceChildren(drawing);
}

// A chart by Observable Plot, as wide as its place.
function plot(place, options, label) {
  const width = Math.max(260, Math.min(place.clientWidth, options.maxWidth ?? 760));
  const chart = Plot.plot({
    width,
    height: Math.min(300, 120 + width * 0.4),
    marginLeft: 48,
    marginBottom: 40,
    marginTop: 28,
    marginRight: 20,
    style: { background: "none", color: "inherit", fontSize: "12px", fontFamily: "inherit" },
    ...options,
  });
  show(place, chart, label);
  return chart;
}

// An element with attributes and children.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

byId("language").addEventListener("click", () => {
  setLanguage(language === "zh" ? "en" : "zh");
  remember("language", language);
});

let lastWidth = document.body.clientWidth;
new ResizeObserver(() => {
  if (document.body.clientWidth === lastWidth) return;
  lastWidth = document.body.clientWidth;
  for (const draw of drawings) draw();
}).observe(document.body);

setLanguage(findLanguage());
