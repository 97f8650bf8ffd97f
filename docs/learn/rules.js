"use strict";
// The update rules of docs/optimizers.md, line by line: a formula as that page has it, and the code that computes it.
//
// A line gets the state s of one weight and assigns the left side of its formula. The state holds the weight w, its gradient g,
// the number t of the step, the hyperparameters, and what the rule keeps for the next step, which is 0 before the first.

const { sign, sqrt } = Math;

const EPSILON = { adagrad: 1e-10, others: 1e-8 };

const MOMENTUM_LINE = ["v ← μ·v + g", (s) => (s.v = s.μ * s.v + s.g)];

const ADAM_LINES = [
  ["m ← β₁·m + (1 − β₁)·g", (s) => (s.m = s.β1 * s.m + (1 - s.β1) * s.g)],
  ["v ← β₂·v + (1 − β₂)·g²", (s) => (s.v = s.β2 * s.v + (1 - s.β2) * s.g ** 2)],
  ["m̂ = m / (1 − β₁ᵗ)", (s) => (s.m_hat = s.m / (1 - s.β1 ** s.t))],
  ["v̂ = v / (1 − β₂ᵗ)", (s) => (s.v_hat = s.v / (1 - s.β2 ** s.t))],
  ["w ← w − η·m̂ / (√v̂ + ε)", (s) => (s.w = s.w - (s.η * s.m_hat) / (sqrt(s.v_hat) + s.ε))],
];

// `rate` says which of a slope's two learning rates the rule begins with: one that is multiplied by the gradient, or one
// that is about the length of a step.
const RULES = {
  sgd: {
    label: "SGD",
    rate: "gradient",
    hyperparameters: {},
    lines: [["w ← w − η·g", (s) => (s.w = s.w - s.η * s.g)]],
  },
  momentum: {
    label: "SGD + momentum",
    rate: "gradient",
    hyperparameters: { μ: 0.9 },
    lines: [MOMENTUM_LINE, ["w ← w − η·v", (s) => (s.w = s.w - s.η * s.v)]],
  },
  nesterov: {
    label: "Nesterov",
    rate: "gradient",
    hyperparameters: { μ: 0.9 },
    lines: [MOMENTUM_LINE, ["w ← w − η·(g + μ·v)", (s) => (s.w = s.w - s.η * (s.g + s.μ * s.v))]],
  },
  adagrad: {
    label: "Adagrad",
    rate: "length",
    hyperparameters: {},
    lines: [
      ["r ← r + g²", (s) => (s.r = s.r + s.g ** 2)],
      ["w ← w − η·g / (√r + ε)", (s) => (s.w = s.w - (s.η * s.g) / (sqrt(s.r) + s.ε))],
    ],
  },
  rmsprop: {
    label: "RMSprop",
    rate: "length",
    hyperparameters: { ρ: 0.99 },
    lines: [
      ["r ← ρ·r + (1 − ρ)·g²", (s) => (s.r = s.ρ * s.r + (1 - s.ρ) * s.g ** 2)],
      ["w ← w − η·g / (√r + ε)", (s) => (s.w = s.w - (s.η * s.g) / (sqrt(s.r) + s.ε))],
    ],
  },
  adam: { label: "Adam", rate: "length", hyperparameters: { β1: 0.9, β2: 0.999 }, lines: ADAM_LINES },
  adamw: {
    label: "AdamW",
    rate: "length",
    hyperparameters: { β1: 0.9, β2: 0.999, λ: 0.01 },
    lines: [["w ← w − η·λ·w", (s) => (s.w = s.w - s.η * s.λ * s.w)], ...ADAM_LINES],
  },
  lion: {
    label: "Lion",
    rate: "length",
    hyperparameters: { β1: 0.9, β2: 0.99, λ: 0 },
    lines: [
      ["u = sign(β₁·m + (1 − β₁)·g)", (s) => (s.u = sign(s.β1 * s.m + (1 - s.β1) * s.g))],
      ["w ← w − η·(u + λ·w)", (s) => (s.w = s.w - s.η * (s.u + s.λ * s.w))],
      ["m ← β₂·m + (1 − β₂)·g", (s) => (s.m = s.β2 * s.m + (1 - s.β2) * s.g)],
    ],
  },
};

// The state of a weight before its first step.
function createState(name, w, hyperparameters) {
  return { w, g: 0, t: 0, v: 0, r: 0, m: 0, u: 0, ε: EPSILON[name] ?? EPSILON.others, ...hyperparameters };
}

// Takes one step with gradient g. `onLine(formula, before, s)` is called after each line, with a copy of the state before it.
function takeStep(name, s, g, onLine = () => {}) {
  s.g = g;
  s.t += 1;
  for (const [formula, compute] of RULES[name].lines) {
    const before = { ...s };
    compute(s);
    onLine(formula, before, s);
  }
  return s.w;
}

// The letters of the formulas → keys of the state.
const LETTERS = { "m̂": "m_hat", "v̂": "v_hat", "β₁": "β1", "β₂": "β2" };
const LETTER = /m̂|v̂|β₁|β₂|[ηεμρλwgvrmu]/gu;

// A number with four significant digits; a very small or large one as 1.5e−7.
function formatNumber(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "NaN" : value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size < 1e-3 || size >= 1e5 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
  return text.replace(/\.?0+e/, "e").replace("e+", "e").replaceAll("-", "−");
}

const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const raise = (t) => [...String(t)].map((digit) => SUPERSCRIPTS[digit]).join("");

// A formula with numbers in place of its letters, and its result: "0.9·0.5 + (1 − 0.9)·2" and "0.65".
function fillIn(formula, before, after) {
  const [target, , ...rest] = formula.split(" ");
  const key = (letter) => LETTERS[letter] ?? letter;
  const filled = rest
    .join(" ")
    .replaceAll("sign", "§") // its letters are no variables
    .replace(LETTER, (letter, place, text) => {
      const number = formatNumber(before[key(letter)]);
      const isRaised = text[place + letter.length] === "²" && number.includes("e");
      return number.startsWith("−") || isRaised ? `(${number})` : number;
    })
    .replaceAll("§", "sign")
    .replaceAll("ᵗ", raise(before.t));
  return { target, filled, result: formatNumber(after[key(target)]) };
}
